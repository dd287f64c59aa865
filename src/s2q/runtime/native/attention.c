/* Int8 attention, fused: no score leaves the first-level cache. The definition is s2q/runtime/attention_reference.py.
 *
 * Queries stand in the lanes of vectors, 32 of them at a time; a quad of four codes of a key is broadcast to all of
 * them. So maxima and sums run down registers and never across, and the exact products are all one instruction where
 * the CPU has VNNI: unsigned times signed bytes, four at a time. Queries are made unsigned by adding 128, which is taken back
 * through the sum of each key's codes. Every float operation is rounded by itself (compile with -ffp-contract=off), so
 * that all instruction sets give the same bits. The build compiles this file once for each, with SET naming it.
 */
#include "attention_codes.h"

/* VECTOR bytes are a register; TILE keys, or channels, are summed at a time, as many as there are registers for. */
#if defined(__AVX512BW__)
#include <immintrin.h>
enum { VECTOR = 64, TILE = 8 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { VECTOR = 32, TILE = 2 };
#else
enum { VECTOR = 16, TILE = 1 };
#endif

#define INLINE static inline __attribute__((always_inline))

enum { LANES = VECTOR / 4, WIDE = QUERIES / LANES };

typedef float floats __attribute__((vector_size(VECTOR)));
typedef int32_t ints __attribute__((vector_size(VECTOR)));
typedef uint32_t words __attribute__((vector_size(VECTOR)));

static const float POWERS[5] = {1.0f, 0.6930635690344632f, 0.2394567375505338f, 0.05322356574378527f, 0.006831887736586854f};
static const float SMALLEST_POWER = -126.0f, LOWEST_BIAS = -3e38f, LOG2_E = 1.4426950408889634f, SHARES = 255.0f;

INLINE floats larger(floats a, floats b) {
#if defined(__AVX512BW__)
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const ints first = a > b;
    return (floats)((first & (ints)a) | (~first & (ints)b));
#endif
}

/* sum + the four unsigned bytes of each lane of `a`, times the four signed bytes of `b`. */
INLINE ints dot(ints sum, ints a, int32_t b) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, _mm512_set1_epi32(b));
#else
    /* Bytes 0 and 2, then 1 and 3, as pairs of 16 bits: exact, where 8 bits at a time would saturate. */
    const int32_t even = (int32_t)(((uint32_t)(int32_t)(int8_t)b & 0xffffu) | ((uint32_t)(int8_t)(b >> 16) << 16));
    const int32_t odd = (int32_t)(((uint32_t)(int32_t)(int8_t)(b >> 8) & 0xffffu) | ((uint32_t)(int8_t)(b >> 24) << 16));
    const ints low = a & 0x00ff00ff, high = (a >> 8) & 0x00ff00ff;
#if defined(__AVX512BW__)
    sum += (ints)_mm512_madd_epi16((__m512i)low, _mm512_set1_epi32(even));
    return sum + (ints)_mm512_madd_epi16((__m512i)high, _mm512_set1_epi32(odd));
#elif defined(__AVX2__)
    sum += (ints)_mm256_madd_epi16((__m256i)low, _mm256_set1_epi32(even));
    return sum + (ints)_mm256_madd_epi16((__m256i)high, _mm256_set1_epi32(odd));
#else
    sum += (low & 0xffff) * (int32_t)(int16_t)even + (low >> 16) * (even >> 16);
    return sum + (high & 0xffff) * (int32_t)(int16_t)odd + (high >> 16) * (odd >> 16);
#endif
#endif
}

/* factor · 2^x for x <= 0. */
INLINE floats power_of_two(floats x, float factor) {
    x = larger(x, (floats){0} + SMALLEST_POWER);
    const ints whole = __builtin_convertvector(x, ints);
    const floats part = x - __builtin_convertvector(whole, floats);
    floats value = part * (factor * POWERS[4]) + factor * POWERS[3];
    value = value * part + factor * POWERS[2];
    value = value * part + factor * POWERS[1];
    value = value * part + factor * POWERS[0];
    return (floats)((words)value + ((words)whole << 23));
}

INLINE int32_t quad_at(const int8_t *codes) {
    int32_t quad;
    memcpy(&quad, codes, 4);
    return quad;
}

/* What is on hand for one tile of queries: lanes of vectors, [..][WIDE]. */
struct tile {
    floats scores[KEYS][WIDE], bias[KEYS][WIDE], factor[WIDE], most[WIDE], total[WIDE], poison[WIDE];
    ints shares[KEYS / 4][WIDE];
};

static float bias_at(const struct attention *a, int64_t at) {
    float value;
    if (a->mask_kind == BOOLEAN) return ((const uint8_t *)a->mask)[at] ? 0.0f : -INFINITY;
    load(&value, a->mask, at, 1, a->mask_kind == MASK_FLOAT32 ? FLOAT32 : BFLOAT16);
    if (value == -INFINITY) return value;
    value *= LOG2_E;
    return value < LOWEST_BIAS ? LOWEST_BIAS : value;
}

enum { PLAIN, BIASED, UNSEEN };

/* Fill the bias of a block of keys: whether there is any, and whether anything is seen. */
static int fill_bias(const struct attention *a, struct tile *t, int64_t head, int64_t first, int64_t start, int64_t rows) {
    const int64_t *stride = a->mask_stride;
    const int64_t at = head / a->heads * stride[0] + head % a->heads * stride[1] + first * stride[2];
    int plain = 1, unseen = 1;
    if (a->mask_kind == NO_MASK && start + KEYS <= a->keys) return PLAIN;
    for (int64_t j = 0; j < KEYS; j++) {
        float *lanes = (float *)t->bias[j];
        const int real = start + j < a->keys;
        float value = real ? 0.0f : -INFINITY;
        for (int64_t i = 0; i < QUERIES; i++) {
            if (real && a->mask_kind != NO_MASK && i < rows && (i == 0 || stride[2]))
                value = bias_at(a, at + i * stride[2] + (start + j) * stride[3]);
            lanes[i] = value;
            plain &= value == 0.0f;
            unseen &= value == -INFINITY;
            if (!(value <= 3.402823466e38f)) ((float *)t->poison)[i] = NAN;
        }
    }
    return plain ? PLAIN : unseen ? UNSEEN : BIASED;
}

/* Scores of a block of keys, in powers of two where they are biased, and each query's largest. */
INLINE void score(const struct attention *a, struct tile *t, const ints (*queries)[WIDE], const int8_t *keys,
                  const int32_t *key_start, const float *step, int biased, floats top[WIDE]) {
    for (int w = 0; w < WIDE; w++) top[w] = (floats){0} - INFINITY;
    for (int64_t j0 = 0; j0 < KEYS; j0 += TILE) {
        const int8_t *row = keys + j0 * a->quads * 4;
        ints sum[TILE][WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < TILE; j++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) sum[j][w] = (ints){0} + key_start[j0 + j];
        for (int64_t d = 0; d < a->quads; d++) {
#pragma GCC unroll 8
            for (int j = 0; j < TILE; j++) {
                const int32_t quad = quad_at(row + (j * a->quads + d) * 4);
#pragma GCC unroll 8
                for (int w = 0; w < WIDE; w++) sum[j][w] = dot(sum[j][w], queries[d][w], quad);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < TILE; j++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) {
                floats value = __builtin_convertvector(sum[j][w], floats) * step[j0 + j];
                if (biased) value = value * t->factor[w] + t->bias[j0 + j][w];
                t->scores[j0 + j][w] = value;
                top[w] = larger(value, top[w]);
            }
    }
    if (!biased)
        for (int w = 0; w < WIDE; w++) top[w] *= t->factor[w];
}

/* Shares of a block as unsigned bytes, four keys a quad. */
INLINE void share(struct tile *t, int biased, const floats top[WIDE], ints total[WIDE]) {
    const float whole = 12582912.0f;  /* 1.5 · 2^23: what is added to it is rounded to an integer, halves to even */
    const uint32_t bits = 0x4b400000u;
    const uint32_t excess = bits + (bits << 8);
    for (int w = 0; w < WIDE; w++) total[w] = (ints){0};
    for (int64_t j = 0; j < KEYS; j += 4)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; w++) {
            words quad = (words){0} - excess;
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                floats x = t->scores[j + i][w];
                x = (biased ? x : x * t->factor[w]) - top[w];
                quad += (words)(power_of_two(x, SHARES) + whole) << (8 * i);
            }
            t->shares[j / 4][w] = (ints)quad;
            total[w] = dot(total[w], (ints)quad, 0x01010101);
        }
}

/* attended · before + (shares · values) · now */
INLINE void attend(const struct attention *a, const struct tile *t, const int8_t *values, const floats before[WIDE],
                   const floats now[WIDE], floats (*attended)[WIDE]) {
    for (int64_t d0 = 0; d0 < a->channels; d0 += TILE) {
        ints sum[TILE][WIDE];
#pragma GCC unroll 8
        for (int d = 0; d < TILE; d++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) sum[d][w] = (ints){0};
        for (int64_t j = 0; j < KEYS / 4; j++) {
#pragma GCC unroll 8
            for (int d = 0; d < TILE; d++) {
                const int32_t quad = quad_at(values + (j * a->channels + d0 + d) * 4);
#pragma GCC unroll 8
                for (int w = 0; w < WIDE; w++) sum[d][w] = dot(sum[d][w], t->shares[j][w], quad);
            }
        }
#pragma GCC unroll 8
        for (int d = 0; d < TILE; d++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++)
                attended[d0 + d][w] = attended[d0 + d][w] * before[w] + __builtin_convertvector(sum[d][w], floats) * now[w];
    }
}

/* Codes of queries into lanes, 128 added; a query's factor is its step times the scale. */
static void load_queries(const struct attention *a, struct tile *t, int64_t head, int64_t first, int64_t rows, float *row,
                         int8_t *codes, uint32_t *queries) {
    memset(queries, 128, a->quads * 4 * QUERIES);
    memset(codes, 0, a->quads * 4);
    memset(t->factor, 0, sizeof t->factor);
    const int64_t at = head / a->heads * a->query_stride[0] + head % a->heads * a->query_stride[1] + first * a->query_stride[2];
    for (int64_t i = 0; i < rows; i++) expect(a->query, at + i * a->query_stride[2], a->width, a->dtype);
    for (int64_t i = 0; i < rows; i++) {
        load(row, a->query, at + i * a->query_stride[2], a->width, a->dtype);
        const float step = step_of(magnitude(row, a->width)), factor = step * a->scale;
        ((float *)t->factor)[i] = factor;
        ((float *)t->poison)[i] = factor * 0.0f + a->key_poison[head];
        round_row(row, a->width, step, codes);
        for (int64_t d = 0; d < a->quads; d++) queries[d * QUERIES + i] = (uint32_t)quad_at(codes + 4 * d) ^ 0x80808080u;
    }
}

static void store(const struct attention *a, const struct tile *t, int64_t head, int64_t first, int64_t rows,
                  const floats (*attended)[WIDE]) {
    const float *step = a->value_step + head * a->value_width, *mean = a->value_mean + head * a->value_width;
    const int64_t at = head / a->heads * a->out_stride[0] + head % a->heads * a->out_stride[1];
    const float *total = (const float *)t->total, *poison = (const float *)t->poison;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < a->value_width; d++) {
            const int64_t place = at + (first + i) * a->out_stride[2] + d;
            const float sum = ((const float *)attended[d])[i];
            const float value = (total[i] > 0.0f ? sum / total[i] * step[d] + mean[d] : 0.0f) + poison[i];
            if (a->dtype == FLOAT32)
                ((float *)a->out)[place] = value;
            else
                ((uint16_t *)a->out)[place] = narrowed(value);
        }
}

/* Tiles of queries `start` to `stop`, counted through all heads. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_attention_run, SET)(const struct attention *a, int64_t start, int64_t stop) {
    const int64_t tiles = (a->queries + QUERIES - 1) / QUERIES, padded = a->blocks * KEYS, width = a->quads * 4;
    struct tile *t = aligned_alloc(64, sizeof *t);
    ints(*queries)[WIDE] = aligned_alloc(64, a->quads * sizeof *queries);
    floats(*attended)[WIDE] = aligned_alloc(64, a->channels * sizeof *attended);
    float *row = malloc(a->width * sizeof(float));
    int8_t *codes = malloc(a->quads * 4);
    const int missing = !t || !queries || !attended || !row || !codes;
    for (int64_t item = start; item < stop && !missing; item++) {
        const int64_t head = item / tiles, first = item % tiles * QUERIES;
        const int64_t rows = a->queries - first < QUERIES ? a->queries - first : QUERIES;
        memset(attended, 0, a->channels * sizeof *attended);
        memset(t->poison, 0, sizeof t->poison);
        for (int w = 0; w < WIDE; w++) {
            t->most[w] = (floats){0} - INFINITY;
            t->total[w] = (floats){0};
        }
        load_queries(a, t, head, first, rows, row, codes, (uint32_t *)queries);
        for (int64_t block = 0; block < a->blocks; block++) {
            const int64_t at = head * padded + block * KEYS;
            const int seen = fill_bias(a, t, head, first, block * KEYS, rows);
            floats top[WIDE], before[WIDE], now[WIDE];
            ints total[WIDE];
            if (seen == UNSEEN) continue;
            if (seen == PLAIN) {
                score(a, t, (const ints(*)[WIDE])queries, a->key_codes + at * width, a->key_start + at, a->key_step + at, 0, top);
                share(t, 0, top, total);
            } else {
                score(a, t, (const ints(*)[WIDE])queries, a->key_codes + at * width, a->key_start + at, a->key_step + at, 1, top);
                share(t, 1, top, total);
            }
            for (int w = 0; w < WIDE; w++) {
                const floats most = larger(t->most[w], top[w]);
                before[w] = power_of_two(t->most[w] - most, 1.0f);
                now[w] = power_of_two(top[w] - most, 1.0f);
                t->total[w] = t->total[w] * before[w] + __builtin_convertvector(total[w], floats) * now[w];
                t->most[w] = most;
            }
            attend(a, t, a->value_codes + at * a->channels, before, now, attended);
        }
        store(a, t, head, first, rows, (const floats(*)[WIDE])attended);
    }
    free(codes);
    free(row);
    free(attended);
    free(queries);
    free(t);
    return missing;
}
