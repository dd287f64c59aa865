/* From the sums of a panel's outputs to the output: Δ_w, branch, bias, GELU, rounding. */
#ifndef S2Q_FINISH_H
#define S2Q_FINISH_H

#include "gelu.h"
#include "panel.h"

INLINE void put_shorts(uint16_t *to, floats value) {
    words bits;
    memcpy(&bits, &value, sizeof bits);
    const words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, odd = (words)(value != value);
    const shorts narrow = __builtin_convertvector((rounded & ~odd) | (odd & 0x7fc0u), shorts);
    memcpy(to, &narrow, sizeof narrow);
}

/* Vector v of the panel's part of a row, of which `outputs` values are wanted, to position `at` of the output. */
INLINE void finish(const int gelu, const multiply_task *task, const panel *own, floats y, int v, int64_t at,
                   int64_t outputs) {
    const int64_t left = outputs - v * LANES, count = left < LANES ? left : LANES, to = at + v * LANES;
    float wide[LANES];
    uint16_t narrow[LANES];
    if (task->branch) {
        memcpy(wide, task->branch + to, count * sizeof(float));
        y += floats_at(wide);
    }
    y += floats_at(own->bias + v * LANES);
    if (gelu) y = gelu_tanh(y);
    if (task->dtype == FLOAT32) {
        float *out = (float *)task->out + to;
        put_floats(count == LANES ? out : wide, y);
        if (count < LANES) memcpy(out, wide, count * sizeof(float));
    } else {
        uint16_t *out = (uint16_t *)task->out + to;
        put_shorts(count == LANES ? out : narrow, y);
        if (count < LANES) memcpy(out, narrow, count * sizeof(uint16_t));
    }
}

#if LANES == 16
/* `put_shorts` of two vectors, one behind the other. */
INLINE void put_pair(uint16_t *to, floats one, floats other) {
    const __m512i a = (__m512i)one, b = (__m512i)other, half = _mm512_set1_epi32(0x7fff), last = _mm512_set1_epi32(1);
    /* The upper halves of all words: 1, 3, 5, … */
    static const uint16_t halves[2 * LANES] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                               33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i high = _mm512_loadu_si512(halves);
    if (__builtin_expect(_mm512_cmp_ps_mask((__m512)one, (__m512)other, _CMP_UNORD_Q), 0)) {
        put_shorts(to, one);
        put_shorts(to + LANES, other);
        return;
    }
    const __m512i first = _mm512_add_epi32(_mm512_add_epi32(a, half), _mm512_and_si512(_mm512_srli_epi32(a, 16), last));
    const __m512i second = _mm512_add_epi32(_mm512_add_epi32(b, half), _mm512_and_si512(_mm512_srli_epi32(b, 16), last));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, high, second));
}
#endif

/* Sums over the parts, [rows][PANEL], to the output; `scaled` says that they have been multiplied with Δ_w. */
INLINE void finish_these(const int rows, const int scaled, const int gelu, const multiply_task *task, const panel *own,
                         const float *y, int64_t first, int64_t output, int64_t outputs) {
#if LANES == 16
    if (outputs == PANEL && !task->branch) {
        floats factor[VECTORS], bias[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            factor[v] = floats_at(own->scale + v * LANES);
            bias[v] = floats_at(own->bias + v * LANES);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            const int64_t to = (first + r) * task->outputs + output;
            floats one = floats_at(y + r * PANEL), other = floats_at(y + r * PANEL + LANES);
            if (!scaled) {
                one *= factor[0];
                other *= factor[1];
            }
            one += bias[0];
            other += bias[1];
            if (gelu) {
                one = gelu_tanh(one);
                other = gelu_tanh(other);
            }
            if (task->dtype == FLOAT32) {
                put_floats((float *)task->out + to, one);
                put_floats((float *)task->out + to + LANES, other);
            } else {
                put_pair((uint16_t *)task->out + to, one, other);
            }
        }
        return;
    }
#endif
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            floats total = floats_at(y + r * PANEL + v * LANES);
            if (!scaled) total *= floats_at(own->scale + v * LANES);
            if (v * LANES < outputs) finish(gelu, task, own, total, v, (first + r) * task->outputs + output, outputs);
        }
}

/* A row of a task with GELU: a function of its own, so that products without it keep their registers. */
static __attribute__((noinline)) void finish_gelu(const int scaled, const multiply_task *task, const panel *own,
                                                  const float *y, int64_t row, int64_t output, int64_t outputs) {
    if (scaled)
        finish_these(1, 1, 1, task, own, y, row, output, outputs);
    else
        finish_these(1, 0, 1, task, own, y, row, output, outputs);
}

/* The same, with GELU where the task asks for it. */
INLINE void finish_rows(const int rows, const int scaled, const multiply_task *task, const panel *own, const float *y,
                        int64_t first, int64_t output, int64_t outputs) {
    if (task->gelu)
        for (int r = 0; r < rows; r++) finish_gelu(scaled, task, own, y + r * PANEL, first + r, output, outputs);
    else
        finish_these(rows, scaled, 0, task, own, y, first, output, outputs);
}

#endif
