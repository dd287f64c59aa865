/* The integer product in AMX tiles: squares of 16 tokens and of 16 outputs, 64 columns each, give 16 × 16 sums of 32 bits.
 *
 * Tokens come as SQUARES, without their zero points; nibbles of the weights are brought into squares panel by panel, theirs taken
 * off as well, so that Σ (a − z_a)(w − z_w) needs nothing afterwards. A row of sums is one token of 16 outputs, as in the output.
 * The floats are those of product.c, in the same order.
 */
#ifndef S2Q_SQUARES_H
#define S2Q_SQUARES_H

#include "finish.h"
#include "tiles.h"
#include "weight_squares.h"

#if defined(__AMX_INT8__)

/* Two tiles of tokens meet squares of a panel's two halves, CHUNK of each at a time, so that those of the tokens stay in the
 * first-level cache while they meet all panels of a block, whose squares fill the second-level cache as far as BLOCK_BYTES. */
enum { PAIR = 2, CHUNK = 16, BLOCK_BYTES = 1 << 20 };

typedef struct {
    const multiply_task *task;
    panel side;            /* of a panel of the block: scales, offsets and bias */
    int8_t *weights;       /* [panels of a block][parts · steps][VECTORS][16 fours of columns][16 outputs][4] */
    float *sums;           /* [panels of a block][PAIR][16 tokens][PANEL], int32 as long as they are no floats */
    float *delta;          /* steps of the tokens: [PAIR][G][16], where there are several parts */
    int64_t steps, jump;   /* squares of a part; floats from a panel's sides to the next one's */
} squares;

/* Rows [row, rows) of the sums of one panel, to be brought to the output while AMX is at work on the next one's. */
typedef struct {
    const multiply_task *task;
    panel side;
    const float *sums;
    int64_t row, rows, first, output, outputs;
} waiting;

INLINE panel side_of(const squares *own, int64_t index) {
    panel side = own->side;
    side.scale += index * own->jump;
    side.offset += index * own->jump;
    side.bias += index * own->jump;
    return side;
}

INLINE float *sums_of(const squares *own, int64_t index) { return own->sums + index * PAIR * SIDE * PANEL; }

/* How many of `most` things there are from `first` on, of `all`. */
INLINE int64_t left_of(int64_t all, int64_t first, int64_t most) { return all - first < most ? all - first : most; }

/* All rows of panel `index` of a block that begins with panel `first`, for `tiles` tiles of tokens. Field by field: a copy of
 * the whole would have to wait until each is written. */
INLINE void wait_for(waiting *left, const squares *own, int64_t tile, int64_t tiles, int64_t first, int64_t index) {
    const multiply_task *task = own->task;
    const int64_t start = tile * SIDE, output = (first + index) * PANEL, jump = index * own->jump;
    left->task = task;
    left->side.scale = own->side.scale + jump;
    left->side.offset = own->side.offset + jump;
    left->side.bias = own->side.bias + jump;
    left->sums = sums_of(own, index);
    left->row = 0;
    left->rows = left_of(task->rows, start, tiles * SIDE);
    left->first = start;
    left->output = output;
    left->outputs = left_of(task->outputs, output, PANEL);
}

/* Steps of the tokens of tiles [tile, tile + PAIR), tokens side by side; those beyond the last row are zeros. */
static void take_steps(const squares *own, int64_t tile) {
    const int64_t groups = own->task->groups, rows = own->task->rows;
    for (int64_t i = 0; i < PAIR * SIDE; i++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t m = tile * SIDE + i;
            own->delta[(i / SIDE * groups + g) * SIDE + i % SIDE] = m < rows ? own->task->scale[m * groups + g] : 0.0f;
        }
}

/* Some more rows of what is waiting, at most `count`. */
INLINE void finish_some(const int integers, const int scaled, waiting *left, int64_t count) {
    for (; count > 0 && left->row < left->rows; count--, left->row++) {
        const float *sums = left->sums + left->row * PANEL;
        float y[PANEL];
        if (integers) {
            const floats step = all_floats(left->task->scale[left->first + left->row]);
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                put_floats(y + v * LANES, __builtin_convertvector(ints_at(sums + v * LANES), floats) * step);
            sums = y;
        }
        finish_rows(1, scaled, left->task, &left->side, sums, left->first + left->row, left->output, left->outputs);
    }
}

/* `steps` squares of two tiles of tokens (one if !both), `row` bytes apart, times those of a panel's two halves; added to what
 * is in sums [tile][16 tokens][PANEL] unless it is the beginning. Meanwhile `share` rows of what is waiting at each step. */
INLINE void add_squares(const int8_t *codes, const int8_t *weights, int64_t row, int64_t steps, const int both,
                        const int begin, int32_t *sums, waiting *left, int64_t share) {
    enum { LINE = PANEL * sizeof *sums };
    int32_t *others = sums + SIDE * PANEL;
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, LINE);
        _tile_loadd(1, sums + LANES, LINE);
        if (both) {
            _tile_loadd(2, others, LINE);
            _tile_loadd(3, others + LANES, LINE);
        }
    }
    for (int64_t s = 0; s < steps; s++, codes += SQUARE, weights += VECTORS * SQUARE) {
        _tile_loadd(4, codes, STEP);
        _tile_loadd(6, weights, STEP);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, weights + SQUARE, STEP);
        _tile_dpbssd(1, 4, 7);
        if (both) {
            _tile_loadd(5, codes + row, STEP);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        finish_some(1, 0, left, share);
    }
    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + LANES, LINE);
    if (both) {
        _tile_stored(2, others, LINE);
        _tile_stored(3, others + LANES, LINE);
    }
}

/* One part: tiles [tile, tile + tiles) of tokens, at most PAIR, times the panels [first, first + panels) of a block. */
static void multiply_whole(const squares *own, int64_t tile, int64_t tiles, int64_t first, int64_t panels) {
    const multiply_task *task = own->task;
    const int64_t row = own->steps * SQUARE;
    waiting left = {.rows = 0};
    for (int64_t s = 0; s < own->steps; s += CHUNK) {
        const int64_t count = left_of(own->steps, s, CHUNK);
        const int last = s + count == own->steps;
        const int64_t share = last ? (PAIR * SIDE + count - 1) / count : 0;
        const int8_t *codes = task->codes + tile * row + s * SQUARE;
        for (int64_t p = 0; p < panels; p++) {
            const int8_t *weights = own->weights + p * VECTORS * row + s * VECTORS * SQUARE;
            int32_t *sums = (int32_t *)sums_of(own, p);
            if (tiles == PAIR && s)
                add_squares(codes, weights, row, count, 1, 0, sums, &left, share);
            else if (tiles == PAIR)
                add_squares(codes, weights, row, count, 1, 1, sums, &left, share);
            else if (s)
                add_squares(codes, weights, row, count, 0, 0, sums, &left, share);
            else
                add_squares(codes, weights, row, count, 0, 1, sums, &left, share);
            if (!last) continue;
            finish_some(1, 0, &left, left.rows);
            wait_for(&left, own, tile, tiles, first, p);
        }
    }
    finish_some(1, 0, &left, left.rows);
}

/* `count` parts from part `from` on of one tile of tokens and half v of the panel: their sums, scaled, are added to y. */
INLINE void add_parts(const int scaled, const squares *own, const panel *side, const float *delta, const int8_t *codes,
                      const int8_t *weights, int64_t from, int64_t count, int v, float *y) {
    const int64_t steps = own->steps, jump = own->task->groups > 1 ? SIDE : 0;
    int32_t sums[4][SIDE * LANES] __attribute__((aligned(64)));
    floats total[SIDE];
    delta += from * jump;
    codes += from * steps * SQUARE;
    weights += (from * steps * VECTORS + v) * SQUARE;
    UNROLL
    for (int i = 0; i < SIDE; i++) total[i] = floats_at(y + i * PANEL);
    /* Sums are made two parts ahead of their use, for AMX takes its time. */
#define SUM(tile, tokens, outputs, p)                                       \
    if ((p) < count) {                                                      \
        _tile_zero(tile);                                                   \
        for (int64_t s = (p) * steps; s < ((p) + 1) * steps; s++) {         \
            _tile_loadd(outputs, weights + s * VECTORS * SQUARE, STEP);     \
            _tile_loadd(tokens, codes + s * SQUARE, STEP);                  \
            _tile_dpbssd(tile, tokens, outputs);                            \
        }                                                                   \
        _tile_stored(tile, sums[tile], STEP);                               \
    }
#define ADD(tile, p)                                                                                 \
    if ((p) < count) {                                                                               \
        const float *step = delta + (p) * jump;                                                      \
        const floats scale = floats_at(side->scale + (scaled ? from + (p) : 0) * PANEL + v * LANES); \
        UNROLL                                                                                       \
        for (int i = 0; i < SIDE; i++) {                                                             \
            floats part = __builtin_convertvector(ints_at(sums[tile] + i * LANES), floats);          \
            part *= all_floats(step[i]);                                                             \
            if (scaled) part *= scale;                                                               \
            total[i] += part;                                                                        \
        }                                                                                            \
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
    for (int i = 0; i < SIDE; i++) put_floats(y + i * PANEL, total[i]);
}

/* Several parts: the same, some parts at a time. */
INLINE void multiply_parts(const int scaled, const squares *own, int64_t tile, int64_t tiles, int64_t first,
                           int64_t panels) {
    const multiply_task *task = own->task;
    const int64_t parts = task->parts, row = parts * own->steps * SQUARE;
    const int64_t chunk = own->steps < CHUNK / 2 ? CHUNK / 2 / own->steps : 1;
    take_steps(own, tile);
    for (int64_t i = 0; i < panels * PAIR * SIDE * PANEL; i += LANES) put_floats(own->sums + i, all_floats(-0.0f));
    for (int64_t p = 0; p < parts; p += chunk)
        for (int64_t b = 0; b < panels; b++) {
            const panel side = side_of(own, b);
            for (int64_t t = 0; t < tiles; t++)
                for (int v = 0; v < VECTORS; v++)
                    add_parts(scaled, own, &side, own->delta + t * task->groups * SIDE, task->codes + (tile + t) * row,
                              own->weights + b * VECTORS * row, p, left_of(parts, p, chunk), v,
                              sums_of(own, b) + t * SIDE * PANEL + v * LANES);
        }
    for (int64_t b = 0; b < panels; b++) {
        waiting left;
        wait_for(&left, own, tile, tiles, first, b);
        finish_some(0, scaled, &left, left.rows);
    }
}

/* `s2q_multiply` of tokens in SQUARES. */
static int multiply_squares(const multiply_task *task, int64_t panel_first, int64_t panel_last, int64_t tile_first,
                            int64_t tile_last) {
    const int64_t parts = task->parts, scales = task->weight_groups;
    squares own = {.task = task, .steps = (task->columns / parts + STEP - 1) / STEP, .jump = PANEL * (2 * scales + 1)};
    const int64_t size = VECTORS * parts * own.steps * SQUARE, most = BLOCK_BYTES / size > 1 ? BLOCK_BYTES / size : 1;
    const int64_t panels = left_of(panel_last, panel_first, most);
    const int64_t floats = panels * PAIR * SIDE * PANEL + PAIR * task->groups * SIDE + panels * own.jump;
    void *whole;
    own.weights = aligned_memory(panels * size + floats * sizeof(float), &whole);
    if (!own.weights) return 1;
    own.sums = (float *)(own.weights + panels * size);
    own.delta = own.sums + panels * PAIR * SIDE * PANEL;
    own.side = (panel){.shifted = 1, .scales_in_groups = scales > 1, .scale = own.delta + PAIR * task->groups * SIDE};
    own.side.offsets_in_groups = task->weight_zero && own.side.scales_in_groups;
    own.side.offset = (int32_t *)(own.side.scale + scales * PANEL);
    own.side.bias = (float *)(own.side.offset + scales * PANEL);
    configure((uint8_t[8]){16, 16, 16, 16, 16, 16, 16, 16}, (uint16_t[8]){64, 64, 64, 64, 64, 64, 64, 64});
    for (int64_t from = panel_first; from < panel_last; from += panels) {
        const int64_t count = left_of(panel_last, from, panels);
        for (int64_t p = 0; p < count; p++) {
            const int64_t output = (from + p) * PANEL, outputs = left_of(task->outputs, output, PANEL);
            panel side = side_of(&own, p);
            take_sides(task, output, outputs, &side);
            take_squares(task, own.steps, &side, output, outputs, own.weights + p * size);
        }
        settle();
        for (int64_t t = tile_first; t < tile_last; t += PAIR) {
            const int64_t tiles = left_of(tile_last, t, PAIR);
            if (parts == 1)
                multiply_whole(&own, t, tiles, from, count);
            else if (own.side.scales_in_groups)
                multiply_parts(1, &own, t, tiles, from, count);
            else
                multiply_parts(0, &own, t, tiles, from, count);
        }
    }
    _tile_release();
    free(whole);
    return 0;
}

#endif
#endif
