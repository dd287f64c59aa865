/* Tokens to codes, a row at a time: channel scale, Kronecker or Hadamard transform, grid, rounding, and the order the product wants.
 *
 * Plain C with a C interface and no headers of torch. Codes, step sizes and zero points are the bits of s2q/runtime/reference.py
 * for the same transformed tokens: the same operations in the same order, each rounded (compile with -ffp-contract=off),
 * halves to even. The Kronecker transform's sums are taken in order of the columns, fused where the set can, so a row's result depends on
 * that row alone; torch's may differ in the last bits. The build compiles this file once for each instruction set, SET.
 */
#include "hadamard.h"
#include "kronecker.h"
#include "lanes.h"
#include "tasks.h"

#if LANES == 16
INLINE __mmask16 first_lanes(int64_t count) { return count < LANES ? (__mmask16)((1 << count) - 1) : 0xffff; }
#endif

typedef struct {
    float *row, *folded, *middle, *right; /* [K]; [n1, width] twice, [n2, width] */
    int8_t *line;                         /* [K] codes, or those of one part */
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

/* The lowest and the highest of values and 0, or with `symmetric` only how far they go either way; *odd if one is NaN. */
INLINE void range_of(const float *part, int64_t size, const int symmetric, float *low, float *high, int *odd) {
    int32_t top = 0, bottom = 0, most = 0;
    int64_t k = 0;
#if LANES == 16
    __m512 up = _mm512_setzero_ps(), down = up;
    __mmask16 unordered = 0;
    for (; k < size; k += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(first_lanes(size - k), part + k);
        unordered |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        up = _mm512_max_ps(up, symmetric ? _mm512_abs_ps(x) : x);
        if (!symmetric) down = _mm512_min_ps(down, x);
    }
    *high = _mm512_reduce_max_ps(up);
    *low = symmetric ? 0.0f : _mm512_reduce_min_ps(down);
    *odd = unordered != 0;
    return;
#endif
    for (; k < size; k++) {
        const int32_t bits = bits_of(part[k]), magnitude = bits & 0x7fffffff, opposite = bits_of(-part[k]);
        most = magnitude > most ? magnitude : most;
        if (symmetric) continue;
        top = bits > top ? bits : top;
        bottom = opposite > bottom ? opposite : bottom;
    }
    *high = float_of(symmetric ? most : top);
    *low = symmetric ? 0.0f : -float_of(bottom);
    *odd = most > 0x7f800000;
}

/* Step size and zero point of one group; the zero point is 0 on the symmetric grid. */
INLINE void grid(const quantize_task *task, const float *part, int64_t size, float *step_out, float *offset_out) {
    const float largest = (float)((1 << (task->bits - 1)) - 1), smallest = -(float)(1 << (task->bits - 1));
    const float clip = task->clip ? *task->clip : 1.0f;
    float low, high, step, offset = 0.0f;
    int odd;
    if (task->range) {
        part = task->range;
        size = 2;
    }
    if (task->zero) {
        range_of(part, size, 0, &low, &high, &odd);
        step = clip * (high - low) / (largest - smallest);
        step = step > 0.0f ? step : 1.0f;
        offset = rintf(-clip * low / step) + smallest;
        offset = offset < smallest ? smallest : offset > largest ? largest : offset;
    } else {
        range_of(part, size, 1, &low, &high, &odd);
        step = clip * high / largest;
        step = step > 0.0f ? step : 1.0f;
    }
    *step_out = odd ? NAN : step;
    *offset_out = offset;
}

typedef struct {
    float step, offset, taken; /* code = clamp(round(x / step) + offset) − taken */
    float smallest, largest;
} rounding;

INLINE void round_line(const float *part, int64_t size, rounding how, int8_t *line) {
    for (int64_t k = 0; k < size; k++) {
        float code = rintf(part[k] / how.step) + how.offset;
        code = code > how.smallest ? code : how.smallest;
        code = code < how.largest ? code : how.largest;
        line[k] = (int8_t)(int32_t)(code - how.taken);
    }
}

/* A row's codes into a tile of `rows` rows: eights of columns as (0, 2, 4, 6), (1, 3, 5, 7). */
INLINE void into_tile(const int8_t *line, int64_t columns, int8_t *to, int64_t rows) {
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

#if LANES == 16
/* `round_line` and `into_tile` at once, for an eightfold number of columns, `flip` in all codes flipped: returns the sum of
 * the codes.
 *
 * A quotient below 400 and its dividend times the reciprocal differ by less than 1e-4, so they round to the same whole number
 * unless they lie that close to a half; only there, and where the reciprocal is not normal, is divided. Larger ones are clamped. */
static int32_t round_into_tile(const float *part, int64_t size, rounding how, int8_t flip, int8_t *to, int64_t rows) {
    const __m512 step = _mm512_set1_ps(how.step), offset = _mm512_set1_ps(how.offset), taken = _mm512_set1_ps(how.taken);
    const __m512 smallest = _mm512_set1_ps(how.smallest), largest = _mm512_set1_ps(how.largest);
    const float inverse = how.step > 1e-30f && how.step < 1e30f ? 1.0f / how.step : NAN;
    const __m512 reciprocal = _mm512_set1_ps(inverse), half = _mm512_set1_ps(0.4999f);
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m128i flipped = _mm_set1_epi8(flip);
    const int64_t jump = 4 * rows;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < size; k += LANES) {
        const __mmask16 own = first_lanes(size - k);
        const __m512 x = _mm512_maskz_loadu_ps(own, part + k), ratio = _mm512_mul_ps(x, reciprocal);
        __m512 whole = _mm512_roundscale_ps(ratio, 8);
        if (_mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_sub_ps(ratio, whole)), half, _CMP_NLE_UQ))
            whole = _mm512_roundscale_ps(_mm512_div_ps(x, step), 8);
        /* The second operand is the result where the first is NaN. */
        whole = _mm512_min_ps(_mm512_max_ps(_mm512_add_ps(whole, offset), smallest), largest);
        const __m512i codes = _mm512_cvttps_epi32(_mm512_sub_ps(whole, taken));
        sum = _mm512_mask_add_epi32(sum, own, sum, codes);
        const __m128i four = _mm_shuffle_epi8(_mm_xor_si128(_mm512_cvtepi32_epi8(codes), flipped), order);
        const int32_t words[4] = {_mm_extract_epi32(four, 0), _mm_extract_epi32(four, 1), _mm_extract_epi32(four, 2),
                                  _mm_extract_epi32(four, 3)};
        memcpy(to, &words[0], 4);
        memcpy(to + jump, &words[1], 4);
        if (own != 0xffff) break;
        memcpy(to + 2 * jump, &words[2], 4);
        memcpy(to + 3 * jump, &words[3], 4);
        to += 4 * jump;
    }
    return _mm512_reduce_add_epi32(sum);
}
#endif

/* Row m, which is row r of a tile of `rows` rows that starts at `tile`; in other layouts its codes are left in own->line. */
static void quantize_row(const quantize_task *task, workspace *own, int64_t m, int8_t *tile, int64_t rows, int64_t r) {
    const int64_t columns = task->columns, groups = task->groups, parts = task->parts;
    const int64_t size = columns / groups, length = columns / parts, wide = padded(length), each = parts / groups;
    /* Codes of up to seven bits fit int8 without their zero point too. */
    const int shift = task->layout == SHIFTED, tiled = shift || task->layout == TILES, without = tiled && task->bits < 8;
    const int8_t flip = shift ? -128 : 0;
    rounding how = {.smallest = -(float)(1 << (task->bits - 1)), .largest = (float)((1 << (task->bits - 1)) - 1)};
    const float *row = own->row;
    if (task->dtype == FLOAT32 && !task->channel && !task->left && !task->block)
        row = (const float *)task->x + m * columns;
    else
        load(own->row, task->x, m * columns, columns, task->dtype, task->channel);
    if (task->left) transform(task, own);
    if (task->block) hadamard_blocks(own->row, columns, task->block);
    if (task->values) memcpy(task->values + m * columns, row, columns * sizeof(float));
    /* Grids of all groups first: they do not wait for each other, as rounding waits for its grid. */
    for (int64_t g = 0; g < groups; g++) {
        grid(task, row + g * size, size, &how.step, &how.offset);
        task->scale[m * groups + g] = how.step;
        if (task->zero) task->zero[m * groups + g] = how.offset;
    }
    for (int64_t g = 0; g < groups; g++) {
        how.step = task->scale[m * groups + g];
        how.offset = task->zero ? task->zero[m * groups + g] : 0.0f;
        if (without) how.taken = how.offset;
        if (!tiled) {
            round_line(row + g * size, size, how, own->line + g * size);
            continue;
        }
        for (int64_t p = g * each; p < (g + 1) * each; p++) {
            const float *part = row + p * length;
            int8_t *to = tile + p * wide * rows + 4 * r;
            int32_t sum = 0;
#if LANES == 16
            if (wide == length) {
                sum = round_into_tile(part, length, how, flip, to, rows);
            } else
#endif
            {
                round_line(part, length, how, own->line);
                for (int64_t k = 0; k < length; k++) {
                    sum += own->line[k];
                    own->line[k] ^= flip;
                }
                memset(own->line + length, 0, wide - length);
                into_tile(own->line, wide, to, rows);
            }
            if (!without) sum -= (int32_t)length * (int32_t)how.offset;
            if (!shift) task->sums[m * parts + p] = sum;
        }
    }
}

static int prepare(const quantize_task *task, workspace *own, void **whole) {
    const int64_t columns = task->columns, n1 = task->n1, n2 = task->n2;
    const int64_t width = (n2 + LANES - 1) / LANES * LANES, fold = task->left ? n1 * width : 0;
    const int64_t row = (columns + 15) & ~(int64_t)15;
    const size_t size = (row + 2 * fold + (task->left ? n2 * width : 0)) * sizeof(float) + row;
    own->row = aligned_memory(size, whole);
    if (!own->row) return 1;
    own->width = width;
    own->folded = own->row + row;
    own->middle = own->folded + fold;
    own->right = own->middle + fold;
    own->line = (int8_t *)(own->right + (task->left ? n2 * width : 0));
    if (task->left) {
        memset(own->folded, 0, fold * sizeof(float));
        for (int64_t k = 0; k < n2; k++)
            for (int64_t c = 0; c < width; c++) own->right[k * width + c] = c < n2 ? task->right[k * n2 + c] : 0.0f;
    }
    return 0;
}

/* Tiles [first, last) of the rows, whatever the layout. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_quantize, SET)(const quantize_task *task, int64_t first, int64_t last) {
    const int64_t columns = task->columns, wide = padded(columns / task->parts), half = columns / 2;
    const int64_t high = task->layout == SHIFTED ? SHIFTED_TILE : TILE;
    workspace own;
    void *whole;
    if (prepare(task, &own, &whole)) return 1;
    for (int64_t t = first; t < last; t++) {
        const int64_t start = tile_start(task->rows, high, t), rows = tile_start(task->rows, high, t + 1) - start;
        int8_t *tile = task->codes + start * task->parts * wide;
        for (int64_t r = 0; r < rows; r++) {
            quantize_row(task, &own, start + r, tile, rows, r);
            int8_t *to = task->codes + (start + r) * columns;
            if (task->layout == NATURAL) memcpy(to, own.line, columns);
            if (task->layout == HALVES)
                for (int64_t k = 0; k < half; k++) {
                    to[k] = own.line[2 * k];
                    to[half + k] = own.line[2 * k + 1];
                }
        }
    }
    free(whole);
    return 0;
}
