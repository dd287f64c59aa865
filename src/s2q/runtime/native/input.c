/* Tokens to codes, a row at a time: channel scale, Kronecker transform, grid, rounding, and the order the product wants.
 *
 * Plain C with a C interface and no headers of torch. Codes, step sizes and zero points are the bits of s2q/runtime/reference.py
 * for the same transformed tokens: the same operations in the same order, each rounded (compile with -ffp-contract=off),
 * halves to even. The transform's sums are taken in order of the columns, fused where the set can, so a row's result depends on
 * that row alone; torch's may differ in the last bits. The build compiles this file once for each instruction set, SET.
 */
#include "lanes.h"
#include "tasks.h"

/* Rows and vectors of a block of the transform that stay in registers. */
#if LANES == 16
enum { BLOCK_ROWS = 8, BLOCK_VECTORS = 3 };
#else
enum { BLOCK_ROWS = 4, BLOCK_VECTORS = 2 };
#endif

INLINE void block(const int rows, const int vectors, const float *a, int64_t a_row, int64_t a_depth, const float *b,
                  float *c, int64_t width, int64_t depth) {
    floats sums[BLOCK_ROWS][BLOCK_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) sums[r][v] = all_floats(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        floats right[BLOCK_VECTORS];
        UNROLL
        for (int v = 0; v < vectors; v++) right[v] = floats_at(b + k * width + v * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const floats left = all_floats(a[r * a_row + k * a_depth]);
            UNROLL
            for (int v = 0; v < vectors; v++) sums[r][v] = fused(left, right[v], sums[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) put_floats(c + r * width + v * LANES, sums[r][v]);
}

#define FOR_VECTORS(rows, vectors)                                                   \
    switch (vectors) {                                                               \
        case 1: block(rows, 1, a, a_row, a_depth, b, c, width, depth); break;        \
        case 2: block(rows, 2, a, a_row, a_depth, b, c, width, depth); break;        \
        default: block(rows, BLOCK_VECTORS, a, a_row, a_depth, b, c, width, depth);  \
    }

static void any_block(int rows, int vectors, const float *a, int64_t a_row, int64_t a_depth, const float *b, float *c,
                      int64_t width, int64_t depth) {
    switch (rows) {
        case 1: FOR_VECTORS(1, vectors) break;
        case 2: FOR_VECTORS(2, vectors) break;
        case 3: FOR_VECTORS(3, vectors) break;
#if LANES == 16
        case 4: FOR_VECTORS(4, vectors) break;
        case 5: FOR_VECTORS(5, vectors) break;
        case 6: FOR_VECTORS(6, vectors) break;
        case 7: FOR_VECTORS(7, vectors) break;
#endif
        default: FOR_VECTORS(BLOCK_ROWS, vectors) break;
    }
}

/* c [rows, width] = a [rows, depth] · b [depth, width]; a's strides are free, width is a multiple of LANES. */
static void product(const float *a, int64_t a_row, int64_t a_depth, const float *b, float *c, int64_t rows, int64_t depth,
                    int64_t width) {
    const int64_t vectors = width / LANES, strips = (vectors + BLOCK_VECTORS - 1) / BLOCK_VECTORS;
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t from = vectors * strip / strips, to = vectors * (strip + 1) / strips;
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
            const int own = rows - r < BLOCK_ROWS ? (int)(rows - r) : BLOCK_ROWS;
            any_block(own, (int)(to - from), a + r * a_row, a_row, a_depth, b + from * LANES,
                      c + r * width + from * LANES, width, depth);
        }
    }
}

typedef struct {
    float *row, *folded, *middle, *right; /* [K]; [n1, width] twice, [n2, width] */
    int8_t *line, *spread;                /* [K] codes, and with the groups padded */
    int64_t width;
} workspace;

INLINE void load(float *row, const void *x, int64_t at, int64_t columns, int64_t dtype, const float *channel) {
    if (dtype == FLOAT32) {
        const float *from = (const float *)x + at;
        if (channel)
            for (int64_t k = 0; k < columns; k++) row[k] = from[k] * channel[k];
        else
            memcpy(row, from, columns * sizeof(float));
        return;
    }
    const uint16_t *from = (const uint16_t *)x + at;
    if (channel)
        for (int64_t k = 0; k < columns; k++) row[k] = widened(from[k]) * channel[k];
    else
        for (int64_t k = 0; k < columns; k++) row[k] = widened(from[k]);
}

/* P1ᵀ V P2 of the row V [n1, n2], in place: its rows stand `width` apart while they are multiplied. */
static void transform(const quantize_task *task, workspace *own) {
    const int64_t n1 = task->n1, n2 = task->n2, width = own->width;
    float *folded = width == n2 ? own->row : own->folded;
    if (width != n2)
        for (int64_t i = 0; i < n1; i++) memcpy(folded + i * width, own->row + i * n2, n2 * sizeof(float));
    product(folded, width, 1, own->right, own->middle, n1, n2, width);
    product(task->left, 1, n1, own->middle, folded, n1, n1, width);
    if (width != n2)
        for (int64_t i = 0; i < n1; i++) memcpy(own->row + i * n2, folded + i * width, n2 * sizeof(float));
}

/* Step size and zero point of one group; the zero point is 0 on the symmetric grid. */
INLINE void grid(const quantize_task *task, const float *part, int64_t size, float *step_out, float *offset_out) {
    const float largest = (float)((1 << (task->bits - 1)) - 1), smallest = -(float)(1 << (task->bits - 1));
    const float clip = task->clip ? *task->clip : 1.0f;
    int32_t top = 0, bottom = 0, most = 0;
    if (task->range) {
        part = task->range;
        size = 2;
    }
    if (task->zero)
        for (int64_t k = 0; k < size; k++) {
            const int32_t bits = bits_of(part[k]), magnitude = bits & 0x7fffffff, opposite = bits_of(-part[k]);
            most = magnitude > most ? magnitude : most;
            top = bits > top ? bits : top;
            bottom = opposite > bottom ? opposite : bottom;
        }
    else
        for (int64_t k = 0; k < size; k++) {
            const int32_t magnitude = bits_of(part[k]) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
    float step, offset = 0.0f;
    if (task->zero) {
        const float low = -float_of(bottom), high = float_of(top);
        step = clip * (high - low) / (largest - smallest);
        step = step > 0.0f ? step : 1.0f;
        offset = rintf(-clip * low / step) + smallest;
        offset = offset < smallest ? smallest : offset > largest ? largest : offset;
    } else {
        step = clip * float_of(most) / largest;
        step = step > 0.0f ? step : 1.0f;
    }
    *step_out = most > 0x7f800000 ? NAN : step;
    *offset_out = offset;
}

/* One row of codes into row r of a tile of `rows` rows: eights of columns as (0, 2, 4, 6), (1, 3, 5, 7). */
INLINE void into_tile(const int8_t *line, int64_t columns, int8_t *tile, int64_t rows, int64_t r) {
    int8_t *to = tile + 4 * r;
    for (int64_t k = 0; k < columns; k += 8, to += 8 * rows) {
        uint64_t even, odd;
        memcpy(&even, line + k, 8);
        odd = even >> 8;
#define GATHER(value)                                              \
    value &= 0x00ff00ff00ff00ffu;                                  \
    value = (value | value >> 8) & 0x0000ffff0000ffffu;            \
    value |= value >> 16
        GATHER(even);
        GATHER(odd);
        const uint32_t first = (uint32_t)even, second = (uint32_t)odd;
        memcpy(to, &first, 4);
        memcpy(to + 4 * rows, &second, 4);
    }
}

static void quantize_row(const quantize_task *task, workspace *own, int64_t m) {
    const int64_t columns = task->columns, groups = task->groups, size = columns / groups;
    const float largest = (float)((1 << (task->bits - 1)) - 1), smallest = -(float)(1 << (task->bits - 1));
    /* Codes of up to seven bits fit int8 without their zero point too. */
    const int without = task->layout == TILES && task->bits < 8;
    load(own->row, task->x, m * columns, columns, task->dtype, task->channel);
    if (task->left) transform(task, own);
    if (task->values) memcpy(task->values + m * columns, own->row, columns * sizeof(float));
    for (int64_t g = 0; g < groups; g++) {
        const float *part = own->row + g * size;
        int8_t *line = own->line + g * size;
        float step, offset;
        grid(task, part, size, &step, &offset);
        task->scale[m * groups + g] = step;
        if (task->zero) task->zero[m * groups + g] = offset;
        const float taken = without ? offset : 0.0f;
        for (int64_t k = 0; k < size; k++) {
            float code = rintf(part[k] / step) + offset;
            code = code > smallest ? code : smallest;
            code = code < largest ? code : largest;
            line[k] = (int8_t)(int32_t)(code - taken);
        }
    }
    if (!task->sums) return;
    const int64_t parts = task->parts, length = columns / parts;
    for (int64_t p = 0; p < parts; p++) {
        const int8_t *line = own->line + p * length;
        int32_t sum = 0;
        for (int64_t k = 0; k < length; k++) sum += line[k];
        if (task->zero && !without) sum -= (int32_t)length * (int32_t)task->zero[m * groups + p * groups / parts];
        task->sums[m * parts + p] = sum;
    }
}

static int prepare(const quantize_task *task, workspace *own, void **whole) {
    const int64_t columns = task->columns, n1 = task->n1, n2 = task->n2;
    const int64_t width = (n2 + LANES - 1) / LANES * LANES, fold = task->left ? n1 * width : 0;
    const int64_t row = (columns + 15) & ~(int64_t)15, wide = task->parts * padded(columns / task->parts);
    const size_t size = (row + 2 * fold + (task->left ? n2 * width : 0)) * sizeof(float) + row + wide;
    own->row = aligned_memory(size, whole);
    if (!own->row) return 1;
    own->width = width;
    own->folded = own->row + row;
    own->middle = own->folded + fold;
    own->right = own->middle + fold;
    own->line = (int8_t *)(own->right + (task->left ? n2 * width : 0));
    own->spread = own->line + row;
    memset(own->spread, 0, wide);
    if (task->left) {
        memset(own->folded, 0, fold * sizeof(float));
        for (int64_t k = 0; k < n2; k++)
            for (int64_t c = 0; c < width; c++) own->right[k * width + c] = c < n2 ? task->right[k * n2 + c] : 0.0f;
    }
    return 0;
}

/* Tiles [first, last) of the rows, whatever the layout. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_quantize, SET)(const quantize_task *task, int64_t first, int64_t last) {
    const int64_t columns = task->columns, length = columns / task->parts, wide = padded(length), half = columns / 2;
    workspace own;
    void *whole;
    if (prepare(task, &own, &whole)) return 1;
    for (int64_t t = first; t < last; t++) {
        const int64_t start = tile_start(task->rows, t), rows = tile_start(task->rows, t + 1) - start;
        for (int64_t r = 0; r < rows; r++) {
            quantize_row(task, &own, start + r);
            int8_t *to = task->codes + (start + r) * columns;
            if (task->layout == TILES) {
                const int8_t *line = own.line;
                if (wide != length) {
                    for (int64_t p = 0; p < task->parts; p++) memcpy(own.spread + p * wide, line + p * length, length);
                    line = own.spread;
                }
                into_tile(line, task->parts * wide, task->codes + start * task->parts * wide, rows, r);
            } else if (task->layout == HALVES) {
                for (int64_t k = 0; k < half; k++) {
                    to[k] = own.line[2 * k];
                    to[half + k] = own.line[2 * k + 1];
                }
            } else {
                memcpy(to, own.line, columns);
            }
        }
    }
    free(whole);
    return 0;
}
