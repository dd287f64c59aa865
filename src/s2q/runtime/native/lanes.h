/* What every file of the native code shares: vectors of the instruction set at hand, floats as integers, rows in tiles.
 *
 * Vectors are the compiler's own (GCC, Clang), so that +, * and & are written once; only what they cannot say is an intrinsic.
 */
#ifndef S2Q_LANES_H
#define S2Q_LANES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "compilers.h"
#include "tasks.h"

#if defined(__AVX512BW__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

#define JOIN(name, set) name##_##set
#define NAMED(name, set) JOIN(name, set)

typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));

INLINE ints ints_at(const void *from) {
    ints value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE floats floats_at(const float *from) {
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* bfloat16 values. */
INLINE floats widened_at(const uint16_t *from) {
    shorts low;
    memcpy(&low, from, sizeof low);
#if LANES == 16
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)low), 16);
#elif LANES == 8
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)low), 16);
#else
    return (floats)(__builtin_convertvector(low, words) << 16);
#endif
}

INLINE void put_floats(float *to, floats value) { memcpy(to, &value, sizeof value); }

INLINE ints all_ints(int32_t value) {
#if LANES == 16
    return (ints)_mm512_set1_epi32(value);
#elif LANES == 8
    return (ints)_mm256_set1_epi32(value);
#else
    return value - (ints){0};
#endif
}

INLINE floats all_floats(float value) {
#if LANES == 16
    return (floats)_mm512_set1_ps(value);
#elif LANES == 8
    return (floats)_mm256_set1_ps(value);
#else
    return (floats){value, value, value, value};
#endif
}

/* a · b + c, rounded once where the set can. */
INLINE floats fused(floats a, floats b, floats c) {
#if LANES == 16
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Bits of a float as an integer: ordered as the floats are where they are not negative, NaN above infinity. Their
 * maximum is found several times faster than that of floats, which compilers must take in order. */
INLINE int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float widened(uint16_t value) { return float_of((int32_t)((uint32_t)value << 16)); }

INLINE uint16_t narrowed(float value) {
    const uint32_t bits = (uint32_t)bits_of(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return value != value ? 0x7fc0u : (uint16_t)rounded;
}

/* Memory that starts at a cache line; give it back with free(*whole). */
INLINE void *aligned_memory(size_t size, void **whole) {
    *whole = malloc(size + 64);
    return *whole ? (void *)(((uintptr_t)*whole + 63) & ~(uintptr_t)63) : NULL;
}

/* Whether the product of `parts` parts of `length` columns with weights of `bits` bits takes its codes SHIFTED. */
INLINE int shifted(int64_t bits, int64_t parts, int64_t length) { return bits == 4 && parts > 1 && length % 8 == 0; }

/* Rows are shared out evenly over as few tiles of at most `tile` as hold them: the first row of tile `index`. */
INLINE int64_t tile_start(int64_t rows, int64_t tile, int64_t index) {
    const int64_t tiles = (rows + tile - 1) / tile, more = tiles ? rows % tiles : 0;
    return tiles ? index * (rows / tiles) + (index < more ? index : more) : 0;
}

/* Floats of a row in whole vectors. */
INLINE int64_t in_vectors(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

/* Columns of a group in squares, the rest zeros. */
INLINE int64_t squared(int64_t columns) { return (columns + STEP - 1) / STEP * STEP; }

/* Columns of a group in a tile: a multiple of eight, the rest zeros. */
INLINE int64_t padded(int64_t columns) { return (columns + 7) & ~(int64_t)7; }

#endif
