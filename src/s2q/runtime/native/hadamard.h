/* Blocks of a Hadamard matrix: sums and differences of neighbours first, then of pairs, fours, …, and a factor at last. */
#ifndef S2Q_HADAMARD_H
#define S2Q_HADAMARD_H

#include "lanes.h"

/* Vectors of a block that stay in registers. */
enum { HELD = 8 };

#if LANES > 4
/* Lane i of the result is lane i ^ step. */
INLINE floats swapped(floats x, const int step) {
#if LANES == 16
    const __m512 from = (__m512)x;
    if (step == 1) return (floats)_mm512_permute_ps(from, 0xb1);
    if (step == 2) return (floats)_mm512_permute_ps(from, 0x4e);
    return (floats)(step == 4 ? _mm512_shuffle_f32x4(from, from, 0xb1) : _mm512_shuffle_f32x4(from, from, 0x4e));
#else
    const __m256 from = (__m256)x;
    if (step == 1) return (floats)_mm256_permute_ps(from, 0xb1);
    return (floats)(step == 2 ? _mm256_permute_ps(from, 0x4e) : _mm256_permute2f128_ps(from, from, 1));
#endif
}

/* Sums and differences of lanes `step` apart: a product with ±1 is exact, so each is rounded once. */
INLINE floats mixed(floats x, const int step) {
    floats sign;
    for (int i = 0; i < LANES; i++) sign[i] = i & step ? -1.0f : 1.0f;
    return fused(x, sign, swapped(x, step));
}
#endif

/* `count` vectors at `row`, all stages within them. */
INLINE void mix_held(float *row, const int count, floats factor) {
    floats x[HELD];
    UNROLL
    for (int i = 0; i < count; i++) x[i] = floats_at(row + i * LANES);
#if LANES > 4
    UNROLL
    for (int i = 0; i < count; i++) {
        x[i] = mixed(mixed(x[i], 1), 2);
        x[i] = mixed(x[i], 4);
#if LANES == 16
        x[i] = mixed(x[i], 8);
#endif
    }
#endif
    UNROLL
    for (int step = 1; step < count; step *= 2)
        UNROLL
        for (int i = 0; i < count; i++)
            if (!(i & step)) {
                const floats one = x[i], other = x[i + step];
                x[i] = one + other;
                x[i + step] = one - other;
            }
    UNROLL
    for (int i = 0; i < count; i++) put_floats(row + i * LANES, x[i] * factor);
}

/* One block, in place. */
INLINE void mix(float *part, int64_t block, float factor) {
    int64_t step = 1;
#if LANES > 4
    /* What follows the stages in registers does not want the factor yet. */
    const floats last = all_floats(block <= HELD * LANES ? factor : 1.0f);
    if (block == LANES) mix_held(part, 1, last);
    if (block == 2 * LANES) mix_held(part, 2, last);
    if (block == 4 * LANES) mix_held(part, 4, last);
    for (int64_t k = 0; block >= HELD * LANES && k < block; k += HELD * LANES) mix_held(part + k, HELD, last);
    if (block >= LANES && block <= HELD * LANES) return;
    if (block > HELD * LANES) step = HELD * LANES;
#endif
    for (; step < block; step *= 2)
        for (int64_t k = 0; k < block; k += 2 * step)
            for (int64_t i = k; i < k + step; i++) {
                const float one = part[i], other = part[i + step];
                part[i] = one + other;
                part[i + step] = one - other;
            }
    for (int64_t k = 0; k < block; k++) part[k] *= factor;
}

/* All blocks of `columns` values, in place. */
static void hadamard_blocks(float *row, int64_t columns, int64_t block) {
    const float factor = (float)(1.0 / sqrt((double)block));
    for (int64_t k = 0; k < columns; k += block) mix(row + k, block, factor);
}

#endif
