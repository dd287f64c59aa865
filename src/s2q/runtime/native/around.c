/* What surrounds torch's own integer product where that is used: unpack 4-bit weights, scale the sums. One pass each.
 *
 * The bits of s2q/runtime/reference.py, as in input.c; compiled once for each instruction set, SET.
 */
#include "lanes.h"

/* Offset-binary nibbles [rows, columns / 2], the lower one first, to int8 [rows, columns]. */
void NAMED(s2q_unpack_nibbles, SET)(const uint8_t *packed, int64_t rows, int64_t columns, int8_t *codes) {
    for (int64_t i = 0; i < rows * columns / 2; i++) {
        codes[2 * i] = (int8_t)((packed[i] & 15) - 8);
        codes[2 * i + 1] = (int8_t)((packed[i] >> 4) - 8);
    }
}

/* ((sum − zero · weight_sum) · scale) · weight_scale + bias: int32 [rows, columns] to float or bfloat16.
 *
 *   zero, weight_sum   int32 [rows], int32 [columns], both or neither
 *   bias               float [columns] or NULL
 * Returns 0, or 1 if there is no memory.
 */
int NAMED(s2q_scale_sums, SET)(const int32_t *sums, int64_t rows, int64_t columns, const float *scale,
                            const float *weight_scale, const int32_t *zero, const int32_t *weight_sum,
                            const float *bias, int dtype, void *out) {
    float *row = malloc(columns * sizeof(float));
    if (!row) return 1;
    for (int64_t m = 0; m < rows; m++) {
        const int32_t *own = sums + m * columns;
        float *y = dtype == FLOAT32 ? (float *)out + m * columns : row;
        const float step = scale[m];
        if (zero) {
            const int32_t offset = zero[m];
            for (int64_t n = 0; n < columns; n++) y[n] = (float)(own[n] - offset * weight_sum[n]) * step * weight_scale[n];
        } else {
            for (int64_t n = 0; n < columns; n++) y[n] = (float)own[n] * step * weight_scale[n];
        }
        if (bias)
            for (int64_t n = 0; n < columns; n++) y[n] += bias[n];
        if (dtype == BFLOAT16) {
            uint16_t *narrow = (uint16_t *)out + m * columns;
            for (int64_t n = 0; n < columns; n++) narrow[n] = narrowed(y[n]);
        }
    }
    free(row);
    return 0;
}
