/* Packed weights as squares for AMX: nibbles unpacked, less their offset, four columns of an output side by side. */
#ifndef S2Q_WEIGHT_SQUARES_H
#define S2Q_WEIGHT_SQUARES_H

#include "panel.h"

#if defined(__AMX_INT8__)

/* Where words of eight nibbles begin in a row of the weight, and how many of them there are in a square, at most eight. */
typedef struct {
    int64_t part, word, count;
} place;

INLINE place place_of(const multiply_task *task, int64_t steps, int64_t square) {
    const int64_t eights = task->columns / task->parts / 8, part = square / steps;
    const int64_t word = square % steps * 8, left = eights - word;
    return (place){part, part * eights + word, left < 8 ? left : 8};
}

/* Nibbles of eight words of sixteen outputs, less their offset, as a square. What a square has beyond its columns may be anything:
 * there the tokens are zeros. */
INLINE void put_square(const __m512i *words, __m512i off, int8_t *to) {
    const __m512i low = _mm512_set1_epi32(0x0f0f0f0f);
    UNROLL
    for (int e = 0; e < 8; e++) {
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(words[e], 4), low);
        _mm512_storeu_si512(to + 2 * e * STEP, _mm512_sub_epi8(_mm512_and_si512(words[e], low), off));
        _mm512_storeu_si512(to + (2 * e + 1) * STEP, _mm512_sub_epi8(odd, off));
    }
}

/* The nibbles of outputs [first, first + outputs) as squares [parts · steps][VECTORS], two at a time: a row of
 * those is four columns of sixteen outputs. */
static void take_squares(const multiply_task *task, int64_t steps, const panel *side, int64_t first, int64_t outputs,
                         int8_t *weights) {
    const int64_t count = task->parts * steps, jump = side->offsets_in_groups ? PANEL : 0;
    for (int v = 0; v < VECTORS; v++) {
        const int32_t *offset = side->offset + v * LANES;
        for (int64_t s = 0; s < count; s += 2) {
            const place one = place_of(task, steps, s);
            const place other = s + 1 < count ? place_of(task, steps, s + 1) : (place){0, 0, 0};
            const __mmask8 there = (__mmask8)((1u << one.count) - 1), also = (__mmask8)((1u << other.count) - 1);
            __m512i words[16];
            UNROLL
            for (int i = 0; i < SIDE; i++) {
                /* Outputs beyond the last are it once more, and never asked for. */
                const int64_t n = v * LANES + i < outputs ? v * LANES + i : outputs - 1;
                const uint8_t *row = task->packed + (first + n) * task->words * 4;
                const __m256i front = _mm256_maskz_loadu_epi32(there, row + 4 * one.word);
                const __m256i back = _mm256_maskz_loadu_epi32(also, row + 4 * other.word);
                words[i] = _mm512_inserti64x4(_mm512_castsi256_si512(front), back, 1);
            }
            turn(words);
            int8_t *to = weights + (s * VECTORS + v) * SQUARE;
            put_square(words, _mm512_loadu_si512(offset + one.part * jump), to);
            if (other.count) put_square(words + 8, _mm512_loadu_si512(offset + other.part * jump), to + VECTORS * SQUARE);
        }
    }
}

#endif
#endif
