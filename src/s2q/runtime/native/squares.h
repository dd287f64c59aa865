/* The integer product in AMX tiles: squares of 16 outputs and of 16 tokens, 64 columns each, give 16 × 16 sums of 32 bits.
 *
 * Tokens come as SQUARES, without their zero points; nibbles of the weights are brought into squares panel by panel, theirs taken
 * off as well, so that Σ (a − z_a)(w − z_w) needs nothing afterwards. A row of sums is one output of 16 tokens, whose steps are
 * one vector. The floats are those of product.c, in the same order.
 */
#ifndef S2Q_SQUARES_H
#define S2Q_SQUARES_H

#include "finish.h"
#include "tiles.h"

#if defined(__AMX_INT8__)

/* Bytes of tokens that panels pass over before the next ones are taken, and the fewest tiles of such a block. */
enum { SQUARES_BLOCK = 1 << 20, SQUARES_LEAST = 8 };
/* Tiles of tokens, an even number, that meet as many squares of each half of the panel as the first-level cache holds. */
enum { MEET = 8, CHUNK = 16 };

typedef struct {
    const multiply_task *task;
    panel side;            /* scales, offsets and bias */
    int8_t *weights;       /* [parts · steps][VECTORS][16 outputs][64] */
    float *delta;          /* steps of the tokens of a block: [tiles][G][16] */
    int64_t steps;         /* squares of a part */
} squares;

/* 64 columns of one output, in eights of columns as (0, 2, 4, 6), (1, 3, 5, 7), from eight words of nibbles, one in each half lane. */
INLINE __m512i bytes_of(__m256i words, __m512i off) {
    const __m512i low = _mm512_set1_epi64(0x0f0f0f0f), high = _mm512_set1_epi64(0x0f0f0f0f00000000);
    const __m512i wide = _mm512_cvtepu32_epi64(words);
    const __m512i odd = _mm512_and_si512(_mm512_slli_epi64(wide, 28), high);
    return _mm512_sub_epi8(_mm512_or_si512(_mm512_and_si512(wide, low), odd), off);
}

/* The nibbles of outputs [first, first + outputs) as squares; what is beyond outputs and columns is zeros. */
static void take_squares(squares *own, int64_t first, int64_t outputs) {
    const multiply_task *task = own->task;
    const int64_t length = task->columns / task->parts, whole = length / STEP, jump = VECTORS * SQUARE;
    for (int64_t i = 0; i < PANEL; i++) {
        const uint8_t *from = task->packed + (first + i) * task->words * 4;
        int8_t *to = own->weights + i / SIDE * SQUARE + i % SIDE * STEP;
        if (i >= outputs) {
            for (int64_t s = 0; s < task->parts * own->steps; s++, to += jump) memset(to, 0, STEP);
            continue;
        }
        for (int64_t p = 0; p < task->parts; p++) {
            const int32_t offset = own->side.offset[(own->side.offsets_in_groups ? p * PANEL : 0) + i];
            const __m512i off = _mm512_set1_epi32(offset);
            for (int64_t s = 0; s < whole; s++, to += jump, from += STEP / 2)
                _mm512_storeu_si512(to, bytes_of(_mm256_loadu_si256((const __m256i *)from), off));
            if (whole == own->steps) continue;
            const __mmask8 there = (__mmask8)((1u << (length - whole * STEP) / 8) - 1);
            const __m512i last = bytes_of(_mm256_maskz_loadu_epi32(there, from), off);
            _mm512_storeu_si512(to, _mm512_maskz_mov_epi64(there, last));
            to += jump;
            from += (length - whole * STEP) / 2;
        }
    }
}

/* Steps of the tokens of tiles [from, to), tokens side by side; those beyond the last row are zeros. */
static void take_steps(squares *own, int64_t from, int64_t to) {
    const int64_t groups = own->task->groups, rows = own->task->rows;
    for (int64_t m = from * SIDE; m < to * SIDE; m++)
        for (int64_t g = 0; g < groups; g++)
            own->delta[((m / SIDE - from) * groups + g) * SIDE + m % SIDE] = m < rows ? own->task->scale[m * groups + g] : 0.0f;
}

/* `steps` squares of the panel's two halves times those of two tiles of tokens (one if !both), `row` bytes apart; added to what is
 * in sums [tile][half] unless it is the beginning. */
INLINE void add_squares(const int8_t *weights, const int8_t *codes, int64_t row, int64_t steps, const int both,
                        const int begin, int32_t (*sums)[SIDE * LANES]) {
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums[0], STEP);
        _tile_loadd(1, sums[1], STEP);
        if (both) {
            _tile_loadd(2, sums[2], STEP);
            _tile_loadd(3, sums[3], STEP);
        }
    }
    for (int64_t s = 0; s < steps; s++, codes += SQUARE, weights += VECTORS * SQUARE) {
        _tile_loadd(4, weights, STEP);
        _tile_loadd(6, codes, STEP);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, weights + SQUARE, STEP);
        _tile_dpbssd(1, 5, 6);
        if (both) {
            _tile_loadd(7, codes + row, STEP);
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0], STEP);
    _tile_stored(1, sums[1], STEP);
    if (both) {
        _tile_stored(2, sums[2], STEP);
        _tile_stored(3, sums[3], STEP);
    }
}

/* Sums of a tile of tokens, [VECTORS][16 outputs][16 tokens], to the output; `scaled` as in finish.h. */
INLINE void finish_tile(const int scaled, const squares *own, const float (*sums)[SIDE * LANES], int64_t tile,
                        int64_t output, int64_t outputs) {
    float y[SIDE * PANEL] __attribute__((aligned(64)));
    for (int v = 0; v < VECTORS; v++)
        turn_words((const uint8_t *)sums[v], STEP, (uint8_t *)(y + v * LANES), PANEL * sizeof *y);
    const int64_t first = tile * SIDE, left = own->task->rows - first;
    for (int64_t r = 0; r < SIDE && r < left; r++)
        finish_rows(1, scaled, own->task, &own->side, y + r * PANEL, first + r, output, outputs);
}

/* One part: tiles [tile, tile + tiles) of tokens, at most MEET, times the panel, some squares at a time. */
static void multiply_whole(const squares *own, const float *delta, int64_t tile, int64_t tiles, int64_t output,
                           int64_t outputs) {
    const int64_t row = own->steps * SQUARE;
    int32_t sums[MEET * VECTORS][SIDE * LANES] __attribute__((aligned(64)));
    float y[VECTORS][SIDE * LANES] __attribute__((aligned(64)));
    for (int64_t s = 0; s < own->steps; s += CHUNK) {
        const int64_t count = own->steps - s < CHUNK ? own->steps - s : CHUNK;
        for (int64_t t = 0; t < tiles; t += 2) {
            const int8_t *codes = own->task->codes + (tile + t) * row + s * SQUARE;
            const int8_t *weights = own->weights + s * VECTORS * SQUARE;
            int32_t(*to)[SIDE * LANES] = sums + t * VECTORS;
            if (t + 1 < tiles && s)
                add_squares(weights, codes, row, count, 1, 0, to);
            else if (t + 1 < tiles)
                add_squares(weights, codes, row, count, 1, 1, to);
            else if (s)
                add_squares(weights, codes, row, count, 0, 0, to);
            else
                add_squares(weights, codes, row, count, 0, 1, to);
        }
    }
    for (int64_t t = 0; t < tiles; t++, delta += SIDE) {
        const floats step = floats_at(delta);
        for (int v = 0; v < VECTORS; v++)
            UNROLL
            for (int i = 0; i < SIDE * LANES; i += LANES)
                put_floats(y[v] + i, __builtin_convertvector(ints_at(sums[t * VECTORS + v] + i), floats) * step);
        finish_tile(0, own, (const float(*)[SIDE * LANES])y, tile + t, output, outputs);
    }
}

/* `count` parts from part `from` on of one tile of tokens and half v of the panel: their sums, scaled, are added to y. */
INLINE void add_parts(const int scaled, const squares *own, const float *delta, const int8_t *codes, int64_t from,
                      int64_t count, int v, float *y) {
    const int64_t steps = own->steps, jump = own->task->groups > 1 ? SIDE : 0;
    const int8_t *weights = own->weights + (from * steps * VECTORS + v) * SQUARE;
    int32_t sums[4][SIDE * LANES] __attribute__((aligned(64)));
    floats total[SIDE];
    delta += from * jump;
    codes += from * steps * SQUARE;
    UNROLL
    for (int i = 0; i < SIDE; i++) total[i] = floats_at(y + i * LANES);
    /* Sums are made two parts ahead of their use, for AMX takes its time. */
#define SUM(tile, outputs, tokens, p)                                       \
    if ((p) < count) {                                                      \
        _tile_zero(tile);                                                   \
        for (int64_t s = (p) * steps; s < ((p) + 1) * steps; s++) {         \
            _tile_loadd(outputs, weights + s * VECTORS * SQUARE, STEP);     \
            _tile_loadd(tokens, codes + s * SQUARE, STEP);                  \
            _tile_dpbssd(tile, outputs, tokens);                            \
        }                                                                   \
        _tile_stored(tile, sums[tile], STEP);                               \
    }
#define ADD(tile, p)                                                                          \
    if ((p) < count) {                                                                        \
        const floats step = floats_at(delta + (p) * jump);                                    \
        const float *scale = own->side.scale + (from + (p)) * PANEL + v * LANES;              \
        UNROLL                                                                                \
        for (int i = 0; i < SIDE; i++) {                                                      \
            floats part = __builtin_convertvector(ints_at(sums[tile] + i * LANES), floats);   \
            part *= step;                                                                     \
            if (scaled) part *= all_floats(scale[i]);                                         \
            total[i] += part;                                                                 \
        }                                                                                     \
    }
    SUM(0, 4, 6, 0)
    SUM(1, 5, 7, 1)
    for (int64_t p = 0; p < count; p += 4) {
        SUM(2, 4, 6, p + 2)
        ADD(0, p)
        SUM(3, 5, 7, p + 3)
        ADD(1, p + 1)
        SUM(0, 4, 6, p + 4)
        ADD(2, p + 2)
        SUM(1, 5, 7, p + 5)
        ADD(3, p + 3)
    }
#undef SUM
#undef ADD
    UNROLL
    for (int i = 0; i < SIDE; i++) put_floats(y + i * LANES, total[i]);
}

/* Several parts: the same, some parts at a time. */
INLINE void multiply_parts(const int scaled, const squares *own, const float *delta, int64_t tile, int64_t tiles,
                           int64_t output, int64_t outputs) {
    const int64_t parts = own->task->parts, row = parts * own->steps * SQUARE;
    const int64_t chunk = own->steps < CHUNK / 2 ? CHUNK / 2 / own->steps : 1;
    float y[MEET * VECTORS][SIDE * LANES] __attribute__((aligned(64)));
    for (int64_t t = 0; t < tiles * VECTORS; t++)
        for (int i = 0; i < SIDE * LANES; i += LANES) put_floats(y[t] + i, all_floats(-0.0f));
    for (int64_t p = 0; p < parts; p += chunk)
        for (int64_t t = 0; t < tiles; t++)
            for (int v = 0; v < VECTORS; v++)
                add_parts(scaled, own, delta + t * own->task->groups * SIDE, own->task->codes + (tile + t) * row, p,
                          parts - p < chunk ? parts - p : chunk, v, y[t * VECTORS + v]);
    for (int64_t t = 0; t < tiles; t++)
        finish_tile(scaled, own, (const float(*)[SIDE * LANES])y + t * VECTORS, tile + t, output, outputs);
}

/* `s2q_multiply` of tokens in SQUARES. */
static int multiply_squares(const multiply_task *task, int64_t panel_first, int64_t panel_last, int64_t tile_first,
                            int64_t tile_last) {
    const int64_t parts = task->parts, scales = task->weight_groups;
    squares own = {.task = task, .steps = (task->columns / parts + STEP - 1) / STEP};
    const int64_t row = parts * own.steps * SQUARE, most = SQUARES_BLOCK / row;
    const int64_t block = most < SQUARES_LEAST ? SQUARES_LEAST : most / MEET * MEET;
    void *whole;
    own.weights = aligned_memory(VECTORS * row + 4 * (block * task->groups * SIDE + PANEL * (2 * scales + 1)), &whole);
    if (!own.weights) return 1;
    own.delta = (float *)(own.weights + VECTORS * row);
    own.side = (panel){.shifted = 1, .scales_in_groups = scales > 1, .scale = own.delta + block * task->groups * SIDE};
    own.side.offsets_in_groups = task->weight_zero && own.side.scales_in_groups;
    own.side.offset = (int32_t *)(own.side.scale + scales * PANEL);
    own.side.bias = (float *)(own.side.offset + scales * PANEL);
    configure((uint8_t[8]){16, 16, 16, 16, 16, 16, 16, 16}, (uint16_t[8]){64, 64, 64, 64, 64, 64, 64, 64});
    for (int64_t from = tile_first; from < tile_last; from += block) {
        const int64_t to = tile_last - from < block ? tile_last : from + block;
        take_steps(&own, from, to);
        for (int64_t p = panel_first; p < panel_last; p++) {
            const int64_t output = p * PANEL, outputs = task->outputs - output < PANEL ? task->outputs - output : PANEL;
            take_sides(task, output, outputs, &own.side);
            take_squares(&own, output, outputs);
            settle();
            for (int64_t t = from; t < to; t += MEET) {
                const int64_t tiles = to - t < MEET ? to - t : MEET;
                const float *delta = own.delta + (t - from) * task->groups * SIDE;
                if (parts == 1)
                    multiply_whole(&own, delta, t, tiles, output, outputs);
                else if (own.side.scales_in_groups)
                    multiply_parts(1, &own, delta, t, tiles, output, outputs);
                else
                    multiply_parts(0, &own, delta, t, tiles, output, outputs);
            }
        }
    }
    _tile_release();
    free(whole);
    return 0;
}

#endif
#endif
