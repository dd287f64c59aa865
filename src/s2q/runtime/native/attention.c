/* Int8 attention, fused: no score leaves the first-level cache. The definition is s2q/runtime/attention_reference.py.
 *
 * Queries stand in the lanes of vectors, 32 of them at a time; a quad of four codes of a key is broadcast to all of
 * them. So maxima and sums run down registers and never across, and the exact products are all one instruction where
 * the CPU has VNNI: unsigned times signed bytes, four at a time. For that queries are made unsigned by adding 128, which is
 * taken back through the sum of each key's codes; AMX takes signed codes as tiles. Every float operation is rounded by
 * itself (compile with -ffp-contract=off), so that all instruction sets give the same bits. The build compiles this file
 * once for each, with SET naming it.
 */
#include "attention_codes.h"
#include "attention_lanes.h"
#include "attention_tiles.h"

static const float LOWEST_BIAS = -3e38f, LOG2_E = 1.4426950408889634f;

/* What is on hand for one tile of queries: lanes of vectors, [..][WIDE]. */
struct tile {
    ints sums[KEYS][WIDE], shares[KEYS / 4][WIDE];
    floats bias[KEYS][WIDE], factor[WIDE], most[WIDE], total[WIDE], poison[WIDE];
};

#if defined(__AMX_INT8__)
static const uint32_t UNSIGNED = 0;
#else
static const uint32_t UNSIGNED = 0x80808080u;  /* adds 128 to each of four codes */
#endif

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
        const int real = start + j < a->keys, masked = real && a->mask_kind != NO_MASK;
        const int64_t place = at + (start + j) * stride[3];
        float value = !real ? -INFINITY : masked ? bias_at(a, place) : 0.0f;
        /* Mostly all queries see a key alike. */
        const int64_t own = masked && stride[2] ? rows : 1;
        for (int64_t i = 0; i < own; i++) {
            if (i) value = bias_at(a, place + i * stride[2]);
            lanes[i] = value;
            plain &= value == 0.0f;
            unseen &= value == -INFINITY;
            if (!(value <= 3.402823466e38f)) ((float *)t->poison)[i] = NAN;
        }
        for (int64_t i = own; i < QUERIES; i++) lanes[i] = value;
        if (own == 1 && !(value <= 3.402823466e38f))
            for (int w = 0; w < WIDE; w++) t->poison[w] = (floats){0} + NAN;
    }
    return plain ? PLAIN : unseen ? UNSEEN : BIASED;
}

/* Sums of a block of keys, and each query's largest. */
INLINE void multiply(const struct attention *a, struct tile *t, const ints (*queries)[WIDE], const int8_t *keys,
                     const int32_t *key_start, ints highest[WIDE]) {
#if defined(__AMX_INT8__)
    multiply_keys(a, keys, queries, t->sums);
    for (int w = 0; w < WIDE; w++) highest[w] = t->sums[0][w];
    for (int64_t j = 1; j < KEYS; j++)
        UNROLL
        for (int w = 0; w < WIDE; w++) highest[w] = larger_int(highest[w], t->sums[j][w]);
#else
    for (int w = 0; w < WIDE; w++) highest[w] = (ints){0} + INT32_MIN;
    for (int64_t j0 = 0; j0 < KEYS; j0 += TILE) {
        const int8_t *row = keys + j0 * a->quads * 4;
        ints sum[TILE][WIDE];
        UNROLL
        for (int j = 0; j < TILE; j++)
            UNROLL
            for (int w = 0; w < WIDE; w++) sum[j][w] = (ints){0} + key_start[j0 + j];
        for (int64_t d = 0; d < a->quads; d++) {
            UNROLL
            for (int j = 0; j < TILE; j++) {
                const int32_t quad = quad_at(row + (j * a->quads + d) * 4);
                UNROLL
                for (int w = 0; w < WIDE; w++) sum[j][w] = dot(sum[j][w], queries[d][w], quad);
            }
        }
        UNROLL
        for (int j = 0; j < TILE; j++)
            UNROLL
            for (int w = 0; w < WIDE; w++) {
                t->sums[j0 + j][w] = sum[j][w];
                highest[w] = larger_int(highest[w], sum[j][w]);
            }
    }
#endif
}

/* Sums of a block in powers of two, with their bias, in its place; and each query's largest. */
INLINE void add_bias(struct tile *t, const floats step[WIDE], floats top[WIDE]) {
    for (int w = 0; w < WIDE; w++) top[w] = (floats){0} - INFINITY;
    for (int64_t j = 0; j < KEYS; j++)
        UNROLL
        for (int w = 0; w < WIDE; w++) {
            t->bias[j][w] = __builtin_convertvector(t->sums[j][w], floats) * step[w] + t->bias[j][w];
            top[w] = larger(t->bias[j][w], top[w]);
        }
}

/* Shares of a block as unsigned bytes, four keys a quad, from each score's distance from the largest. */
INLINE void share(struct tile *t, int biased, const ints highest[WIDE], const floats step[WIDE], const floats top[WIDE],
                  ints total[WIDE]) {
    floats parts[WIDE];
    for (int w = 0; w < WIDE; w++) {
        parts[w] = step[w] * OCTAVE;
        total[w] = (ints){0};
    }
    for (int64_t j = 0; j < KEYS; j += 4)
        UNROLL
        for (int w = 0; w < WIDE; w++) {
            ints distance[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const floats gap = biased ? (top[w] - t->bias[j + i][w]) * OCTAVE
                                          : __builtin_convertvector(highest[w] - t->sums[j + i][w], floats) * parts[w];
                distance[i] = nearest(smaller(gap, (floats){0} + FURTHEST));
            }
            t->shares[j / 4][w] = quads_of(distance);
            total[w] = dot(total[w], t->shares[j / 4][w], 0x01010101);
        }
}

INLINE void keep_channel(floats *attended, ints sum, floats before, floats now, int moved) {
    *attended = (moved ? *attended * before : *attended) + __builtin_convertvector(sum, floats) * now;
}

/* Whether no query has met a larger score, which late blocks seldom have. */
INLINE int all_one(const floats before[WIDE]) {
    ints other = {0};
    for (int w = 0; w < WIDE; w++) other |= before[w] != 1.0f;
    int32_t any = 0;
    for (int i = 0; i < LANES; i++) any |= other[i];
    return !any;
}

/* attended · before + (shares · values) · now; where nothing moved, before is 1. */
INLINE void attend(const struct attention *a, const struct tile *t, const int8_t *values, const floats before[WIDE],
                   const floats now[WIDE], int moved, floats (*attended)[WIDE]) {
#if defined(__AMX_INT8__)
    settle();
    UNROLL
    for (int w = 0; w < WIDE; w++)
        for (int64_t d0 = 0; d0 < a->channels; d0 += AT_ONCE) {
            const int64_t channels = a->channels - d0 < AT_ONCE ? a->channels - d0 : AT_ONCE;
            ints sums[AT_ONCE];
            multiply_values(values + d0 * KEYS, channels, (const ints(*)[WIDE])&t->shares[0][w], sums);
            for (int64_t d = 0; d < channels; d++) keep_channel(&attended[d0 + d][w], sums[d], before[w], now[w], moved);
        }
#else
    for (int64_t d0 = 0; d0 < a->channels; d0 += TILE) {
        ints sum[TILE][WIDE];
        UNROLL
        for (int d = 0; d < TILE; d++)
            UNROLL
            for (int w = 0; w < WIDE; w++) sum[d][w] = (ints){0};
        for (int64_t j = 0; j < KEYS / 4; j++) {
            UNROLL
            for (int d = 0; d < TILE; d++) {
                const int32_t quad = quad_at(values + (j * a->channels + d0 + d) * 4);
                UNROLL
                for (int w = 0; w < WIDE; w++) sum[d][w] = dot(sum[d][w], t->shares[j][w], quad);
            }
        }
        UNROLL
        for (int d = 0; d < TILE; d++)
            UNROLL
            for (int w = 0; w < WIDE; w++) keep_channel(&attended[d0 + d][w], sum[d][w], before[w], now[w], moved);
    }
#endif
}

/* Codes of queries into lanes; a query's factor is its step times the scale. */
static void load_queries(const struct attention *a, struct tile *t, int64_t head, int64_t first, int64_t rows, float *row,
                         int8_t *codes, uint32_t *queries) {
    memset(queries, UNSIGNED & 255, a->quads * 4 * QUERIES);
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
        for (int64_t d = 0; d < a->quads; d++) queries[d * QUERIES + i] = (uint32_t)quad_at(codes + 4 * d) ^ UNSIGNED;
    }
}

/* Outputs in the lanes of their queries, in the place of what was attended to. */
static void finish(const struct attention *a, const struct tile *t, int64_t head, floats (*attended)[WIDE]) {
    const float *step = a->value_step + head * a->value_width, *mean = a->value_mean + head * a->value_width;
    for (int64_t d = 0; d < a->value_width; d++)
        for (int w = 0; w < WIDE; w++) {
            const ints seen = t->total[w] > 0.0f;
            const floats value = attended[d][w] / t->total[w] * step[d] + mean[d];
            attended[d][w] = (floats)(seen & (ints)value) + t->poison[w];
        }
}

static void store(const struct attention *a, int64_t head, int64_t first, int64_t rows, const floats (*attended)[WIDE],
                  float *restrict row) {
    const int64_t at = head / a->heads * a->out_stride[0] + head % a->heads * a->out_stride[1], width = a->value_width;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t place = at + (first + i) * a->out_stride[2];
        for (int64_t d = 0; d < width; d++) row[d] = ((const float *)attended[d])[i];
        if (a->dtype == FLOAT32) {
            memcpy((float *)a->out + place, row, width * sizeof(float));
        } else {
            uint16_t *restrict out = (uint16_t *)a->out + place;
            for (int64_t d = 0; d < width; d++) out[d] = narrowed(row[d]);
        }
    }
}

/* Tiles of queries `start` to `stop`, counted through all heads. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_attention_run, SET)(const struct attention *a, int64_t start, int64_t stop) {
    const int64_t tiles = (a->queries + QUERIES - 1) / QUERIES, padded = a->blocks * KEYS, width = a->quads * 4;
    struct tile *t = aligned_alloc(64, sizeof *t);
    ints(*queries)[WIDE] = aligned_alloc(64, a->quads * sizeof *queries);
    floats(*attended)[WIDE] = aligned_alloc(64, a->channels * sizeof *attended);
    float *row = malloc((a->width > a->value_width ? a->width : a->value_width) * sizeof(float));
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
            floats step[WIDE], top[WIDE], before[WIDE], now[WIDE];
            ints highest[WIDE], total[WIDE];
            if (seen == UNSEEN) continue;
            multiply(a, t, (const ints(*)[WIDE])queries, a->key_codes + at * width, a->key_start + at, highest);
            for (int w = 0; w < WIDE; w++) {
                step[w] = t->factor[w] * a->key_step[head * a->blocks + block];
                top[w] = __builtin_convertvector(highest[w], floats) * step[w];
            }
            if (seen == PLAIN) {
                share(t, 0, highest, step, top, total);
            } else {
                add_bias(t, step, top);
                share(t, 1, highest, step, top, total);
            }
            for (int w = 0; w < WIDE; w++) {
                const floats most = larger(t->most[w], top[w]);
                before[w] = power_of_two(t->most[w] - most);
                now[w] = power_of_two(top[w] - most);
                t->total[w] = t->total[w] * before[w] + __builtin_convertvector(total[w], floats) * now[w];
                t->most[w] = most;
            }
            if (all_one(before))
                attend(a, t, a->value_codes + at * a->channels, before, now, 0, attended);
            else
                attend(a, t, a->value_codes + at * a->channels, before, now, 1, attended);
        }
        finish(a, t, head, attended);
        store(a, head, first, rows, (const floats(*)[WIDE])attended, row);
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
