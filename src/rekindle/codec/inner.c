/* The codec's inner loops. docs/format.md says what they compute; fallback.py computes the same in numpy.
 *
 * No Python here: rekindle.codec.inner calls these through ctypes. Every function that reads bytes from outside is given
 * their number and returns -1 rather than read or write past an end.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "archives are little-endian, and so must be the machine: the fallback in numpy serves others"
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

API int rk_version(void) { return 3; }

/* ---- values <-> symbols and remainders ------------------------------------------------------------------------ */

#define SPLIT(T, W)                                                                                                  \
    static void split_##W(const T *src, int64_t n, u8 *symbols, u8 *rest) {                                          \
        for (int64_t i = 0; i < n; i++) {                                                                            \
            T r = (T)(src[i] << 1 | src[i] >> (W - 1));                                                              \
            symbols[i] = (u8)(r >> (W - 8));                                                                         \
            for (int p = 0; p < W / 8 - 1; p++) rest[p * n + i] = (u8)(r >> (8 * p));                                \
        }                                                                                                            \
    }                                                                                                                \
    static void join_##W(const u8 *symbols, const u8 *rest, int64_t n, T *out) {                                     \
        for (int64_t i = 0; i < n; i++) {                                                                            \
            T r = (T)((T)symbols[i] << (W - 8));                                                                     \
            for (int p = 0; p < W / 8 - 1; p++) r |= (T)((T)rest[p * n + i] << (8 * p));                             \
            out[i] = (T)(r >> 1 | r << (W - 1));                                                                     \
        }                                                                                                            \
    }
SPLIT(u16, 16)
SPLIT(u32, 32)
SPLIT(u64, 64)

/* Rotate the sign to the bottom; the top byte is the symbol, the others are planes of n bytes each. */
API void rk_split(int width, const void *src, int64_t n, u8 *symbols, u8 *rest) {
    if (width == 16) split_16(src, n, symbols, rest);
    else if (width == 32) split_32(src, n, symbols, rest);
    else split_64(src, n, symbols, rest);
}

API void rk_join(int width, const u8 *symbols, const u8 *rest, int64_t n, void *out) {
    if (width == 16) join_16(symbols, rest, n, out);
    else if (width == 32) join_32(symbols, rest, n, out);
    else join_64(symbols, rest, n, out);
}

/* ---- differences: sign and magnitude as a class and raw bits ----------------------------------------------------
 *
 * class 0: no difference. 1: one, then the sign. Else k bits of magnitude, of which the first is 1: class 2k - 2 plus the
 * second, then the sign and the k - 2 others. Raw bits are packed from the lowest bit of the first byte up.
 */

static inline int raw_bits(u8 symbol) { return symbol < 4 ? symbol > 0 : symbol / 2; }

static inline u64 peek(const u8 *data, int64_t nbytes, int64_t bit) {
    u64 word = 0;
    int64_t left = nbytes - (bit >> 3);
    memcpy(&word, data + (bit >> 3), left < 8 ? (size_t)left : 8);
    return word >> (bit & 7);
}

#define DELTA(T, S, W)                                                                                               \
    static inline T ordered_##W(T x, int real) {                                                                     \
        return real ? (T)(x ^ ((T)((S)x >> (W - 1)) | (T)1 << (W - 1))) : x;                                         \
    }                                                                                                                \
    static inline T stored_##W(T x, int real) {                                                                      \
        return real ? (T)(x ^ ((T)~((T)((S)x >> (W - 1))) | (T)1 << (W - 1))) : x;                                   \
    }                                                                                                                \
    static int64_t delta_##W(int real, const T *src, const T *ref, u64 bias, int64_t n, u8 *symbols, u8 *raw) {      \
        u8 *out = raw;                                                                                               \
        u64 held = 0;                                                                                                \
        int fill = 0;                                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                                            \
            T d = (T)(ordered_##W(src[i], real) - (ref ? ordered_##W(ref[i], real) : 0) - (T)bias);                  \
            int negative = d >> (W - 1), k = 0;                                                                      \
            u64 m = negative ? (T)(0 - d) : d, bits;                                                                 \
            if (m) k = 64 - __builtin_clzll(m);                                                                      \
            if (k < 2) {                                                                                             \
                symbols[i] = (u8)k;                                                                                  \
                bits = (u64)negative;                                                                                \
            } else {                                                                                                 \
                symbols[i] = (u8)(2 * k - 2 + (m >> (k - 2) & 1));                                                   \
                bits = (m & (((u64)1 << (k - 2)) - 1)) << 1 | (u64)negative;                                         \
            }                                                                                                        \
            int count = raw_bits(symbols[i]);                                                                        \
            held |= bits << fill;                                                                                    \
            fill += count;                                                                                           \
            if (fill >= 64) {                                                                                        \
                memcpy(out, &held, 8);                                                                               \
                out += 8;                                                                                            \
                fill -= 64;                                                                                          \
                held = fill ? bits >> (count - fill) : 0;                                                            \
            }                                                                                                        \
        }                                                                                                            \
        memcpy(out, &held, 8);                                                                                       \
        return 8 * (out - raw) + fill;                                                                               \
    }                                                                                                                \
    static int undelta_##W(int real, const u8 *symbols, const u8 *raw, int64_t nbytes, const T *ref, u64 bias,       \
                           int64_t n, T *out) {                                                                      \
        int64_t at = 0;                                                                                              \
        for (int64_t i = 0; i < n; i++) {                                                                            \
            u8 s = symbols[i];                                                                                       \
            int count = raw_bits(s), k = s / 2 + 1;                                                                  \
            if (s > 2 * W - 2 || at + count > 8 * nbytes) return -1;                                                 \
            u64 bits = peek(raw, nbytes, at);                                                                        \
            if (count > 56) bits = (bits & 0xffffffff) | peek(raw, nbytes, at + 32) << 32;                           \
            bits &= ((u64)1 << count) - 1;                                                                           \
            at += count;                                                                                             \
            T m = (T)(s < 2 ? s : (u64)(2 + (s & 1)) << (k - 2) | bits >> 1);                                        \
            T d = (T)((bits & 1 ? (T)(0 - m) : m) + (T)bias);                                                        \
            out[i] = stored_##W((T)(d + (ref ? ordered_##W(ref[i], real) : 0)), real);                               \
        }                                                                                                            \
        return (at + 7) / 8 == nbytes && !(at % 8 && raw[nbytes - 1] >> at % 8) ? 0 : -1;                            \
    }
DELTA(u8, int8_t, 8)
DELTA(u16, int16_t, 16)
DELTA(u32, int32_t, 32)
DELTA(u64, int64_t, 64)

/* -> number of raw bits; `raw` has room for n values and 8 bytes. `ref` may be NULL: all zero. `real`: floats. */
API int64_t rk_delta(int width, int real, const void *src, const void *ref, u64 bias, int64_t n, u8 *symbols, u8 *raw) {
    if (width == 8) return delta_8(real, src, ref, bias, n, symbols, raw);
    if (width == 16) return delta_16(real, src, ref, bias, n, symbols, raw);
    if (width == 32) return delta_32(real, src, ref, bias, n, symbols, raw);
    return delta_64(real, src, ref, bias, n, symbols, raw);
}

API int rk_undelta(int width, int real, const u8 *symbols, const u8 *raw, int64_t nbytes, const void *ref, u64 bias,
                   int64_t n, void *out) {
    if (width == 8) return undelta_8(real, symbols, raw, nbytes, ref, bias, n, out);
    if (width == 16) return undelta_16(real, symbols, raw, nbytes, ref, bias, n, out);
    if (width == 32) return undelta_32(real, symbols, raw, nbytes, ref, bias, n, out);
    return undelta_64(real, symbols, raw, nbytes, ref, bias, n, out);
}

/* ---- counts ------------------------------------------------------------------------------------------------------ */

/* counts [tables][256], cleared by the caller; contexts may be NULL: one table. */
API void rk_count(const u8 *symbols, const u8 *contexts, int64_t n, u32 *counts) {
    if (contexts) {
        for (int64_t i = 0; i < n; i++) counts[(size_t)contexts[i] * 256 + symbols[i]]++;
        return;
    }
    u32 apart[4][256] = {{0}}; /* neighbours are often alike: four tables keep their stores apart */
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++) apart[k][symbols[i + k]]++;
    for (; i < n; i++) apart[0][symbols[i]]++;
    for (int s = 0; s < 256; s++) counts[s] += apart[0][s] + apart[1][s] + apart[2][s] + apart[3][s];
}

/* ---- interleaved rANS: 32 states, 16-bit words, tables of 4096 ------------------------------------------------- */

#define LANES 32
#define TOTAL 4096
#define LOW (1u << 15)
#define HIGH (1u << 31)

/* x / freq as x * reciprocal >> (32 + shift), for x below 2^31; word: bias, freq and shift, of 13, 13 and 6 bits. */
typedef struct {
    u32 reciprocal, word;
} Encode;

static Encode encoder(u32 start, u32 freq) {
    if (freq < 2) return (Encode){~0u, (start + TOTAL - 1) | freq << 13};
    u32 shift = 0;
    while (freq > (1u << shift)) shift++;
    return (Encode){(u32)((((u64)1 << (shift + 31)) + freq - 1) / freq), start | freq << 13 | (shift - 1) << 26};
}

typedef struct {
    u32 x[LANES];
    u8 *out;
} Encoding;

/* Symbols from n - 1 down to `from`, a lane each in turn. */
static void encode_some(Encoding *e, const u8 *symbols, const u8 *contexts, int64_t n, int64_t from, const Encode *tables) {
    for (int64_t i = n - 1; i >= from; i--) {
        Encode t = tables[(contexts ? (size_t)contexts[i] * 256 : 0) + symbols[i]];
        u32 x = e->x[i % LANES], freq = t.word >> 13 & 8191;
        u16 word = (u16)x;
        memcpy(e->out - 2, &word, 2);
        int full = x >> 19 >= freq;
        e->out -= 2 * full;
        x >>= 16 * full;
        u32 q = (u32)((u64)x * t.reciprocal >> 32) >> (t.word >> 26);
        e->x[i % LANES] = x + (t.word & 8191) + q * (TOTAL - freq);
    }
}

typedef struct {
    u32 x[LANES];
    const u8 *in, *end;
} Decoding;

/* Symbols from `from` to n; -1 where the words run out. A slot is a symbol, a place in its range, and a frequency less 1. */
static int decode_some(Decoding *d, u8 *symbols, const u8 *contexts, int64_t from, int64_t n, const u32 *slots) {
    for (int64_t i = from; i < n; i++) {
        u32 x = d->x[i % LANES], slot = slots[(contexts ? (size_t)contexts[i] * TOTAL : 0) + (x & (TOTAL - 1))];
        symbols[i] = (u8)(slot >> 24);
        x = ((slot & 4095) + 1) * (x >> 12) + (slot >> 12 & 4095);
        if (x < LOW) {
            if (d->end - d->in < 2) return -1;
            u16 word;
            memcpy(&word, d->in, 2);
            x = x << 16 | word;
            d->in += 2;
        }
        d->x[i % LANES] = x;
    }
    return 0;
}

/* The same, eight lanes at once, where the machine has AVX2: whole rounds of 32 symbols, as many as there are words for. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(NARROW)
#include <immintrin.h>
#define WIDE __attribute__((target("avx2,popcnt")))
static int wide(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

WIDE static int64_t decode_wide(Decoding *d, u8 *symbols, const u8 *contexts, int64_t n, const u32 *slots) {
    u8 places[256][8]; /* of the lanes that take a word, which word each takes */
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 0, taken = 0; lane < 8; taken += mask >> lane++ & 1) places[mask][lane] = (u8)taken;
    __m256i x[4], top = _mm256_setr_epi8(3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i low = _mm256_set1_epi32(TOTAL - 1), least = _mm256_set1_epi32(LOW), one = _mm256_set1_epi32(1);
    for (int v = 0; v < 4; v++) x[v] = _mm256_loadu_si256((const __m256i *)(d->x + 8 * v));
    const u8 *in = d->in;
    int64_t i = 0;
    for (; i + LANES <= n && d->end - in >= 2 * LANES; i += LANES)
        for (int v = 0; v < 4; v++) {
            __m256i at = _mm256_and_si256(x[v], low);
            if (contexts) {
                __m256i table = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(contexts + i + 8 * v)));
                at = _mm256_add_epi32(at, _mm256_slli_epi32(table, 12));
            }
            __m256i slot = _mm256_i32gather_epi32((const int *)slots, at, 4);
            __m256i symbol = _mm256_shuffle_epi8(slot, top);
            __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(symbol), _mm256_extracti128_si256(symbol, 1));
            _mm_storel_epi64((__m128i *)(symbols + i + 8 * v), both);
            __m256i freq = _mm256_add_epi32(_mm256_and_si256(slot, low), one);
            __m256i next = _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(x[v], 12)),
                                            _mm256_and_si256(_mm256_srli_epi32(slot, 12), low));
            __m256i empty = _mm256_cmpgt_epi32(least, next);
            int mask = _mm256_movemask_ps(_mm256_castsi256_ps(empty));
            __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)in));
            words = _mm256_permutevar8x32_epi32(words, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)places[mask])));
            x[v] = _mm256_blendv_epi8(next, _mm256_or_si256(_mm256_slli_epi32(next, 16), words), empty);
            in += 2 * __builtin_popcount((unsigned)mask);
        }
    for (int v = 0; v < 4; v++) _mm256_storeu_si256((__m256i *)(d->x + 8 * v), x[v]);
    d->in = in;
    return i;
}

WIDE static void encode_wide(Encoding *e, const u8 *symbols, const u8 *contexts, int64_t n, const Encode *tables) {
    u8 places[256][16]; /* of the lanes that give a word, whose word comes where; the last at the end */
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 7, to = 7; to >= 0; to--) {
            while (lane >= 0 && !(mask >> lane & 1)) lane--;
            places[mask][2 * to] = lane < 0 ? 0 : (u8)(2 * lane), places[mask][2 * to + 1] = lane < 0 ? 0 : (u8)(2 * lane + 1);
            if (lane >= 0) lane--;
        }
    __m256i x[4], field = _mm256_set1_epi32(8191), total = _mm256_set1_epi32(TOTAL), half = _mm256_set1_epi32(65535);
    for (int v = 0; v < 4; v++) x[v] = _mm256_loadu_si256((const __m256i *)(e->x + 8 * v));
    for (int64_t i = n - LANES; i >= 0; i -= LANES)
        for (int v = 3; v >= 0; v--) {
            __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(symbols + i + 8 * v)));
            if (contexts) {
                __m256i table = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(contexts + i + 8 * v)));
                at = _mm256_add_epi32(at, _mm256_slli_epi32(table, 8));
            }
            __m256i reciprocal = _mm256_i32gather_epi32((const int *)tables, at, 8);
            __m256i word = _mm256_i32gather_epi32((const int *)tables + 1, at, 8);
            __m256i freq = _mm256_and_si256(_mm256_srli_epi32(word, 13), field);
            __m256i fits = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32(x[v], 19));
            int mask = ~_mm256_movemask_ps(_mm256_castsi256_ps(fits)) & 255;
            __m256i halves = _mm256_and_si256(x[v], half);
            __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
            words = _mm_shuffle_epi8(words, _mm_loadu_si128((const __m128i *)places[mask]));
            _mm_storeu_si128((__m128i *)(e->out - 16), words);
            e->out -= 2 * __builtin_popcount((unsigned)mask);
            __m256i left = _mm256_blendv_epi8(_mm256_srli_epi32(x[v], 16), x[v], fits);
            __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(left, reciprocal), 32);
            __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(left, 32), _mm256_srli_epi64(reciprocal, 32));
            __m256i q = _mm256_srlv_epi32(_mm256_blend_epi32(even, odd, 0xaa), _mm256_srli_epi32(word, 26));
            __m256i step = _mm256_mullo_epi32(q, _mm256_sub_epi32(total, freq));
            x[v] = _mm256_add_epi32(_mm256_add_epi32(left, _mm256_and_si256(word, field)), step);
        }
    for (int v = 0; v < 4; v++) _mm256_storeu_si256((__m256i *)(e->x + 8 * v), x[v]);
}
#else
static int wide(void) { return 0; }
static int64_t decode_wide(Decoding *d, u8 *symbols, const u8 *contexts, int64_t n, const u32 *slots) { return 0; }
static void encode_wide(Encoding *e, const u8 *symbols, const u8 *contexts, int64_t n, const Encode *tables) {}
#endif

/* Words of the coded symbols, written to end at `end`, before it 2 bytes for each and 128; freqs [tables][256] sum to 4096
 * each, and every symbol has one. -> bytes. */
API int64_t rk_rans_encode(const u8 *symbols, const u8 *contexts, int64_t n, const u16 *freqs, int tables, u8 *end) {
    Encode *encode = malloc((size_t)tables * 256 * sizeof(Encode));
    if (!encode) return -2;
    for (int t = 0; t < tables; t++)
        for (u32 s = 0, start = 0; s < 256; start += freqs[t * 256 + s++])
            encode[t * 256 + s] = encoder(start, freqs[t * 256 + s]);
    Encoding e = {.out = end};
    for (int lane = 0; lane < LANES; lane++) e.x[lane] = LOW;
    int64_t rounds = wide() ? n - n % LANES : 0;
    encode_some(&e, symbols, contexts, n, rounds, encode);
    if (rounds) encode_wide(&e, symbols, contexts, rounds, encode);
    e.out -= sizeof e.x;
    memcpy(e.out, e.x, sizeof e.x);
    free(encode);
    return end - e.out;
}

/* -> 0; -1 where the bytes are not those of n symbols. */
API int rk_rans_decode(const u8 *data, int64_t nbytes, const u8 *contexts, int64_t n, const u16 *freqs, int tables, u8 *symbols) {
    if (nbytes < (int64_t)(4 * LANES) || nbytes % 2) return -1;
    u32 *slots = malloc((size_t)tables * TOTAL * sizeof(u32));
    if (!slots) return -2;
    for (int t = 0; t < tables; t++)
        for (u32 s = 0, start = 0; s < 256; s++)
            for (u32 f = freqs[t * 256 + s], k = 0; k < f; k++, start++) slots[t * TOTAL + start] = s << 24 | k << 12 | (f - 1);
    Decoding d = {.in = data + 4 * LANES, .end = data + nbytes};
    memcpy(d.x, data, sizeof d.x);
    for (int lane = 0; lane < LANES; lane++)
        if (d.x[lane] - LOW >= HIGH - LOW) { free(slots); return -1; }
    int64_t done = wide() ? decode_wide(&d, symbols, contexts, n, slots) : 0;
    int wrong = decode_some(&d, symbols, contexts, done, n, slots) || d.in != d.end;
    for (int lane = 0; lane < LANES; lane++) wrong |= d.x[lane] != LOW;
    free(slots);
    return wrong ? -1 : 0;
}

/* ---- adaptive binary coder -----------------------------------------------------------------------------------------
 *
 * A symbol is `bits` decisions, the highest first, each under the probability that its node of its context's tree has
 * learnt. Contexts are given; with offsets, also 128 for where symbol + offset has lately been, less the offset: how
 * large a difference the neighbours let expect. With columns, those above tell as much as those to the left. All whole
 * numbers: every machine learns the same.
 */

#define BUCKETS 128
#define SURE 250

typedef struct {
    u16 p, seen; /* probability of a 1 in 65536ths, and how often the node was met */
} Node;

typedef struct {
    Node *nodes;
    const u16 *contexts, *offsets;
    int bits, mean, *above; /* of each column, 0: there are none */
    int64_t columns, column;
    u32 rate[SURE + 1];
} Model;

static int model_init(Model *m, const u16 *contexts, const u16 *offsets, int64_t columns, int64_t n, int tables, int bits) {
    size_t count = ((size_t)tables * (offsets ? BUCKETS : 1)) << bits;
    m->columns = offsets && columns < n ? columns : 0, m->column = 0;
    m->nodes = malloc(count * sizeof(Node) + (size_t)m->columns * sizeof(int));
    if (!m->nodes) return -2;
    m->above = m->columns ? (int *)(m->nodes + count) : 0;
    for (size_t i = 0; i < count; i++) m->nodes[i] = (Node){32768, 0};
    for (u32 i = 0; i <= SURE; i++) m->rate[i] = 131072 / (2 * i + 3);
    m->contexts = contexts, m->offsets = offsets, m->bits = bits;
    m->mean = offsets && n ? offsets[0] * 256 : 0;
    return 0;
}

static inline Node *tree(const Model *m, int64_t i) {
    size_t context = m->contexts ? m->contexts[i] : 0;
    if (m->offsets) {
        int mean = m->above && i >= m->columns ? (m->mean + m->above[m->column]) >> 1 : m->mean;
        int bucket = (mean >> 7) - 2 * m->offsets[i];
        context = context * BUCKETS + (size_t)(bucket < 0 ? 0 : bucket < BUCKETS ? bucket : BUCKETS - 1);
    }
    return m->nodes + (context << m->bits);
}

static inline u32 middle(u32 low, u32 high, const Node *node) {
    u32 p = node->p < 32 ? 32 : node->p > 65503 ? 65503 : node->p;
    return low + (u32)((u64)(high - low) * p >> 16);
}

static inline void learn(Model *m, Node *node, int bit) {
    int64_t wanted = bit ? 65535 : 0;
    node->p = (u16)(node->p + (((wanted - node->p) * (int64_t)m->rate[node->seen]) >> 16));
    node->seen += node->seen < SURE;
}

static inline void moved(Model *m, int64_t i, u8 symbol) {
    if (!m->offsets) return;
    int size = (symbol + m->offsets[i]) * 256;
    m->mean += (size - m->mean) >> 5;
    if (!m->above) return;
    int *above = m->above + m->column;
    *above = i < m->columns ? size : *above + ((size - *above) >> 4);
    if (++m->column == m->columns) m->column = 0;
}

/* -> bytes written, -1: they would be more than `room`. Symbols are below 2^bits, contexts below `tables`. */
API int64_t rk_adapt_encode(const u8 *symbols, const u16 *contexts, const u16 *offsets, int64_t columns, int64_t n,
                            int tables, int bits, u8 *out, int64_t room) {
    Model m;
    if (model_init(&m, contexts, offsets, columns, n, tables, bits)) return -2;
    u32 low = 0, high = ~0u;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        Node *nodes = tree(&m, i);
        if (room - at < 4 * bits + 4) { free(m.nodes); return -1; }
        for (u32 k = (u32)bits, node = 1; k-- > 0;) {
            int bit = symbols[i] >> k & 1;
            u32 mid = middle(low, high, nodes + node);
            if (bit) high = mid;
            else low = mid + 1;
            learn(&m, nodes + node, bit);
            node = 2 * node + (u32)bit;
            for (; !((low ^ high) >> 24); low <<= 8, high = high << 8 | 255) out[at++] = (u8)(high >> 24);
        }
        moved(&m, i, symbols[i]);
    }
    free(m.nodes);
    if (room - at < 4) return -1;
    for (int k = 24; k >= 0; k -= 8) out[at++] = (u8)(low >> k);
    return at;
}

/* -> 0; -1 where the bytes are not just as many as n symbols take. */
API int rk_adapt_decode(const u8 *data, int64_t nbytes, const u16 *contexts, const u16 *offsets, int64_t columns,
                        int64_t n, int tables, int bits, u8 *symbols) {
    Model m;
    if (nbytes < 4) return -1;
    if (model_init(&m, contexts, offsets, columns, n, tables, bits)) return -2;
    u32 low = 0, high = ~0u, code = 0;
    int64_t at = 0;
    while (at < 4) code = code << 8 | data[at++];
    for (int64_t i = 0; i < n; i++) {
        Node *nodes = tree(&m, i);
        u32 node = 1;
        for (int k = 0; k < bits; k++) {
            u32 mid = middle(low, high, nodes + node);
            int bit = code <= mid;
            if (bit) high = mid;
            else low = mid + 1;
            learn(&m, nodes + node, bit);
            node = 2 * node + (u32)bit;
            for (; !((low ^ high) >> 24); low <<= 8, high = high << 8 | 255) {
                if (at >= nbytes) { free(m.nodes); return -1; }
                code = code << 8 | data[at++];
            }
        }
        symbols[i] = (u8)(node - (1u << bits));
        moved(&m, i, symbols[i]);
    }
    free(m.nodes);
    return at == nbytes && code == low ? 0 : -1;
}
