/* What surrounds the integer product, one pass each: quantize tokens, unpack 4-bit weights, scale the sums.
 *
 * Plain C with a C interface and no headers of torch. Every function gives the bits of its plain-torch definition in
 * s2q/runtime/reference.py: the same operations in the same order, each rounded (compile with -ffp-contract=off), halves
 * to even. The build compiles this file once for each instruction set, with SET naming it; dispatch.c picks one.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define JOIN(name, set) name##_##set
#define NAMED(name, set) JOIN(name, set)

enum { FLOAT32 = 0, BFLOAT16 = 1 };

/* Bits of a float as an integer: ordered as the floats are where they are not negative, NaN above infinity. Their
 * maximum is found several times faster than that of floats, which compilers must take in order. */
static inline int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float widened(uint16_t value) { return float_of((int32_t)((uint32_t)value << 16)); }

static inline uint16_t narrowed(float value) {
    const uint32_t bits = (uint32_t)bits_of(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return value != value ? 0x7fc0u : (uint16_t)rounded;
}

static inline void load(float *row, const void *x, int64_t at, int64_t columns, int dtype, const float *channel) {
    if (dtype == FLOAT32)
        memcpy(row, (const float *)x + at, columns * sizeof(float));
    else
        for (int64_t k = 0; k < columns; k++) row[k] = widened(((const uint16_t *)x)[at + k]);
    if (channel)
        for (int64_t k = 0; k < columns; k++) row[k] *= channel[k];
}

/* Tokens [rows, columns] to codes, with the step size (and zero point) of each of their groups.
 *
 *   channel  float [columns] or NULL: multiplied first
 *   zero     float [rows, groups], or NULL for the symmetric grid
 *   halves   codes stand as (even columns, odd columns); wants one group and an even number of columns
 * Returns 0, or 1 if there is no memory.
 */
int NAMED(s2q_quantize_rows, SET)(const void *x, int dtype, int64_t rows, int64_t columns, int64_t groups,
                               const float *channel, float clip, int bits, int halves, int8_t *codes, float *scale,
                               float *zero) {
    const float largest = (float)((1 << (bits - 1)) - 1), smallest = -(float)(1 << (bits - 1));
    const int64_t size = columns / groups, half = columns / 2;
    float *row = malloc(columns * sizeof(float));
    int8_t *whole = malloc(columns);
    if (!row || !whole) {
        free(row);
        free(whole);
        return 1;
    }
    for (int64_t m = 0; m < rows; m++) {
        load(row, x, m * columns, columns, dtype, channel);
        int8_t *out = codes + m * columns, *target = halves ? whole : out;
        for (int64_t g = 0; g < groups; g++) {
            float *part = row + g * size;
            float step, offset = 0.0f;
            int32_t top = 0, bottom = 0, most = 0;
            for (int64_t k = 0; k < size; k++) {
                const int32_t bits = bits_of(part[k]), magnitude = bits & 0x7fffffff, opposite = bits_of(-part[k]);
                most = magnitude > most ? magnitude : most;
                top = bits > top ? bits : top;
                bottom = opposite > bottom ? opposite : bottom;
            }
            const int odd = most > 0x7f800000;
            if (zero) {
                const float low = -float_of(bottom), high = float_of(top);
                step = clip * (high - low) / (largest - smallest);
                step = odd ? NAN : step > 0.0f ? step : 1.0f;
                offset = rintf(-clip * low / step) + smallest;
                offset = offset < smallest ? smallest : offset > largest ? largest : offset;
                zero[m * groups + g] = offset;
            } else {
                step = clip * float_of(most) / largest;
                step = odd ? NAN : step > 0.0f ? step : 1.0f;
            }
            scale[m * groups + g] = step;
            for (int64_t k = 0; k < size; k++) {
                float code = rintf(part[k] / step) + offset;
                code = code < smallest ? smallest : code;
                code = code > largest ? largest : code;
                target[g * size + k] = (int8_t)(int32_t)code;
            }
        }
        if (halves)
            for (int64_t k = 0; k < half; k++) {
                out[k] = whole[2 * k];
                out[half + k] = whole[2 * k + 1];
            }
    }
    free(row);
    free(whole);
    return 0;
}

/* Offset-binary nibbles [rows, columns / 2] to int8 [rows, columns] as (even columns, odd columns). */
void NAMED(s2q_unpack_halves, SET)(const uint8_t *packed, int64_t rows, int64_t columns, int8_t *codes) {
    const int64_t half = columns / 2;
    for (int64_t n = 0; n < rows; n++) {
        const uint8_t *in = packed + n * half;
        int8_t *low = codes + n * columns, *high = low + half;
        for (int64_t k = 0; k < half; k++) {
            low[k] = (int8_t)((in[k] & 15) - 8);
            high[k] = (int8_t)((in[k] >> 4) - 8);
        }
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
