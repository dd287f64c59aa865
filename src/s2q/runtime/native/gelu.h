/* GELU by tanh of a vector, the same bits on every instruction set; `gelu_tanh` of s2q/runtime/reference.py. */
#ifndef S2Q_GELU_H
#define S2Q_GELU_H

#include "lanes.h"

/* 2^x for −1/2 <= x <= 1/2: a polynomial of relative error 9e-8. */
static const float POWERS[5] = {0.6931470036506653f, 0.24022242426872253f, 0.05550733581185341f, 0.009671512991189957f,
                                0.001326472731307149f};
/* 2 · √(2/π) · log2 e, and that times 0.044715. */
static const float SLOPE = 2.302208198144325f, CUBIC = 0.10294323958002354f;
static const float FURTHEST = 126.0f;    /* powers from 2^-126 to 2^126 are normal floats */
static const float ROUNDING = 12582912.0f; /* 1.5 · 2^23: what is added to it is rounded to a whole number */

INLINE floats between(floats x, floats least, floats most) {
#if LANES == 16
    return (floats)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)least), (__m512)most);
#elif LANES == 8
    return (floats)_mm256_min_ps(_mm256_max_ps((__m256)x, (__m256)least), (__m256)most);
#else
    /* NaN becomes `least`, as there. */
    const words above = (words)(x > least), x1 = ((words)x & above) | ((words)least & ~above);
    const words below = (words)((floats)x1 < most);
    return (floats)((x1 & below) | ((words)most & ~below));
#endif
}

/* y (1 + tanh(√(2/π) (y + 0.044715 y³))) / 2 = y / (1 + 2^−t), t = y (SLOPE + CUBIC y²). */
INLINE floats gelu_tanh(floats y) {
    const floats exponent = between(y * (-SLOPE - CUBIC * (y * y)), all_floats(-FURTHEST), all_floats(FURTHEST));
    const floats rounded = exponent + ROUNDING, part = exponent - (rounded - ROUNDING);
    floats power = part * POWERS[4] + POWERS[3];
    power = power * part + POWERS[2];
    power = power * part + POWERS[1];
    power = power * part + POWERS[0];
    power = power * part + 1.0f;
    power = (floats)((words)power + ((words)rounded << 23));
    return y / (1.0f + power);
}

#endif
