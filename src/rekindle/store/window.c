/* The loops over a window of values that window.py names; there they are in numpy too, and give the same bits.
 *
 * Every sum is taken in the order in which numpy takes it, a product and a sum are rounded each by itself
 * (-ffp-contract=off), and nothing here is Python's: other threads run meanwhile.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

/* Once for every x86-64 processor and once for those with AVX2, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(NARROW)
#define LOOP API __attribute__((target_clones("avx2", "default")))
#else
#define LOOP API
#endif

typedef uint16_t u16;
typedef uint32_t u32;
typedef int64_t i64;

enum { F32, BF16, F16 }; /* window.py has the same numbers */

API int rk_window_version(void) { return 3; }

static inline u32 bits(float f) {
    u32 b;
    memcpy(&b, &f, 4);
    return b;
}

static inline float real(u32 b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}

/* ---- stored values <-> float32 ------------------------------------------------------------------------------- */

static inline float from_f32(float f) { return f; }

static inline float from_bf16(u16 h) { return real((u32)h << 16); }

static inline float from_f16(u16 h) {
    u32 size = (u32)(h & 0x7FFF) << 13; /* a float32 2^112 times too small, exactly */
    u32 finite = bits(real(size) * 0x1p112f), other = size | 0x7F800000;
    return real((size < 0x0F800000 ? finite : other) | (u32)(h & 0x8000) << 16);
}

static inline float to_f32(float f) { return f; }

static inline u16 to_bf16(float f) {
    u32 b = bits(f), rounded = (b + 0x7FFF + (b >> 16 & 1)) >> 16;
    return (u16)((b & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

static inline u16 to_f16(float f) {
    u32 b = bits(f), sign = b >> 16 & 0x8000, size = b & 0x7FFFFFFF;
    u32 normal = (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
    u32 small = bits(real(size) + 0.5f) - 0x3F000000; /* in units of 2^-24, which is what a float32 near 0.5 has */
    u32 r = size < 0x38800000 ? small : normal;
    r = r > 0x7C00 ? 0x7C00 : r;
    return (u16)(sign | (size > 0x7F800000 ? 0x7E00 | (size >> 13 & 0x3FF) : r));
}

LOOP void rk_widen(int dtype, const void *x, i64 n, float *restrict out) {
    const u16 *h = x;
    if (dtype == BF16) for (i64 i = 0; i < n; i++) out[i] = from_bf16(h[i]);
    else if (dtype == F16) for (i64 i = 0; i < n; i++) out[i] = from_f16(h[i]);
    else memcpy(out, x, 4 * (size_t)n);
}

LOOP void rk_round(int dtype, const float *x, i64 n, void *restrict out) {
    u16 *h = out;
    if (dtype == BF16) for (i64 i = 0; i < n; i++) h[i] = to_bf16(x[i]);
    else if (dtype == F16) for (i64 i = 0; i < n; i++) h[i] = to_f16(x[i]);
    else memcpy(out, x, 4 * (size_t)n);
}

/* How many are NaN or infinite. */
LOOP i64 rk_not_finite(int dtype, const void *x, i64 n) {
    const u16 *h = x;
    const u32 *w = x;
    i64 found = 0;
    for (i64 lo = 0; lo < n; lo += 1 << 15) { /* counted in 16 bits, as many at once as there are values */
        i64 hi = n - lo < 1 << 15 ? n : lo + (1 << 15);
        u16 part = 0;
        u32 wide = 0;
        if (dtype == BF16) for (i64 i = lo; i < hi; i++) part += (u16)((h[i] & 0x7F80) == 0x7F80);
        else if (dtype == F16) for (i64 i = lo; i < hi; i++) part += (u16)((h[i] & 0x7C00) == 0x7C00);
        else for (i64 i = lo; i < hi; i++) wide += (w[i] & 0x7F800000) == 0x7F800000;
        found += part + wide;
    }
    return found;
}

/* ---- sums ---------------------------------------------------------------------------------------------------- */

#define ADD(T, FROM)                                                                                                 \
    if (by >= 0) for (i64 i = 0; i < n; i++) total[i] -= (first[i] - FROM(((const T *)x)[i])) * by;                    \
    else for (i64 i = 0; i < n; i++) total[i] -= (FROM(((const T *)x)[i]) - first[i]) * -by;
#define ADD_PLAIN(T, FROM)                                                                                           \
    for (i64 i = 0; i < n; i++) total[i] += FROM(((const T *)x)[i]) * by;

/* total -= (first - x) * by, or total += x * by where there is no first. */
LOOP void rk_add(int dtype, const void *x, const float *first, float by, i64 n, float *restrict total) {
    if (first) {
        if (dtype == BF16) { ADD(u16, from_bf16) }
        else if (dtype == F16) { ADD(u16, from_f16) }
        else { ADD(float, from_f32) }
    } else {
        if (dtype == BF16) ADD_PLAIN(u16, from_bf16)
        else if (dtype == F16) ADD_PLAIN(u16, from_f16)
        else ADD_PLAIN(float, from_f32)
    }
}

#define BLOCK 16384 /* values that stay near the processor while all rows are taken to them */
#define SUMS 64     /* that an inner product of a row is taken in */

/* Four rows at once: each is a stream, and the sums are read and written once. */
#define ROWS(NAME, T, FROM)                                                                                          \
    static inline void mix4_##NAME(const T *restrict a, const T *restrict b, const T *restrict c,                    \
                                   const T *restrict d, const float *by, i64 n, float *restrict t) {                 \
        float p = by[0], q = by[1], r = by[2], s = by[3];                                                            \
        for (i64 i = 0; i < n; i++) {                                                                                \
            float x = t[i];                                                                                          \
            x += FROM(a[i]) * p;                                                                                     \
            x += FROM(b[i]) * q;                                                                                     \
            x += FROM(c[i]) * r;                                                                                     \
            x += FROM(d[i]) * s;                                                                                     \
            t[i] = x;                                                                                                \
        }                                                                                                            \
    }                                                                                                                \
    static inline void mix1_##NAME(const T *restrict a, float p, i64 n, float *restrict t) {                         \
        for (i64 i = 0; i < n; i++) {                                                                                \
            float x = t[i];                                                                                          \
            x += FROM(a[i]) * p;                                                                                     \
            t[i] = x;                                                                                                \
        }                                                                                                            \
    }                                                                                                                \
    static inline void dots4_##NAME(const T *restrict a, const T *restrict b, const T *restrict c,                   \
                                    const T *restrict d, const float *restrict y, i64 n, float *restrict sums) {     \
        for (i64 i = 0; i < n; i += SUMS) {                                                                          \
            i64 m = n - i < SUMS ? n - i : SUMS;                                                                     \
            for (i64 j = 0; j < m; j++) {                                                                            \
                float v = y[i + j];                                                                                  \
                sums[j] += FROM(a[i + j]) * v;                                                                       \
                sums[SUMS + j] += FROM(b[i + j]) * v;                                                                \
                sums[2 * SUMS + j] += FROM(c[i + j]) * v;                                                            \
                sums[3 * SUMS + j] += FROM(d[i + j]) * v;                                                            \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    static inline void dots1_##NAME(const T *restrict a, const float *restrict y, i64 n, float *restrict sums) {     \
        for (i64 i = 0; i < n; i += SUMS) {                                                                          \
            i64 m = n - i < SUMS ? n - i : SUMS;                                                                     \
            for (i64 j = 0; j < m; j++) sums[j] += FROM(a[i + j]) * y[i + j];                                        \
        }                                                                                                            \
    }
ROWS(f32, float, from_f32)
ROWS(bf16, u16, from_bf16)
ROWS(f16, u16, from_f16)

#define MIX(NAME, T)                                                                                                 \
    for (i64 lo = 0; lo < n; lo += BLOCK) {                                                                          \
        const T *const *r = (const T *const *)rows;                                                                  \
        i64 m = n - lo < BLOCK ? n - lo : BLOCK, k = 0;                                                              \
        for (; k + 4 <= count; k += 4)                                                                               \
            mix4_##NAME(r[k] + lo, r[k + 1] + lo, r[k + 2] + lo, r[k + 3] + lo, by + k, m, total + lo);              \
        for (; k < count; k++) mix1_##NAME(r[k] + lo, by[k], m, total + lo);                                         \
    }

/* total += sum_k rows[k] * by[k], one row after the other. */
LOOP void rk_mix(int dtype, const void *const *rows, const float *by, i64 count, i64 n, float *total) {
    if (dtype == BF16) { MIX(bf16, u16) }
    else if (dtype == F16) { MIX(f16, u16) }
    else { MIX(f32, float) }
}

#define DOTS(NAME, T)                                                                                                \
    for (i64 lo = 0; lo < n; lo += BLOCK) {                                                                          \
        const T *const *r = (const T *const *)rows;                                                                  \
        i64 m = n - lo < BLOCK ? n - lo : BLOCK, k = 0;                                                              \
        for (; k < count; k += wide) {                                                                               \
            float sums[4 * SUMS] = {0};                                                                              \
            wide = k + 4 <= count ? 4 : 1;                                                                           \
            if (wide == 4) dots4_##NAME(r[k] + lo, r[k + 1] + lo, r[k + 2] + lo, r[k + 3] + lo, g + lo, m, sums);    \
            else dots1_##NAME(r[k] + lo, g + lo, m, sums);                                                           \
            for (i64 i = 0; i < wide; i++) {                                                                         \
                double part = 0;                                                                                     \
                for (int j = 0; j < SUMS; j++) part += (double)sums[i * SUMS + j];                                   \
                out[k + i] += part;                                                                                  \
            }                                                                                                        \
        }                                                                                                            \
    }

/* out[k] += the inner product of row k and g: of each BLOCK of values in 64 sums of float32, all else in double. */
LOOP void rk_dots(int dtype, const void *const *rows, i64 count, const float *g, i64 n, double *out) {
    i64 wide;
    if (dtype == BF16) { DOTS(bf16, u16) }
    else if (dtype == F16) { DOTS(f16, u16) }
    else { DOTS(f32, float) }
}

#define LANES 16

/* Inner products of K vectors, less `base` where there is one, with one another: out [K, K]. The products i, i + 16,
 * i + 32 and so on are added one after the other, and then those 16 sums. */
LOOP void rk_products(const float *const *xs, i64 k, const float *base, i64 n, double *out) {
    for (i64 p = 0; p < k; p++)
        for (i64 q = 0; q <= p; q++) {
            const float *x = xs[p], *y = xs[q];
            double sums[LANES] = {0}, total = 0;
            i64 i = 0;
            if (base) {
                for (; i + LANES <= n; i += LANES)
                    for (int j = 0; j < LANES; j++)
                        sums[j] += ((double)x[i + j] - (double)base[i + j]) * ((double)y[i + j] - (double)base[i + j]);
                for (int j = 0; i + j < n; j++)
                    sums[j] += ((double)x[i + j] - (double)base[i + j]) * ((double)y[i + j] - (double)base[i + j]);
            } else {
                for (; i + LANES <= n; i += LANES)
                    for (int j = 0; j < LANES; j++) sums[j] += (double)x[i + j] * (double)y[i + j];
                for (int j = 0; i + j < n; j++) sums[j] += (double)x[i + j] * (double)y[i + j];
            }
            for (int j = 0; j < LANES; j++) total += sums[j];
            out[p * k + q] = out[q * k + p] = total;
        }
}

/* ---- task vectors: x - base ---------------------------------------------------------------------------------- */

/* How often the bits of |x - base| have each 16 of them, from bit `shift` up: of all, or of those with such `above`. */
API void rk_sizes(const float *x, const float *base, i64 n, int shift, int above, i64 *counts) {
    for (i64 i = 0; i < n; i++) {
        u32 digits = (bits(x[i] - base[i]) & 0x7FFFFFFF) >> shift;
        if (above < 0) counts[digits & 0xFFFF]++;
        else if (digits >> 16 == (u32)above) counts[digits & 0xFFFF]++;
    }
}

LOOP void rk_kept(const float *x, const float *base, float lo, float hi, i64 n, float *restrict out) {
    for (i64 i = 0; i < n; i++) {
        float size = fabsf(x[i] - base[i]);
        out[i] = (size >= lo) & (size <= hi) ? x[i] : base[i];
    }
}

LOOP void rk_dropped(const float *draws, const float *x, const float *base, float density, i64 n, float *restrict out) {
    for (i64 i = 0; i < n; i++) {
        float moved = base[i] + (x[i] - base[i]) / density;
        out[i] = (draws[i] < density) | (x[i] - x[i] != 0) ? moved : base[i];
    }
}

#define CHUNK 1024

LOOP void rk_elected(const float *const *xs, const float *by, i64 k, const float *base, i64 n, float *restrict out) {
    float mass[CHUNK], weight[CHUNK];
    for (i64 lo = 0; lo < n; lo += CHUNK) {
        const float *b = base + lo;
        float *mean = out + lo;
        int m = (int)(n - lo < CHUNK ? n - lo : CHUNK);
        for (int i = 0; i < m; i++) mass[i] = weight[i] = 0;
        for (i64 s = 0; s < k; s++)
            for (int i = 0; i < m; i++) mass[i] += (xs[s][lo + i] - b[i]) * by[s];
        for (int i = 0; i < m; i++) {
            float own = xs[0][lo + i] == b[i] ? xs[0][lo + i] : b[i];
            mean[i] = mass[i] == mass[i] ? own : NAN;
        }
        for (i64 s = 0; s < k; s++) {
            const float *x = xs[s] + lo;
            float a = by[s];
            for (int i = 0; i < m; i++) {
                float mine = x[i] - b[i], most = weight[i] + a, share = a / most;
                float moved = mean[i] - (mean[i] - x[i]) * share;
                int chosen = ((mine > 0) & (mass[i] > 0)) | ((mine < 0) & (mass[i] < 0));
                moved = share == 1 ? x[i] : moved;
                weight[i] = chosen ? most : weight[i];
                mean[i] = chosen ? moved : mean[i];
            }
        }
    }
}
