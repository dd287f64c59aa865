/* Int8 attention, fused: no score leaves the first-level cache. The definition is s2q/runtime/attention_reference.py.
 *
 * Queries stand in the lanes of vectors, 32 of them at a time; a quad of four codes of a key is broadcast to all of
 * them. So maxima and sums run down registers and never across, and the exact products are all one instruction where
 * the CPU has VNNI: unsigned times signed bytes, four at a time; AMX takes the same codes as tiles. Queries are made
 * unsigned by adding 128, which is taken back through the sum of each key's codes. Every float operation is rounded by
 * itself (compile with -ffp-contract=off), so that all instruction sets give the same bits. The build compiles this file
 * once for each, with SET naming it.
 */
#include "attention_codes.h"
#include "attention_lanes.h"
#include "attention_tiles.h"

static const float LOWEST_BIAS = -3e38f, LOG2_E = 1.4426950408889634f, SHARES = 255.0f;

/* What is on hand for one tile of queries: lanes of vectors, [..][WIDE]. */
struct tile {
    floats scores[KEYS][WIDE], bias[KEYS][WIDE], factor[WIDE], most[WIDE], total[WIDE], poison[WIDE];
    ints shares[KEYS / 4][WIDE];
#if defined(__AMX_INT8__)
    ints sums[KEYS][WIDE];
#endif
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

INLINE void keep_score(struct tile *t, int64_t j, int w, ints sum, float step, int biased, floats top[WIDE]) {
    floats value = __builtin_convertvector(sum, floats) * step;
    if (biased) value = value * t->factor[w] + t->bias[j][w];
    t->scores[j][w] = value;
    top[w] = larger(value, top[w]);
}

/* Scores of a block of keys, in powers of two where they are biased, and each query's largest. */
INLINE void score(const struct attention *a, struct tile *t, const ints (*queries)[WIDE], const int8_t *keys,
                  const int32_t *key_start, const float *step, int biased, floats top[WIDE]) {
    for (int w = 0; w < WIDE; w++) top[w] = (floats){0} - INFINITY;
#if defined(__AMX_INT8__)
    multiply_keys(a, keys, queries, t->sums);
    for (int64_t j = 0; j < KEYS; j++)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; w++) keep_score(t, j, w, t->sums[j][w] + key_start[j], step[j], biased, top);
#else
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
            for (int w = 0; w < WIDE; w++) keep_score(t, j0 + j, w, sum[j][w], step[j0 + j], biased, top);
    }
#endif
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

INLINE void keep_channel(floats attended[WIDE], int w, ints sum, const floats before[WIDE], const floats now[WIDE]) {
    attended[w] = attended[w] * before[w] + __builtin_convertvector(sum, floats) * now[w];
}

/* attended · before + (shares · values) · now */
INLINE void attend(const struct attention *a, const struct tile *t, const int8_t *values, const floats before[WIDE],
                   const floats now[WIDE], floats (*attended)[WIDE]) {
#if defined(__AMX_INT8__)
    take_shares(t->shares);
    for (int64_t d0 = 0; d0 < a->channels; d0 += SIDE) {
        ints sum[SIDE][WIDE];
        multiply_values(values + d0 * KEYS, sum);
#pragma GCC unroll 16
        for (int d = 0; d < SIDE; d++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) keep_channel(attended[d0 + d], w, sum[d][w], before, now);
    }
#else
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
            for (int w = 0; w < WIDE; w++) keep_channel(attended[d0 + d], w, sum[d][w], before, now);
    }
#endif
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
#if defined(__AMX_INT8__)
    start_tiles(a->quads);
#endif
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
#if defined(__AMX_INT8__)
    _tile_release();
#endif
    free(codes);
    free(row);
    free(attended);
    free(queries);
    free(t);
    return missing;
}
