/* Vectors of the instruction set at hand, and what attention.c computes in them. */
#ifndef S2Q_ATTENTION_LANES_H
#define S2Q_ATTENTION_LANES_H

#include <string.h>

#include "attention.h"

/* VECTOR bytes are a register; TILE keys, or channels, are summed at a time, as many as there are registers for. */
#if defined(__AVX512BW__)
#include <immintrin.h>
enum { VECTOR = 64, TILE = 8 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { VECTOR = 32, TILE = 2 };
#else
enum { VECTOR = 16, TILE = 1 };
#endif

#define INLINE static inline __attribute__((always_inline))

enum { LANES = VECTOR / 4, WIDE = QUERIES / LANES };

typedef float floats __attribute__((vector_size(VECTOR)));
typedef int32_t ints __attribute__((vector_size(VECTOR)));
typedef uint32_t words __attribute__((vector_size(VECTOR)));

static const float POWERS[5] = {1.0f, 0.6930635690344632f, 0.2394567375505338f, 0.05322356574378527f, 0.006831887736586854f};
static const float SMALLEST_POWER = -126.0f;

INLINE floats larger(floats a, floats b) {
#if defined(__AVX512BW__)
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const ints first = a > b;
    return (floats)((first & (ints)a) | (~first & (ints)b));
#endif
}

/* sum + the four unsigned bytes of each lane of `a`, times the four signed bytes of `b`. */
INLINE ints dot(ints sum, ints a, int32_t b) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, _mm512_set1_epi32(b));
#else
    /* Bytes 0 and 2, then 1 and 3, as pairs of 16 bits: exact, where 8 bits at a time would saturate. */
    const int32_t even = (int32_t)(((uint32_t)(int32_t)(int8_t)b & 0xffffu) | ((uint32_t)(int8_t)(b >> 16) << 16));
    const int32_t odd = (int32_t)(((uint32_t)(int32_t)(int8_t)(b >> 8) & 0xffffu) | ((uint32_t)(int8_t)(b >> 24) << 16));
    const ints low = a & 0x00ff00ff, high = (a >> 8) & 0x00ff00ff;
#if defined(__AVX512BW__)
    sum += (ints)_mm512_madd_epi16((__m512i)low, _mm512_set1_epi32(even));
    return sum + (ints)_mm512_madd_epi16((__m512i)high, _mm512_set1_epi32(odd));
#elif defined(__AVX2__)
    sum += (ints)_mm256_madd_epi16((__m256i)low, _mm256_set1_epi32(even));
    return sum + (ints)_mm256_madd_epi16((__m256i)high, _mm256_set1_epi32(odd));
#else
    sum += (low & 0xffff) * (int32_t)(int16_t)even + (low >> 16) * (even >> 16);
    return sum + (high & 0xffff) * (int32_t)(int16_t)odd + (high >> 16) * (odd >> 16);
#endif
#endif
}

/* factor · 2^x for x <= 0. */
INLINE floats power_of_two(floats x, float factor) {
    x = larger(x, (floats){0} + SMALLEST_POWER);
    const ints whole = __builtin_convertvector(x, ints);
    const floats part = x - __builtin_convertvector(whole, floats);
    floats value = part * (factor * POWERS[4]) + factor * POWERS[3];
    value = value * part + factor * POWERS[2];
    value = value * part + factor * POWERS[1];
    value = value * part + factor * POWERS[0];
    return (floats)((words)value + ((words)whole << 23));
}

INLINE int32_t quad_at(const int8_t *codes) {
    int32_t quad;
    memcpy(&quad, codes, 4);
    return quad;
}

#endif
