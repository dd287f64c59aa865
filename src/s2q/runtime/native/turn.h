/* Squares of words, rows to columns. */
#ifndef S2Q_TURN_H
#define S2Q_TURN_H

#include "lanes.h"

#if LANES == 16
/* Sixteen words of sixteen rows a to columns, in a as well. */
INLINE void turn(__m512i a[16]) {
    __m512i b[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    }
}

/* The same from rows `stride` bytes apart to columns `jump` bytes apart. */
static void turn_words(const uint8_t *from, int64_t stride, uint8_t *to, int64_t jump) {
    __m512i a[16];
    UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * stride);
    turn(a);
    UNROLL
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + jump * i, a[i]);
}
#endif

#endif
