/* Ranges, grids and codes of a token's groups, each operation as s2q/runtime/reference.py defines it, and the order of tiles. */
#ifndef S2Q_ROUNDING_H
#define S2Q_ROUNDING_H

#include "lanes.h"

#if LANES == 16
INLINE __mmask16 first_lanes(int64_t count) { return count < LANES ? (__mmask16)((1 << count) - 1) : 0xffff; }
#endif

enum { INFINITE = 0x7f800000 }; /* as bits; above it are those of NaN */

/* The lowest and the highest of values and 0, or with `symmetric` only how far they go either way; *odd if one is NaN. */
INLINE void range_of(const float *part, int64_t size, const int symmetric, float *low, float *high, int *odd) {
    int32_t top = 0, bottom = 0, most = 0;
    int64_t k = 0;
#if LANES == 16
    const int64_t whole = size - size % LANES;
    const __mmask16 left = first_lanes(size - whole); /* none is read where none is left */
    if (symmetric) {
        __m512i bits = _mm512_castps_si512(_mm512_abs_ps(_mm512_maskz_loadu_ps(left, part + whole)));
        for (; k < whole; k += LANES)
            bits = _mm512_max_epi32(bits, _mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(part + k))));
        most = _mm512_reduce_max_epi32(bits);
        *odd = most > INFINITE;
        *high = float_of(most);
        *low = 0.0f;
        return;
    }
    const __m512 rest = _mm512_maskz_loadu_ps(left, part + whole);
    __m512 up = _mm512_max_ps(_mm512_setzero_ps(), rest), down = _mm512_min_ps(_mm512_setzero_ps(), rest);
    __mmask16 unordered = _mm512_cmp_ps_mask(rest, rest, _CMP_UNORD_Q);
    for (; k < whole; k += LANES) {
        const __m512 x = _mm512_loadu_ps(part + k);
        unordered |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        up = _mm512_max_ps(up, x);
        down = _mm512_min_ps(down, x);
    }
    *odd = unordered != 0;
    /* Both ends at once: the highest values in the lower half, the lowest ones, negated, in the upper. */
    down = _mm512_xor_ps(down, _mm512_set1_ps(-0.0f));
    const __m512 halves = _mm512_max_ps(_mm512_shuffle_f32x4(up, down, 0x44), _mm512_shuffle_f32x4(up, down, 0xee));
    const __m512 quarters = _mm512_max_ps(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
    const __m512 pairs = _mm512_max_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
    const __m512 ends = _mm512_max_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
    *high = _mm512_cvtss_f32(ends);
    *low = -_mm_cvtss_f32(_mm512_extractf32x4_ps(ends, 2));
    return;
#endif
    for (; k < size; k++) {
        const int32_t bits = bits_of(part[k]), magnitude = bits & 0x7fffffff, opposite = bits_of(-part[k]);
        most = magnitude > most ? magnitude : most;
        if (symmetric) continue;
        top = bits > top ? bits : top;
        bottom = opposite > bottom ? opposite : bottom;
    }
    *high = float_of(symmetric ? most : top);
    *low = symmetric ? 0.0f : -float_of(bottom);
    *odd = most > INFINITE;
}

/* Step sizes and zero points of `groups` ranges; a zero point is 0 on the symmetric grid. `odd` is NaN where a value was, else 0.
 *
 * All groups in one loop, so that the compiler takes several at a time. */
INLINE void grids(int64_t groups, const int symmetric, float largest, float smallest, float clip, const float *low,
                  const float *high, const float *odd, float *step_out, float *offset_out) {
    for (int64_t g = 0; g < groups; g++) {
        float step = symmetric ? clip * high[g] / largest : clip * (high[g] - low[g]) / (largest - smallest);
        step = step > 0.0f ? step : 1.0f;
        if (!symmetric) {
            float offset = rintf(-clip * low[g] / step) + smallest;
            offset = offset < smallest ? smallest : offset;
            offset_out[g] = offset > largest ? largest : offset;
        }
        step_out[g] = step + odd[g];
    }
}

typedef struct {
    float step, offset, taken; /* code = clamp(round(x / step) + offset) − taken */
    float smallest, largest;
    int bounded; /* quotients are below 2^31, and codes without what is taken fit int8 */
} rounding;

INLINE void round_line(const float *part, int64_t size, rounding how, int8_t *line) {
    for (int64_t k = 0; k < size; k++) {
        float code = rintf(part[k] / how.step) + how.offset;
        code = code > how.smallest ? code : how.smallest;
        code = code < how.largest ? code : how.largest;
        line[k] = (int8_t)(int32_t)(code - how.taken);
    }
}

/* A row's codes into a tile of `rows` rows: eights of columns as (0, 2, 4, 6), (1, 3, 5, 7). */
INLINE void into_tile(const int8_t *line, int64_t columns, int8_t *to, int64_t rows) {
    int64_t k = 0;
#if defined(__AVX2__)
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    for (; k + 16 <= columns; k += 16, to += 16 * rows) {
        const __m128i codes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(line + k)), order);
#define PUT(w)                                             \
    do {                                                   \
        const int32_t word = _mm_extract_epi32(codes, w);  \
        memcpy(to + 4 * rows * (w), &word, 4);             \
    } while (0)
        PUT(0);
        PUT(1);
        PUT(2);
        PUT(3);
#undef PUT
    }
#endif
    for (; k < columns; k += 8, to += 8 * rows) {
        uint64_t even, odd;
        memcpy(&even, line + k, 8);
        odd = even >> 8;
#define GATHER(value)                                              \
    value &= 0x00ff00ff00ff00ffu;                                  \
    value = (value | value >> 8) & 0x0000ffff0000ffffu;            \
    value |= value >> 16
        GATHER(even);
        GATHER(odd);
        const uint32_t first = (uint32_t)even, second = (uint32_t)odd;
        memcpy(to, &first, 4);
        memcpy(to + 4 * rows, &second, 4);
    }
}

#if LANES == 16
/* A quotient this far from a whole number may be a half. */
#define NEAR_HALF 0.4999f

typedef struct {
    __m512 step, reciprocal, offset, smallest, largest; /* all but step and reciprocal with what is taken taken off */
    __m512i offsets, lowest, highest;                   /* the same in words of 16 bits, and in bytes */
    int quick;                                          /* `bounded`, and the reciprocal is normal */
} divisor;

INLINE divisor divisor_of(rounding how) {
    const float offset = how.offset - how.taken, smallest = how.smallest - how.taken, largest = how.largest - how.taken;
    const int normal = how.step > 1e-30f && how.step < 1e30f, quick = how.bounded && normal;
    return (divisor){.step = _mm512_set1_ps(how.step),
                     .reciprocal = _mm512_set1_ps(normal ? 1.0f / how.step : 1.0f),
                     .offset = _mm512_set1_ps(offset),
                     .smallest = _mm512_set1_ps(smallest),
                     .largest = _mm512_set1_ps(largest),
                     .offsets = _mm512_set1_epi16(quick ? (int16_t)offset : 0),
                     .lowest = _mm512_set1_epi8((int8_t)smallest),
                     .highest = _mm512_set1_epi8((int8_t)largest),
                     .quick = quick};
}

/* Sixteen codes, whatever the values are. */
INLINE __m512i divided(__m512 x, const divisor *by) {
    const __m512 whole = _mm512_roundscale_ps(_mm512_div_ps(x, by->step), 8);
    /* The second operand is the result where the first is NaN. */
    const __m512 above = _mm512_max_ps(_mm512_add_ps(whole, by->offset), by->smallest);
    return _mm512_cvttps_epi32(_mm512_min_ps(above, by->largest));
}

/* 64 codes as bytes, four of each vector in turn, whatever the values are. */
static __attribute__((noinline)) __m512i divided_bytes(__m512 a, __m512 b, __m512 c, __m512 d, const divisor *by) {
    const __m512i low = _mm512_packs_epi32(divided(a, by), divided(b, by));
    return _mm512_packs_epi16(low, _mm512_packs_epi32(divided(c, by), divided(d, by)));
}

/* The same.
 *
 * A quotient below 400 and its dividend times the reciprocal differ by less than 1e-4, so they round to the same whole number
 * unless they lie that close to a half; only there, and where the reciprocal is not normal, is divided. Larger ones are
 * clamped, by packing and after it. */
INLINE __m512i bytes_of(const __m512 x[4], const divisor *by) {
    enum { GREATER_MAGNITUDE = 11 };
    __m512i codes[4];
    __m512 furthest = _mm512_setzero_ps();
    UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512 ratio = _mm512_mul_ps(x[i], by->reciprocal);
        codes[i] = _mm512_cvtps_epi32(ratio);
        furthest = _mm512_range_ps(furthest, _mm512_sub_ps(ratio, _mm512_cvtepi32_ps(codes[i])), GREATER_MAGNITUDE);
    }
    const __mmask16 close = _mm512_cmp_ps_mask(furthest, _mm512_set1_ps(NEAR_HALF), _CMP_NLE_UQ);
    if (__builtin_expect(!by->quick || close, 0)) return divided_bytes(x[0], x[1], x[2], x[3], by);
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(codes[0], codes[1]), by->offsets);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(codes[2], codes[3]), by->offsets);
    return _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(low, high), by->lowest), by->highest);
}

/* sum + the four bytes of each lane. */
INLINE __m512i add_bytes(__m512i sum, __m512i bytes) {
    const __m512i ones = _mm512_set1_epi8(1);
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sum, ones, bytes);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(ones, bytes), _mm512_set1_epi16(1)));
#endif
}

/* `round_line` for an eightfold number of columns, eights in the order of tiles, (0, 2, 4, 6), (1, 3, 5, 7), and every code
 * with `flip` flipped; `line` is written in sixty-fours. Returns the sum of the codes before that, if it is `summed`. */
INLINE int32_t round_eights(const float *part, int64_t size, rounding how, int8_t flip, const int summed, int8_t *line) {
    const divisor by = divisor_of(how);
    const __m512i flipped = _mm512_set1_epi8(flip);
    const __m512i turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < size; k += 4 * LANES) {
        const int64_t left = size - k;
        __m512 x[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            if (__builtin_expect(left >= 4 * LANES, 1))
                x[i] = _mm512_loadu_ps(part + k + i * LANES);
            else
                x[i] = _mm512_maskz_loadu_ps(left > i * LANES ? first_lanes(left - i * LANES) : 0, part + k + i * LANES);
        }
        const __m512i codes = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(turn, bytes_of(x, &by)), order);
        if (summed) {
            const __mmask64 own = left >= 4 * LANES ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
            sum = add_bytes(sum, _mm512_maskz_mov_epi8(own, codes));
        }
        _mm512_storeu_si512(line + k, _mm512_xor_si512(codes, flipped));
    }
    return summed ? _mm512_reduce_add_epi32(sum) : 0;
}

/* `rows` lines of codes in eights, `stride` apart and readable up to a multiple of 64, as a tile: words of four in turn. All TILE
 * lines are read, and what is not of the tile is not written. */
static void interleave(const int8_t *lines, int64_t stride, int64_t columns, int64_t rows, int8_t *to) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __mmask8 own = (__mmask8)((1 << rows) - 1);
    for (int64_t k = 0; k < columns; k += 64, to += 64 * rows) {
        __m512i a[TILE], b[TILE];
        UNROLL
        for (int r = 0; r < TILE; r++) a[r] = _mm512_loadu_si512(lines + r * stride + k);
        UNROLL
        for (int r = 0; r < TILE; r += 2) {
            b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
            b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
        }
        UNROLL
        for (int r = 0; r < TILE; r += 4) {
            a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
            a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
            a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
            a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
        }
        /* Lane l of a[w] and a[4 + w]: word 4 l + w of rows 0 … 3 and 4 … 7. */
        const int64_t words = (columns - k) / 4;
#define PUT(w, value) \
    if ((w) < words) _mm256_mask_storeu_epi32(to + 4 * rows * (w), own, value)
        UNROLL
        for (int w = 0; w < 4; w++) {
            const __m512i front = _mm512_permutex2var_epi64(a[w], low, a[4 + w]);
            const __m512i back = _mm512_permutex2var_epi64(a[w], high, a[4 + w]);
            PUT(w, _mm512_castsi512_si256(front));
            PUT(4 + w, _mm512_extracti64x4_epi64(front, 1));
            PUT(8 + w, _mm512_castsi512_si256(back));
            PUT(12 + w, _mm512_extracti64x4_epi64(back, 1));
        }
#undef PUT
    }
}
#endif

#endif
