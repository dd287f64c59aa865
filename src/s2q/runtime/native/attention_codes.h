/* From floats to int8 codes, row by row; included where SET names the instruction set. */
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define JOIN(name, set) name##_##set
#define NAMED(name, set) JOIN(name, set)

/* How many rows early a row is asked for. */
enum { AHEAD = 8 };

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline uint16_t narrowed(float value) {
    const uint32_t bits = bits_of(value);
    return value != value ? 0x7fc0u : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline void load(float *restrict row, const void *restrict x, int64_t at, int64_t columns, int dtype) {
    if (dtype == FLOAT32)
        memcpy(row, (const float *)x + at, columns * sizeof(float));
    else
        for (int64_t k = 0; k < columns; k++) row[k] = float_of((uint32_t)((const uint16_t *)x)[at + k] << 16);
}

/* Ask for a row early: rows of one head lie pages apart, where no prefetcher of the CPU follows. */
static inline void expect(const void *x, int64_t at, int64_t columns, int dtype) {
    const int64_t size = dtype == FLOAT32 ? 4 : 2;
    for (int64_t byte = 0; byte < columns * size; byte += 64) __builtin_prefetch((const char *)x + at * size + byte);
}

static inline float magnitude(const float *row, int64_t columns) {
    uint32_t most = 0;  /* magnitudes are ordered as their bits are, NaN above infinity */
    for (int64_t k = 0; k < columns; k++) {
        const uint32_t bits = bits_of(row[k]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return float_of(most);
}

/* The larger of two magnitudes; NaN is larger than any. */
static inline float largest(float a, float b) { return bits_of(a) > bits_of(b) ? a : b; }

static inline float step_of(float most) {
    const float step = most / 127.0f;
    return !(most <= 3.402823466e38f) ? NAN : step > 0.0f ? step : 1.0f;
}

static inline int8_t rounded(float value) {
    value = rintf(value);
    value = value > -127.0f ? value : -127.0f;  /* NaN too: its step is NaN */
    return (int8_t)(int32_t)(value < 127.0f ? value : 127.0f);
}

/* Codes of one row; returns their sum. */
static inline int32_t round_row(const float *restrict row, int64_t columns, float step, int8_t *restrict codes) {
    int32_t sum = 0;
    for (int64_t k = 0; k < columns; k++) {
        codes[k] = rounded(row[k] / step);
        sum += codes[k];
    }
    return sum;
}

static inline void subtract(float *restrict row, const float *restrict mean, int64_t columns) {
    for (int64_t k = 0; k < columns; k++) row[k] -= mean[k];
}
