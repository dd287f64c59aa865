/* The integer product: coded tokens in tiles times packed weights, with groups, zero points, bias and rounding of the output.
 *
 *   y = Σ_p float(Σ_k c_k u_k − v · Σ_k c_k) · Δ_a · Δ_w + branch + bias
 *
 * where c are the codes of the tokens without their zero point, u = w + 2^(b−1) the weight's codes as they are packed, and
 * v = z_w + 2^(b−1). The inner sum is exact in int32 and equals Σ (a − z_a)(w − z_w), so these are the bits of
 * s2q/runtime/reference.py: every float operation in its order, each rounded. Codes of 8 bits keep their zero point, which
 * z_a · Σ_k (u_k − v) = z_a · Σ_k u_k − z_a · v · K takes off; sums[] holds Σ (a − z_a), so that only z_a · Σ_k u_k is left to do.
 *
 * For groups of 4-bit weights, one integer operation more for each output and group would be felt: there u − v, which fits
 * int8, is made where the nibbles are unpacked, and multiplied with c + 128, which is unsigned. Sums start at
 * −128 · Σ_k (u_k − v).
 */
#include "finish.h"
#include "squares.h"

/* Bytes of codes that panels pass over before the next ones are taken, and the fewest rows of such a block. */
enum { BLOCK = 1 << 20, BLOCK_LEAST = 512 };

/* Eight columns of the tokens and of the panel to the sums, with `narrow` in 16 bits. */
INLINE void add_eight(const int rows, const int nibbles, const int shift, const int narrow, const uint8_t *weights,
                      const int32_t *offset, const int8_t *codes, int64_t step, ints sums[][VECTORS]) {
    UNROLL
    for (int half = 0; half < 2; half++, codes += step) {
        ints c[TILE];
        UNROLL
        for (int r = 0; r < rows; r++) c[r] = four_at(codes + 4 * r);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const ints w = shift ? differences_at(weights, half, v, ints_at(offset + v * LANES))
                                 : weights_at(weights, half, v, nibbles);
            UNROLL
            for (int r = 0; r < rows; r++) {
                const ints one = shift ? c[r] : w, other = shift ? w : c[r];
#if NARROW
                if (narrow) {
                    sums[r][v] = add_narrow(sums[r][v], one, other);
                    continue;
                }
#endif
                sums[r][v] = dot(sums[r][v], one, other, nibbles);
            }
        }
    }
}

/* All columns of a part to the sums. */
INLINE void add_part(const int rows, const int nibbles, const int shift, const uint8_t *weights, const int32_t *offset,
                     const int8_t *codes, int64_t step, int64_t eights, ints sums[][VECTORS]) {
    const int64_t eight = eight_bytes(nibbles);
#if NARROW
    const int64_t run = shift ? NARROW_SHIFTED_EIGHTS : NARROW_EIGHTS;
    for (int64_t e = 0, stop; nibbles && run && e < eights; e = stop) {
        stop = eights - e < run ? eights : e + run;
        ints narrow[TILE][VECTORS];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) narrow[r][v] = all_ints(0);
        for (; e < stop; e++, weights += eight, codes += 2 * step)
            add_eight(rows, nibbles, shift, 1, weights, offset, codes, step, narrow);
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) sums[r][v] += widened_pairs(narrow[r][v]);
    }
    if (nibbles && run) return;
#endif
    for (int64_t e = 0; e < eights; e++, weights += eight, codes += 2 * step)
        add_eight(rows, nibbles, shift, 0, weights, offset, codes, step, sums);
}

/* `rows` rows of a tile of `high` rows, from row `first` of all, times the panel; `codes` are the first of these rows.
 * `single` says that there is one part, `zeros` that `zero` may be there. */
INLINE void multiply_rows(const int rows, const int nibbles, const int single, const int zeros,
                          const multiply_task *task, const panel *own, const int8_t *codes, int64_t high,
                          int64_t first, int64_t output, int64_t outputs) {
    float y[ROWS][PANEL];
    const uint8_t *weights = own->weights;
    const int64_t parts = single ? 1 : task->parts, step = 4 * high;
    if (!single)
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) put_floats(&y[r][v * LANES], all_floats(-0.0f));
    for (int64_t p = 0; p < parts; p++) {
        ints sums[ROWS][VECTORS];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) sums[r][v] = all_ints(0);
        add_part(rows, nibbles, 0, weights, NULL, codes, step, own->eights, sums);
        codes += 2 * own->eights * step;
        weights += own->eights * eight_bytes(nibbles);
        const int64_t at = task->groups == 1 ? 0 : p, column = task->weight_groups == 1 ? 0 : p;
        const float *scale = own->scale + column * PANEL;
        const int32_t *offset = own->offset + (own->offsets_in_groups ? column * PANEL : 0);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const int64_t m = first + r;
            const ints sum = all_ints(task->sums[m * parts + p]);
            const floats delta = all_floats(task->scale[m * task->groups + at]);
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                ints total = sums[r][v] - ints_at(offset + v * LANES) * sum;
                if (zeros && task->zero)
                    total -= ints_at(own->sums + p * PANEL + v * LANES) *
                             all_ints((int32_t)task->zero[m * task->groups + at]);
                floats part = __builtin_convertvector(total, floats) * delta;
                if (single || own->scales_in_groups) part *= floats_at(scale + v * LANES);
                put_floats(&y[r][v * LANES], single ? part : floats_at(&y[r][v * LANES]) + part);
            }
        }
    }
    if (single || own->scales_in_groups)
        finish_rows(rows, 1, task, own, &y[0][0], first, output, outputs);
    else
        finish_rows(rows, 0, task, own, &y[0][0], first, output, outputs);
}

/* The same of nibbles in several parts, codes SHIFTED. `general` is not set where neither `zero` nor scales of groups are. */
INLINE void multiply_groups(const int rows, const int general, const multiply_task *task, const panel *own,
                            const int8_t *codes, int64_t high, int64_t first, int64_t output, int64_t outputs) {
    const uint8_t *weights = own->weights;
    const int64_t parts = task->parts, step = 4 * high, groups = task->groups, eights = own->eights;
    const int64_t jump = groups > 1, weight_jump = task->weight_groups > 1 ? PANEL : 0;
    const int64_t offset_jump = own->offsets_in_groups ? PANEL : 0;
    const float *delta = task->scale + first * groups, *scale = own->scale;
    const float *zero = task->zero ? task->zero + first * groups : NULL;
    const int32_t *offset = own->offset, *start = own->sums;
    float y[SHIFTED_TILE * PANEL];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) put_floats(y + r * PANEL + v * LANES, all_floats(-0.0f));
    for (int64_t p = 0; p < parts; p++) {
        ints sums[SHIFTED_TILE][VECTORS];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) sums[r][v] = ints_at(start + v * LANES) * -128;
        add_part(rows, 1, 1, weights, offset, codes, step, eights, sums);
        codes += 2 * eights * step;
        weights += eights * eight_bytes(1);
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                ints total = sums[r][v];
                if (general && zero) total -= ints_at(start + v * LANES) * all_ints((int32_t)zero[r * groups + p * jump]);
                floats part = __builtin_convertvector(total, floats) * all_floats(delta[r * groups + p * jump]);
                if (general && weight_jump) part *= floats_at(scale + v * LANES);
                put_floats(y + r * PANEL + v * LANES, floats_at(y + r * PANEL + v * LANES) + part);
            }
        start += PANEL;
        offset += offset_jump;
        scale += weight_jump;
    }
    if (general && weight_jump)
        finish_rows(rows, 1, task, own, y, first, output, outputs);
    else
        finish_rows(rows, 0, task, own, y, first, output, outputs);
}

/* Each a function of its own: inlined into one, they take each other's registers. */
typedef void kernel(const multiply_task *, const panel *, const int8_t *, int64_t, int64_t, int64_t, int64_t);
#define ARGUMENTS task, own, codes, high, first, output, outputs
#define KERNEL(name, call)                                                                                         \
    static __attribute__((noinline)) void name(const multiply_task *task, const panel *own, const int8_t *codes,   \
                                               int64_t high, int64_t first, int64_t output, int64_t outputs) {     \
        call;                                                                                                      \
    }
#define KERNELS(rows)                                             \
    KERNEL(any_##rows, multiply_rows(rows, 0, 0, 1, ARGUMENTS))   \
    KERNEL(plain_##rows, multiply_rows(rows, 1, 1, 0, ARGUMENTS)) \
    KERNEL(zeros_##rows, multiply_rows(rows, 1, 1, 1, ARGUMENTS))
#define GROUPS_KERNELS(rows)                                       \
    KERNEL(groups_##rows, multiply_groups(rows, 0, ARGUMENTS))     \
    KERNEL(general_##rows, multiply_groups(rows, 1, ARGUMENTS))
KERNELS(1)
GROUPS_KERNELS(1)
#if ROWS >= 3
KERNELS(2)
KERNELS(3)
GROUPS_KERNELS(2)
GROUPS_KERNELS(3)
#endif
#if ROWS >= 4
KERNELS(4)
GROUPS_KERNELS(4)
#endif
#if ROWS == 8
KERNELS(5)
KERNELS(6)
KERNELS(7)
KERNELS(8)
GROUPS_KERNELS(5)
GROUPS_KERNELS(6)
#define OF_ROWS(kind) {kind##_1, kind##_2, kind##_3, kind##_4, kind##_5, kind##_6, kind##_7, kind##_8}
#define OF_SHIFTED_ROWS(kind) {kind##_1, kind##_2, kind##_3, kind##_4, kind##_5, kind##_6}
#else
#if ROWS == 4
#define OF_ROWS(kind) {kind##_1, kind##_2, kind##_3, kind##_4}
#elif ROWS == 3
#define OF_ROWS(kind) {kind##_1, kind##_2, kind##_3}
#else
#define OF_ROWS(kind) {kind##_1}
#endif
#define OF_SHIFTED_ROWS OF_ROWS
#endif

/* The kernels of one row, two, three, …, for this panel and these tokens. */
static kernel *const *kernels_for(const multiply_task *task, const panel *own) {
    static kernel *const any[] = OF_ROWS(any), *const plain[] = OF_ROWS(plain), *const zeros[] = OF_ROWS(zeros);
    static kernel *const groups[] = OF_SHIFTED_ROWS(groups), *const general[] = OF_SHIFTED_ROWS(general);
    if (own->shifted) return task->zero || own->scales_in_groups ? general : groups;
    if (!own->nibbles) return any;
    return task->zero ? zeros : plain;
}

/* Outputs of units [first, last), rows of tiles [tile_first, tile_last). Returns 0, or 1 if there is no memory. */
int NAMED(s2q_multiply, SET)(const multiply_task *task, int64_t first, int64_t last, int64_t tile_first,
                             int64_t tile_last) {
#if defined(__AMX_INT8__)
    if (task->layout == SQUARES) return multiply_squares(task, first, last, tile_first, tile_last);
#endif
    const int64_t parts = task->parts, length = task->columns / parts, wide = padded(length), row = parts * wide;
    panel own = {.eights = wide / 8, .nibbles = task->bits == 4 && length % 8 == 0};
    own.shifted = shifted(task->bits, parts, length);
    const int64_t tile = own.shifted ? SHIFTED_TILE : TILE, most = ROWS < tile ? ROWS : tile;
    own.scales_in_groups = task->weight_groups > 1;
    own.offsets_in_groups = task->weight_zero && own.scales_in_groups;
    kernel *const *of_rows = kernels_for(task, &own);
    const int64_t groups = task->weight_groups, bytes = eight_bytes(own.nibbles) * own.eights * parts;
    void *whole;
    own.weights = aligned_memory(bytes + 4 * PANEL * (2 * groups + parts + 1), &whole);
    if (!own.weights) return 1;
    own.scale = (float *)(own.weights + bytes);
    own.offset = (int32_t *)(own.scale + groups * PANEL);
    own.sums = own.offset + groups * PANEL;
    own.bias = (float *)(own.sums + parts * PANEL);
    int64_t block = BLOCK / row > BLOCK_LEAST ? BLOCK / row / tile : BLOCK_LEAST / tile;
    const int64_t blocks = (tile_last - tile_first + block - 1) / block;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t from = tile_first + (tile_last - tile_first) * b / blocks;
        const int64_t to = tile_first + (tile_last - tile_first) * (b + 1) / blocks;
        for (int64_t output = first * UNIT; output < last * UNIT && output < task->outputs; output += PANEL) {
            const int64_t outputs = task->outputs - output < PANEL ? task->outputs - output : PANEL;
            take_panel(task, output, outputs, &own);
            for (int64_t t = from; t < to; t++) {
                const int64_t start = tile_start(task->rows, tile, t), high = tile_start(task->rows, tile, t + 1) - start;
                const int8_t *codes = task->codes + start * row;
                for (int64_t r = 0; r < high; r += most) {
                    const int64_t rows = high - r < most ? high - r : most;
                    of_rows[rows - 1](task, &own, codes + 4 * r, high, start + r, output, outputs);
                }
            }
        }
    }
    free(whole);
    return 0;
}
