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

API int rk_version(void) { return 1; }

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
            if (s > 2 * W - 1 || at + count > 8 * nbytes) return -1;                                                 \
            u64 bits = peek(raw, nbytes, at);                                                                        \
            if (count > 56) bits = (bits & 0xffffffff) | peek(raw, nbytes, at + 32) << 32;                           \
            bits &= ((u64)1 << count) - 1;                                                                           \
            at += count;                                                                                             \
            T m = (T)(s < 2 ? s : (u64)(2 + (s & 1)) << (k - 2) | bits >> 1);                                        \
            T d = (T)((bits & 1 ? (T)(0 - m) : m) + (T)bias);                                                        \
            out[i] = stored_##W((T)(d + (ref ? ordered_##W(ref[i], real) : 0)), real);                               \
        }                                                                                                            \
        return (at + 7) / 8 == nbytes ? 0 : -1;                                                                      \
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

/* ---- differences from what the neighbours' differences foretell ------------------------------------------------
 *
 * Second moments of neighbouring weights shrink or grow together. In each of 64 stretches of the values a running mean
 * of the differences, in 256ths, is subtracted from them, and moves a sixteenth of the way to each.
 */

#define STRETCHES 64

#define TRACK(T, S, W)                                                                                               \
    static void track_##W(int back, int real, const T *src, const T *ref, int64_t bias, int64_t n, T *out) {         \
        int64_t most = (int64_t)1 << (W - 8), length = (n + STRETCHES - 1) / STRETCHES;                              \
        for (int64_t start = 0; start < n; start += length) {                                                        \
            int64_t mean = bias * 256, end = start + length < n ? start + length : n;                                \
            for (int64_t i = start; i < end; i++) {                                                                  \
                T there = ordered_##W(ref[i], real), foretold = (T)(mean >> 8);                                      \
                T apart = back ? (T)(src[i] + foretold) : (T)(ordered_##W(src[i], real) - there);                    \
                out[i] = back ? stored_##W((T)(apart + there), real) : (T)(apart - foretold);                        \
                int64_t d = (S)apart;                                                                                \
                d = d > most ? most : d < -most ? -most : d;                                                         \
                mean += (d * 256 - mean) >> 4;                                                                       \
            }                                                                                                        \
        }                                                                                                            \
    }
TRACK(u16, int16_t, 16)
TRACK(u32, int32_t, 32)

/* Differences of values from a reference, less what is foretold; or with `back`, values from these. Of 16 or 32 bits. */
API void rk_track(int width, int back, int real, const void *src, const void *ref, int64_t bias, int64_t n, void *out) {
    if (width == 16) track_16(back, real, src, ref, bias, n, out);
    else track_32(back, real, src, ref, bias, n, out);
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

typedef struct {
    u32 reciprocal, bias;
    u16 freq, complement, shift, pad;
} Encode;

static Encode encoder(u32 start, u32 freq) {
    Encode e = {0};
    e.freq = (u16)freq;
    e.complement = (u16)(TOTAL - freq);
    if (freq < 2) {
        e.reciprocal = ~0u;
        e.bias = start + TOTAL - 1;
        return e;
    }
    int shift = 0;
    while (freq > (1u << shift)) shift++;
    e.reciprocal = (u32)((((u64)1 << (shift + 31)) + freq - 1) / freq);
    e.shift = (u16)(shift - 1);
    e.bias = start;
    return e;
}

/* Words of the coded symbols, written to end at `end`; freqs [tables][256] sum to 4096 each. -> bytes, -1: a symbol has none. */
API int64_t rk_rans_encode(const u8 *symbols, const u8 *contexts, int64_t n, const u16 *freqs, int tables, u8 *end) {
    Encode *encode = malloc((size_t)tables * 256 * sizeof(Encode));
    if (!encode) return -2;
    for (int t = 0; t < tables; t++)
        for (u32 s = 0, start = 0; s < 256; start += freqs[t * 256 + s++])
            encode[t * 256 + s] = encoder(start, freqs[t * 256 + s]);
    u32 states[LANES];
    for (int lane = 0; lane < LANES; lane++) states[lane] = LOW;
    u8 *out = end;
    for (int64_t i = n - 1; i >= 0; i--) {
        const Encode *e = encode + (contexts ? (size_t)contexts[i] * 256 : 0) + symbols[i];
        u32 x = states[i % LANES], freq = e->freq;
        if (!freq) { free(encode); return -1; }
        u16 word = (u16)x;
        memcpy(out - 2, &word, 2);
        int full = x >= freq << 19;
        out -= 2 * full;
        x >>= 16 * full;
        u32 q = (u32)((u64)x * e->reciprocal >> 32) >> e->shift;
        states[i % LANES] = x + e->bias + q * e->complement;
    }
    out -= sizeof states;
    memcpy(out, states, sizeof states);
    free(encode);
    return end - out;
}

/* -> 0; -1 where the bytes are not those of n symbols. */
API int rk_rans_decode(const u8 *data, int64_t nbytes, const u8 *contexts, int64_t n, const u16 *freqs, int tables, u8 *symbols) {
    if (nbytes < (int64_t)(4 * LANES) || nbytes % 2) return -1;
    u32 *slots = malloc((size_t)tables * TOTAL * sizeof(u32));
    if (!slots) return -2;
    for (int t = 0; t < tables; t++)
        for (u32 s = 0, start = 0; s < 256; s++)
            for (u32 f = freqs[t * 256 + s], k = 0; k < f; k++, start++) slots[t * TOTAL + start] = s << 24 | k << 12 | (f - 1);
    u32 states[LANES];
    memcpy(states, data, sizeof states);
    const u8 *in = data + sizeof states, *end = data + nbytes;
    int64_t i = 0;
#define STEP(lane)                                                                                                   \
    do {                                                                                                             \
        u32 x = states[lane], slot = slots[(contexts ? (size_t)contexts[i + lane] * TOTAL : 0) + (x & (TOTAL - 1))];  \
        symbols[i + lane] = (u8)(slot >> 24);                                                                        \
        x = ((slot & 4095) + 1) * (x >> 12) + (slot >> 12 & 4095);                                                   \
        u16 word;                                                                                                    \
        memcpy(&word, in, 2);                                                                                        \
        int empty = x < LOW;                                                                                         \
        states[lane] = empty ? x << 16 | word : x;                                                                   \
        in += 2 * empty;                                                                                             \
    } while (0)
    for (; i + LANES <= n && end - in >= 2 * LANES; i += LANES)
        for (int lane = 0; lane < LANES; lane++) STEP(lane);
    for (; i < n; i++) {
        int lane = (int)(i % LANES);
        u32 x = states[lane], slot = slots[(contexts ? (size_t)contexts[i] * TOTAL : 0) + (x & (TOTAL - 1))];
        symbols[i] = (u8)(slot >> 24);
        x = ((slot & 4095) + 1) * (x >> 12) + (slot >> 12 & 4095);
        if (x < LOW) {
            if (end - in < 2) { free(slots); return -1; }
            u16 word;
            memcpy(&word, in, 2);
            x = x << 16 | word;
            in += 2;
        }
        states[lane] = x;
    }
    free(slots);
    if (in != end) return -1;
    for (int lane = 0; lane < LANES; lane++)
        if (states[lane] != LOW) return -1;
    return 0;
}

/* ---- adaptive binary coder -----------------------------------------------------------------------------------------
 *
 * A symbol is `bits` decisions, the highest first, each under the probability that its node of its context's tree has
 * learnt. Contexts are given; with offsets, also 128 for where symbol + offset has lately been, less the offset: how
 * large a difference the neighbours let expect. All whole numbers: every machine learns the same.
 */

#define BUCKETS 128
#define SURE 250

typedef struct {
    u16 p, seen; /* probability of a 1 in 65536ths, and how often the node was met */
} Node;

typedef struct {
    Node *nodes;
    const u16 *contexts, *offsets;
    int bits, mean;
    u32 rate[SURE + 1];
} Model;

static int model_init(Model *m, const u16 *contexts, const u16 *offsets, int64_t n, int tables, int bits) {
    size_t count = ((size_t)tables * (offsets ? BUCKETS : 1)) << bits;
    m->nodes = malloc(count * sizeof(Node));
    if (!m->nodes) return -2;
    for (size_t i = 0; i < count; i++) m->nodes[i] = (Node){32768, 0};
    for (u32 i = 0; i <= SURE; i++) m->rate[i] = 131072 / (2 * i + 3);
    m->contexts = contexts, m->offsets = offsets, m->bits = bits;
    m->mean = offsets && n ? offsets[0] * 256 : 0;
    return 0;
}

static inline Node *tree(const Model *m, int64_t i) {
    size_t context = m->contexts ? m->contexts[i] : 0;
    if (m->offsets) {
        int bucket = (m->mean >> 7) - 2 * m->offsets[i];
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
    if (m->offsets) m->mean += ((symbol + m->offsets[i]) * 256 - m->mean) >> 5;
}

/* -> bytes written, -1: they would be more than `room`. Symbols are below 2^bits, contexts below `tables`. */
API int64_t rk_adapt_encode(const u8 *symbols, const u16 *contexts, const u16 *offsets, int64_t n, int tables, int bits,
                            u8 *out, int64_t room) {
    Model m;
    if (model_init(&m, contexts, offsets, n, tables, bits)) return -2;
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
API int rk_adapt_decode(const u8 *data, int64_t nbytes, const u16 *contexts, const u16 *offsets, int64_t n, int tables,
                        int bits, u8 *symbols) {
    Model m;
    if (nbytes < 4) return -1;
    if (model_init(&m, contexts, offsets, n, tables, bits)) return -2;
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
