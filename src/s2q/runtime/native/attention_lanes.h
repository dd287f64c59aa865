/* Vectors of the instruction set at hand, and what attention.c computes in them. */
#ifndef S2Q_ATTENTION_LANES_H
#define S2Q_ATTENTION_LANES_H

#include <string.h>

#include "attention.h"
#include "compilers.h"

/* VECTOR bytes are a register; TILE keys, or channels, are summed at a time, as many as there are registers for. */
#if defined(__AVX512BW__)
#include <immintrin.h>
enum { VECTOR = 64, TILE = 8 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { VECTOR = 32, TILE = 2 };
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
enum { VECTOR = 16, TILE = 2 };
#else
enum { VECTOR = 16, TILE = 1 };
#endif

enum { LANES = VECTOR / 4, WIDE = QUERIES / LANES };

typedef float floats __attribute__((vector_size(VECTOR)));
typedef int32_t ints __attribute__((vector_size(VECTOR)));
typedef uint32_t words __attribute__((vector_size(VECTOR)));
typedef uint16_t halves __attribute__((vector_size(VECTOR)));

static const float POWERS[5] = {1.0f, 0.6930635690344632f, 0.2394567375505338f, 0.05322356574378527f, 0.006831887736586854f};
static const float SMALLEST_POWER = -126.0f;
static const float OCTAVE = 2048.0f, FURTHEST = 32767.0f;
static const uint16_t FRACTION[4] = {32640, 22574, 7539, 1286};

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

INLINE floats smaller(floats a, floats b) {
#if defined(__AVX512BW__)
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    const ints first = a < b;
    return (floats)((first & (ints)a) | (~first & (ints)b));
#endif
}

INLINE ints larger_int(ints a, ints b) {
#if defined(__AVX512BW__)
    return (ints)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ints)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    const ints first = a > b;
    return (first & a) | (~first & b);
#endif
}

/* To the nearest integer, halves to the even one; 0 to 2^22. */
INLINE ints nearest(floats x) {
#if defined(__AVX512BW__)
    return (ints)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (ints)_mm256_cvtps_epi32((__m256)x);
#else
    return (ints)(x + 12582912.0f) - 0x4b400000;  /* 1.5 · 2^23: what is added to it is rounded */
#endif
}

/* The upper halves of the products. */
INLINE halves upper(halves a, halves b) {
#if defined(__AVX512BW__)
    return (halves)_mm512_mulhi_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (halves)_mm256_mulhi_epu16((__m256i)a, (__m256i)b);
#else
    const words even = ((words)a & 0xffff) * ((words)b & 0xffff), odd = ((words)a >> 16) * ((words)b >> 16);
    return (halves)((even >> 16) | (odd & 0xffff0000u));
#endif
}

/* a >> b, b at most 15. */
INLINE halves shifted(halves a, halves b) {
#if defined(__AVX512BW__)
    return (halves)_mm512_srlv_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    const words even = (words)_mm256_srlv_epi32((__m256i)((words)a & 0xffff), (__m256i)((words)b & 0xffff));
    const words odd = (words)_mm256_srlv_epi32((__m256i)((words)a & 0xffff0000u), (__m256i)((words)b >> 16));
    return (halves)(even | (odd & 0xffff0000u));
#else
    return a >> b;
#endif
}

/* 255 · 2^(−distance / 2048) in whole numbers. */
INLINE halves shares_at(halves distance) {
    const halves part = distance << 5;
    halves value = FRACTION[2] - upper(part, (halves){0} + FRACTION[3]);
    value = FRACTION[1] - upper(part, value);
    value = FRACTION[0] - upper(part, value);
    return (shifted(value, distance >> 11) + 64) >> 7;
}

/* Shares of four keys as quads, from their distances. */
INLINE ints quads_of(const ints distance[4]) {
#if defined(__AVX512BW__)
    const halves low = shares_at((halves)_mm512_packs_epi32((__m512i)distance[0], (__m512i)distance[1]));
    const halves high = shares_at((halves)_mm512_packs_epi32((__m512i)distance[2], (__m512i)distance[3]));
    const __m512i turn = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return (ints)_mm512_shuffle_epi8(_mm512_packus_epi16((__m512i)low, (__m512i)high), turn);
#elif defined(__AVX2__)
    const halves low = shares_at((halves)_mm256_packs_epi32((__m256i)distance[0], (__m256i)distance[1]));
    const halves high = shares_at((halves)_mm256_packs_epi32((__m256i)distance[2], (__m256i)distance[3]));
    const __m256i turn = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return (ints)_mm256_shuffle_epi8(_mm256_packus_epi16((__m256i)low, (__m256i)high), turn);
#else
    const words low = (words)shares_at((halves)(distance[0] | distance[1] << 16));
    const words high = (words)shares_at((halves)(distance[2] | distance[3] << 16));
    return (ints)(((low | low >> 8) & 0xffff) | (high | high >> 8) << 16);
#endif
}

/* sum + the four unsigned bytes of each lane of `a`, times the four signed bytes of `b`. */
INLINE ints dot(ints sum, ints a, int32_t b) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, _mm512_set1_epi32(b));
#elif defined(__AVXVNNI__)
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, _mm256_set1_epi32(b));
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (ints)vusdotq_s32((int32x4_t)sum, (uint8x16_t)a, (int8x16_t)vdupq_n_s32(b));
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

/* 2^x for x <= 0. */
INLINE floats power_of_two(floats x) {
    x = larger(x, (floats){0} + SMALLEST_POWER);
    const ints whole = __builtin_convertvector(x, ints);
    const floats part = x - __builtin_convertvector(whole, floats);
    floats value = part * POWERS[4] + POWERS[3];
    value = value * part + POWERS[2];
    value = value * part + POWERS[1];
    value = value * part + POWERS[0];
    return (floats)((words)value + ((words)whole << 23));
}

INLINE int32_t quad_at(const int8_t *codes) {
    int32_t quad;
    memcpy(&quad, codes, 4);
    return quad;
}

#endif
