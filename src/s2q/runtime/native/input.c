/* Tokens to codes, some rows at a time: channel scale, Kronecker or Hadamard transform, grid, rounding, and the order the
 * product wants.
 *
 * Plain C with a C interface and no headers of torch. Codes, step sizes and zero points are the bits of s2q/runtime/reference.py
 * for the same transformed tokens: the same operations in the same order, each rounded (compile with -ffp-contract=off),
 * halves to even. The Kronecker transform's sums are taken in order of the columns, fused where the set can, so a row's
 * result depends on that row alone; torch's may differ in the last bits. The build compiles this file once for each instruction set, SET.
 */
#include "hadamard.h"
#include "kronecker.h"
#include "lanes.h"
#include "rounding.h"
#include "tasks.h"

/* Floats of the rows that are taken together, so that none waits for its grid: about a first-level cache. */
enum { TOGETHER = 1 << 13 };
/* Values that are loaded before their Hadamard blocks are made, a power of two. */
enum { CHUNK = 512 };

typedef struct {
    const float *rows[TILE];                 /* those taken together, [K] each, most of them in `memory` */
    float *memory, *folded, *middle, *right; /* [together, height]; [n1, width] twice, [n2, width] */
    float *low, *high, *odd, *step, *offset; /* [together, G] */
    int8_t *line;                            /* codes of as many rows as a tile has, [K] each, or those of one part */
    int64_t together, height, width, stride; /* rows taken together; floats of one, of one in the transform; bytes of a line */
    int bounded;                             /* see rounding.h */
} workspace;

INLINE void load(float *row, const void *x, int64_t at, int64_t columns, int64_t dtype, const float *channel) {
    const float *wide = (const float *)x + at;
    const uint16_t *narrow = (const uint16_t *)x + at;
    int64_t k = 0;
    for (; k + LANES <= columns; k += LANES) {
        const floats value = dtype == FLOAT32 ? floats_at(wide + k) : widened_at(narrow + k);
        put_floats(row + k, channel ? value * floats_at(channel + k) : value);
    }
    for (; k < columns; k++) {
        const float value = dtype == FLOAT32 ? wide[k] : widened(narrow[k]);
        row[k] = channel ? value * channel[k] : value;
    }
}

/* P1ᵀ V P2 of the row V [n1, n2], in place: its rows stand `width` apart while they are multiplied. */
static void transform(const quantize_task *task, workspace *own, float *row) {
    const int64_t n1 = task->n1, n2 = task->n2, width = own->width;
    float *folded = width == n2 ? row : own->folded;
    if (width != n2)
        for (int64_t i = 0; i < n1; i++) memcpy(folded + i * width, row + i * n2, n2 * sizeof(float));
    product(folded, width, 1, own->right, own->middle, n1, n2, width);
    product(task->left, 1, n1, own->middle, folded, n1, n1, width);
    if (width != n2)
        for (int64_t i = 0; i < n1; i++) memcpy(row + i * n2, folded + i * width, n2 * sizeof(float));
}

/* Row m, channel scale and transform done, in own->rows[r], or as it came where there is neither; and its groups' ranges. */
static void take_row(const quantize_task *task, workspace *own, int64_t m, int64_t r) {
    const int64_t columns = task->columns, groups = task->groups, size = columns / groups;
    const int64_t bytes = columns * (task->dtype == FLOAT32 ? 4 : 2);
    float *row = own->memory + r * own->height, *low = own->low + r * groups, *high = own->high + r * groups;
    own->rows[r] = row;
    if (task->dtype == FLOAT32 && !task->channel && !task->left && !task->block)
        own->rows[r] = (const float *)task->x + m * columns;
    else if (task->block) /* some blocks at a time, while they are in the first-level cache */
        for (int64_t k = 0, count; k < columns; k += count) {
            count = task->block > CHUNK ? task->block : CHUNK;
            count = columns - k < count ? columns - k : count;
            load(row + k, task->x, m * columns + k, count, task->dtype, task->channel ? task->channel + k : NULL);
            hadamard_blocks(row + k, count, task->block);
        }
    else
        load(row, task->x, m * columns, columns, task->dtype, task->channel);
    /* The next row comes while this one is at work. */
    if (m + 1 < task->rows)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)task->x + (m + 1) * bytes + at);
    if (task->left) transform(task, own, row);
    if (task->values) memcpy(task->values + m * columns, own->rows[r], columns * sizeof(float));
    for (int64_t g = 0; g < groups; g++) {
        const float *part = task->range ? task->range : own->rows[r] + g * size;
        const int64_t count = task->range ? 2 : size;
        int odd;
        if (task->zero)
            range_of(part, count, 0, low + g, high + g, &odd);
        else
            range_of(part, count, 1, low + g, high + g, &odd);
        own->odd[r * groups + g] = odd ? NAN : 0.0f;
    }
}

/* Step sizes and zero points of the rows m … m + count − 1, which are taken. */
static void take_grids(const quantize_task *task, workspace *own, int64_t m, int64_t count) {
    const int64_t groups = count * task->groups, at = m * task->groups;
    const float largest = (float)((1 << (task->bits - 1)) - 1), smallest = -(float)(1 << (task->bits - 1));
    const float clip = task->clip ? *task->clip : 1.0f;
    if (task->zero)
        grids(groups, 0, largest, smallest, clip, own->low, own->high, own->odd, own->step, own->offset);
    else
        grids(groups, 1, largest, smallest, clip, own->low, own->high, own->odd, own->step, own->offset);
    memcpy(task->scale + at, own->step, groups * sizeof(float));
    if (task->zero) memcpy(task->zero + at, own->offset, groups * sizeof(float));
}

/* Codes of up to seven bits fit int8 without their zero point too. */
INLINE int without_zero(const quantize_task *task) { return task->layout >= TILES && task->bits < 8; }

/* How the codes of group g of row r of those taken are made. */
INLINE rounding rounding_of(const quantize_task *task, const workspace *own, int64_t r, int64_t g) {
    rounding how = {.step = own->step[r * task->groups + g], .bounded = own->bounded};
    how.smallest = -(float)(1 << (task->bits - 1));
    how.largest = (float)((1 << (task->bits - 1)) - 1);
    how.offset = task->zero ? own->offset[r * task->groups + g] : 0.0f;
    how.taken = without_zero(task) ? how.offset : 0.0f;
    return how;
}

/* Row m, which is row r of those taken, and row `place` of a tile of `rows` rows that starts at `tile`. Its codes are left in line
 * `place`, in the order of tiles, or in line 0 in their own, or go into the tile at once. */
static void round_row(const quantize_task *task, workspace *own, int64_t m, int64_t r, int8_t *tile, int64_t rows,
                      int64_t place) {
    const int64_t columns = task->columns, groups = task->groups, parts = task->parts;
    const int64_t size = columns / groups, length = columns / parts, wide = padded(length), each = parts / groups;
    const int64_t jump = task->layout == SQUARES ? squared(length) : length; /* from a part of the line to the next */
    const int squares = task->layout == SQUARES, shift = task->layout == SHIFTED;
    const int8_t flip = shift ? -128 : 0;
    const float *row = own->rows[r];
    for (int64_t g = 0; g < groups; g++) {
        const rounding how = rounding_of(task, own, r, g);
        if (task->layout < TILES) {
            round_line(row + g * size, size, how, own->line + g * size);
            continue;
        }
        for (int64_t p = g * each; p < (g + 1) * each; p++) {
            const float *part = row + p * length;
            int32_t sum = 0;
#if LANES == 16
            if (wide == length) {
                int8_t *line = own->line + place * own->stride + p * jump;
                sum = shift || squares ? round_eights(part, length, how, flip, 0, line)
                                       : round_eights(part, length, how, 0, 1, line);
            } else
#endif
            {
                round_line(part, length, how, own->line);
                for (int64_t k = 0; k < length; k++) {
                    sum += own->line[k];
                    own->line[k] ^= flip;
                }
                memset(own->line + length, 0, wide - length);
                into_tile(own->line, wide, tile + p * wide * rows + 4 * place, rows);
            }
            if (task->layout == TILES) task->sums[m * parts + p] = sum - (int32_t)length * (int32_t)(how.offset - how.taken);
        }
    }
}

#if LANES == 16
/* `round_row` of rows that are one group of whole eights each, in TILES or SQUARES, without what only others need: row m is the
 * first of `count` taken, and row `place` of its tile. */
static void round_whole_rows(const quantize_task *task, const workspace *own, int64_t m, int64_t count, int64_t place) {
    const int64_t columns = task->columns;
    for (int64_t r = 0; r < count; r++) {
        const rounding how = rounding_of(task, own, r, 0);
        int8_t *line = own->line + (place + r) * own->stride;
        if (task->layout == SQUARES) {
            round_eights(own->rows[r], columns, how, 0, 0, line);
            continue;
        }
        const int32_t sum = round_eights(own->rows[r], columns, how, 0, 1, line);
        task->sums[m + r] = sum - (int32_t)columns * (int32_t)(how.offset - how.taken);
    }
}

/* Lines of codes in eights, `stride` apart, as squares [parts][squares of a part][line][64]; a part of a line has `length`
 * columns, and what is beyond them, or beyond `rows`, becomes zeros. */
static void into_squares(int8_t *lines, int64_t stride, int64_t parts, int64_t length, int64_t rows, int8_t *to) {
    const int64_t wide = squared(length);
    for (int64_t r = 0; r < SIDE; r++)
        for (int64_t p = 0; p < parts; p++) {
            const int64_t own = r < rows ? length : 0;
            memset(lines + r * stride + p * wide + own, 0, wide - own);
        }
    for (int64_t k = 0; k < parts * wide; k += STEP)
        for (int64_t r = 0; r < SIDE; r++, to += STEP) memcpy(to, lines + r * stride + k, STEP);
}
#endif

static int prepare(const quantize_task *task, workspace *own, void **whole) {
    const int64_t columns = task->columns, n1 = task->n1, n2 = task->n2;
    const int64_t width = in_vectors(n2), fold = task->left ? n1 * width : 0;
    const int64_t row = (columns + 15) & ~(int64_t)15;
    own->together = columns <= TOGETHER / TILE ? TILE : 1;
    own->bounded = !task->range && (!task->clip || *task->clip > 1e-6f);
    own->height = row;
    const int64_t groups = (own->together * task->groups + 15) & ~(int64_t)15, rows = own->together * row;
    own->stride = ((columns + 63) & ~(int64_t)63) + STEP;
    if (task->layout == SQUARES) own->stride = task->parts * squared(columns / task->parts) + STEP;
    const size_t size =
        (rows + 2 * fold + (task->left ? n2 * width : 0) + 5 * groups) * sizeof(float) + SIDE * own->stride;
    own->memory = aligned_memory(size, whole);
    if (!own->memory) return 1;
    own->width = width;
    own->folded = own->memory + rows;
    own->middle = own->folded + fold;
    own->right = own->middle + fold;
    own->low = own->right + (task->left ? n2 * width : 0);
    own->high = own->low + groups;
    own->odd = own->high + groups;
    own->step = own->odd + groups;
    own->offset = own->step + groups;
    own->line = (int8_t *)(own->offset + groups);
    if (task->left) {
        memset(own->folded, 0, fold * sizeof(float));
        for (int64_t k = 0; k < n2; k++)
            for (int64_t c = 0; c < width; c++) own->right[k * width + c] = c < n2 ? task->right[k * n2 + c] : 0.0f;
    }
    return 0;
}

/* Tiles [first, last) of the rows, whatever the layout. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_quantize, SET)(const quantize_task *task, int64_t first, int64_t last) {
    const int64_t columns = task->columns, wide = padded(columns / task->parts);
    const int squares = task->layout == SQUARES;
    const int64_t high = squares ? SIDE : task->layout == SHIFTED ? SHIFTED_TILE : TILE;
#if LANES == 16
    const int whole_rows = (squares || task->layout == TILES) && task->parts == 1 && columns % 8 == 0;
#endif
    workspace own;
    void *whole;
    if (prepare(task, &own, &whole)) return 1;
    for (int64_t t = first; t < last; t++) {
        int64_t start = t * high, rows = task->rows - start < high ? task->rows - start : high;
        if (!squares) {
            start = tile_start(task->rows, high, t);
            rows = tile_start(task->rows, high, t + 1) - start;
        }
        int8_t *tile = task->codes + start * task->parts * wide;
        for (int64_t r = 0, count; r < rows; r += count) {
            count = rows - r < own.together ? rows - r : own.together;
            for (int64_t i = 0; i < count; i++) take_row(task, &own, start + r + i, i);
            take_grids(task, &own, start + r, count);
#if LANES == 16
            if (whole_rows) {
                round_whole_rows(task, &own, start + r, count, r);
                continue;
            }
#endif
            for (int64_t i = 0; i < count; i++) {
                round_row(task, &own, start + r + i, i, tile, rows, r + i);
                if (task->layout == NATURAL) memcpy(task->codes + (start + r + i) * columns, own.line, columns);
            }
        }
#if LANES == 16
        if (squares)
            into_squares(own.line, own.stride, task->parts, columns / task->parts, rows,
                         task->codes + t * high * task->parts * squared(columns / task->parts));
        else if (task->layout >= TILES && wide == columns / task->parts)
            interleave(own.line, own.stride, columns, rows, tile);
#endif
    }
    free(whole);
    return 0;
}
