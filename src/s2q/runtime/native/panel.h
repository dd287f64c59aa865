/* PANEL outputs of a packed weight in the order of the vector registers, in a scratch of the size of a cache.
 *
 * Weights are read as they are stored and brought into that order at each pass over the rows. 4-bit ones by moving words of
 * eight codes: low nibbles are columns 0, 2, 4, 6 of eight, high ones 1, 3, 5, 7. Others, and groups that are no multiple of
 * eight, as bytes.
 *
 * Nibbles become bytes in the panel, once for all rows. With IN_REGISTERS they stay, and are unpacked for each tile of rows:
 * half the scratch, and free on processors that have ports for it beside those of the products. Where it shares theirs, as on
 * Intel's, it takes a seventh of the time of products of many rows; for one row or a few spreading costs more than it saves.
 */
#ifndef S2Q_PANEL_H
#define S2Q_PANEL_H

#include "lanes.h"
#include "tasks.h"
#include "turn.h"

#ifndef IN_REGISTERS
#define IN_REGISTERS 0
#endif

/* Without VNNI, products of nibbles are summed in 16 bits before they are in 32, as many as fit: this many eights with codes of
 * either sign, 16 · 15 · 128, or unsigned ones, 8 · 15 · 255, which pays only where there are many registers. */
#if LANES >= 8 && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
#define NARROW 1
#else
#define NARROW 0
#endif
enum { NARROW_EIGHTS = 4, NARROW_SHIFTED_EIGHTS = LANES == 16 ? 2 : 0 };

/* Outputs of a panel, of which UNIT hold a whole number. With 16 registers and products that take one of their own, half as
 * many outputs leave room for more rows, so that the panel comes from the cache less often. */
enum { UNIT = 32, PANEL = LANES == 8 && NARROW ? 16 : UNIT, VECTORS = PANEL / LANES };

/* Rows of a tile whose sums stay in registers. */
#if LANES == 16
#define ROWS 8
#elif LANES == 8
#define ROWS (NARROW ? 4 : 3)
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define ROWS 3
#else
#define ROWS 1
#endif

/* sum + Σ of the four products of unsigned bytes u and signed bytes c in each lane. `small` says that u < 128 or |c| < 64. */
INLINE ints dot(ints sum, ints u, ints c, const int small) {
#if defined(__AVX512VNNI__)
    (void)small;
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)c);
#elif defined(__AVXVNNI__)
    (void)small;
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)c);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    (void)small;
    return (ints)vusdotq_s32((int32x4_t)sum, (uint8x16_t)u, (int8x16_t)c);
#elif LANES == 4
    (void)small;
    UNROLL
    for (int byte = 0; byte < 32; byte += 8) sum += (u >> byte & 255) * ((c << (24 - byte)) >> 24);
    return sum;
#else
    /* Pairs are summed in 16 bits: 2 · 127 · 128 fits, and so does the highest bit's own product. */
#if LANES == 16
#define PAIRS(u) (ints) _mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)(u), (__m512i)c), _mm512_set1_epi16(1))
#else
#define PAIRS(u) (ints) _mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(u), (__m256i)c), _mm256_set1_epi16(1))
#endif
    if (small) return sum + PAIRS(u);
    return sum + PAIRS(u & 0x7f7f7f7f) + PAIRS(u & (int32_t)0x80808080);
#endif
}

#if NARROW
/* sum + u · c in pairs of 16 bits, until they are `widened`. */
INLINE ints add_narrow(ints sum, ints u, ints c) {
#if LANES == 16
    sum = (ints)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)u, (__m512i)c));
#else
    sum = (ints)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)u, (__m256i)c));
#endif
    __asm__("" : "+v"(sum)); /* or compilers add up products first, and run out of registers for them */
    return sum;
}

/* The sums of both halves of each lane. */
INLINE ints widened_pairs(ints sum) {
#if LANES == 16
    return (ints)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#else
    return (ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#endif
}
#endif

typedef struct {
    uint8_t *weights;   /* [eights of columns][2][PANEL] words of bytes, or [eights][PANEL] words of nibbles */
    float *scale;       /* [weight_groups][PANEL] */
    int32_t *offset;    /* v: [weight_groups or 1][PANEL], in each of the four bytes if `shifted` */
    int32_t *sums;      /* Σ u, or Σ (u − v) if `shifted`: [parts][PANEL] */
    float *bias;        /* [PANEL] */
    int64_t eights;     /* of columns in a part */
    int nibbles, shifted, scales_in_groups, offsets_in_groups;
} panel;

/* Code `index` of a stream of codes, as it is packed. */
INLINE uint32_t code_at(const uint8_t *stream, int64_t index, int64_t bits) {
    const int64_t bit = index * bits, byte = bit >> 3, at = bit & 7;
    uint32_t value = stream[byte];
    if (at + bits > 8) value |= (uint32_t)stream[byte + 1] << 8;
    return value >> at & ((1u << bits) - 1);
}

/* Code n of column g of zero points, which are packed along n: words [·, groups]. */
static int32_t zero_at(const uint32_t *packed, int64_t groups, int64_t g, int64_t n, int64_t bits) {
    const int64_t bit = n * bits, word = bit >> 5, at = bit & 31;
    uint64_t value = packed[word * groups + g];
    if (at + bits > 32) value |= (uint64_t)packed[(word + 1) * groups + g] << 32;
    return (int32_t)(value >> at & ((1u << bits) - 1));
}

#if LANES == 16
/* `take_bytes` of sixteen rows of 8-bit codes, 64 columns at a time: returns the eights done. */
static int64_t turn_bytes(const uint8_t *from, int64_t stride, int64_t eights, uint8_t *to) {
    /* Bytes of a word as (0, 2, 1, 3). */
    const __m512i order = _mm512_set4_epi32(0x0f0d0e0c, 0x0b090a08, 0x07050604, 0x03010200);
    const __m512i low = _mm512_set1_epi32(0xffff);
    int64_t e = 0;
    for (; e + 8 <= eights; e += 8) {
        uint8_t turned[16 * 64];
        turn_words(from + 8 * e, stride, turned, 64);
        for (int i = 0; i < 8; i++) {
            const __m512i first = _mm512_shuffle_epi8(_mm512_loadu_si512(turned + 128 * i), order);
            const __m512i second = _mm512_shuffle_epi8(_mm512_loadu_si512(turned + 128 * i + 64), order);
            uint8_t *eight = to + 8 * PANEL * (e + i);
            _mm512_storeu_si512(eight, _mm512_or_si512(_mm512_and_si512(first, low), _mm512_slli_epi32(second, 16)));
            _mm512_storeu_si512(eight + 4 * PANEL,
                                _mm512_or_si512(_mm512_srli_epi32(first, 16), _mm512_andnot_si512(low, second)));
        }
    }
    return e;
}
#endif

/* 4-bit codes of `outputs` rows: word w of row n to word (w, n) of the panel. */
static void take_nibbles(const uint8_t *rows, int64_t stride, int64_t count, int64_t outputs, uint8_t *to) {
    int64_t n = 0;
#if LANES == 16
    for (; n + 16 <= outputs; n += 16) {
        int64_t w = 0;
        for (; w + 16 <= count; w += 16) turn_words(rows + n * stride + 4 * w, stride, to + 4 * (w * PANEL + n), 4 * PANEL);
        for (; w < count; w++)
            for (int64_t i = n; i < n + 16; i++) memcpy(to + 4 * (w * PANEL + i), rows + i * stride + 4 * w, 4);
    }
#endif
    for (int64_t from = 0; from < count; from += 16)
        for (int64_t i = n; i < outputs; i++)
            for (int64_t w = from; w < count && w < from + 16; w++)
                memcpy(to + 4 * (w * PANEL + i), rows + i * stride + 4 * w, 4);
}

/* Any codes: eight columns of row n to bytes (0, 2, 4, 6) of word (eight, 0, n) and (1, 3, 5, 7) of word (eight, 1, n). */
static void take_bytes(const multiply_task *task, int64_t first, int64_t outputs, panel *own) {
    const int64_t bits = task->bits, length = task->columns / task->parts, row = task->words * 4;
    const uint32_t mask = (1u << bits) - 1;
    int64_t done = 0, whole = 0; /* eights of all parts in the first `done` rows */
#if LANES == 16
    if (bits == 8 && length % 8 == 0)
        for (; done + 16 <= outputs; done += 16)
            whole = turn_bytes(task->packed + (first + done) * row, row, own->eights * task->parts,
                               own->weights + 4 * done);
#endif
    for (int64_t i = 0; i < outputs; i++) {
        const uint8_t *stream = task->packed + (first + i) * row;
        for (int64_t p = 0; p < task->parts; p++)
            for (int64_t e = 0; e < own->eights; e++) {
                if (i < done && p * own->eights + e < whole) continue;
                uint8_t *to = own->weights + 8 * PANEL * (p * own->eights + e) + 4 * i;
                const int64_t k = p * length + 8 * e, left = length - 8 * e, at = (k * bits) >> 3;
                uint8_t codes[8] = {0};
                if (left >= 8 && (k * bits & 7) == 0 && at + 8 <= row) {
                    uint64_t word;
                    memcpy(&word, stream + at, 8);
                    UNROLL
                    for (int j = 0; j < 8; j++) codes[j] = (uint8_t)(word >> (j * bits) & mask);
                } else {
                    for (int64_t j = 0; j < 8 && j < left; j++) codes[j] = (uint8_t)code_at(stream, k + j, bits);
                }
                UNROLL
                for (int j = 0; j < 8; j++) to[4 * PANEL * (j & 1) + (j >> 1)] = codes[j];
            }
    }
}

/* Bytes of eight columns of the panel. */
INLINE int64_t eight_bytes(const int nibbles) { return (nibbles && IN_REGISTERS ? 4 : 8) * PANEL; }

/* Columns 0, 2, 4, 6 of eight nibbles, or 1, 3, 5, 7. */
INLINE ints unpacked(ints both, int half) { return (half ? both >> 4 : both) & 0x0f0f0f0f; }

/* Codes without their offset, signed. */
INLINE ints without(ints u, ints offset) { return (ints)((bytes)u - (bytes)offset); }

/* Four columns of a row, to all lanes. */
INLINE ints four_at(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, 4);
    return all_ints(four);
}

INLINE ints weights_at(const uint8_t *eight, int half, int v, const int nibbles) {
    if (nibbles && IN_REGISTERS) return unpacked(ints_at(eight + 4 * LANES * v), half);
    return ints_at(eight + 4 * PANEL * half + 4 * LANES * v);
}

/* Those of a `shifted` panel, u − v. */
INLINE ints differences_at(const uint8_t *eight, int half, int v, ints offset) {
    const ints value = weights_at(eight, half, v, 1);
    return IN_REGISTERS ? without(value, offset) : value;
}

/* Nibbles at the front of the panel to bytes all over it, u or, if `shifted`, u − v. */
static void spread(panel *own, int64_t eights) {
    for (int64_t e = eights; e-- > 0;) {
        const int32_t *offset = own->offset + (own->offsets_in_groups ? e / own->eights * PANEL : 0);
        ints both[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) both[v] = ints_at(own->weights + 4 * PANEL * e + 4 * LANES * v);
        UNROLL
        for (int half = 0; half < 2; half++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                ints value = unpacked(both[v], half);
                if (own->shifted) value = without(value, ints_at(offset + v * LANES));
                memcpy(own->weights + 8 * PANEL * e + 4 * PANEL * half + 4 * LANES * v, &value, sizeof value);
            }
    }
}

INLINE void add_up(panel *own, int64_t parts, const int nibbles) {
    const int64_t size = eight_bytes(nibbles);
    for (int64_t p = 0; p < parts; p++)
        for (int v = 0; v < VECTORS; v++) {
            ints sum = all_ints(0);
            const int32_t *offset = own->offset + (own->offsets_in_groups ? p * PANEL : 0) + v * LANES;
            for (int64_t e = 0; e < own->eights; e++)
                for (int half = 0; half < 2; half++) {
                    const uint8_t *eight = own->weights + size * (p * own->eights + e);
                    if (own->shifted)
                        sum = dot(sum, all_ints(0x01010101), differences_at(eight, half, v, ints_at(offset)), 1);
                    else
                        sum = dot(sum, weights_at(eight, half, v, nibbles), all_ints(0x01010101), nibbles);
                }
            memcpy(own->sums + p * PANEL + v * LANES, &sum, sizeof sum);
        }
}

/* Scales, offsets and bias of outputs [first, first + outputs) into the panel. */
static void take_sides(const multiply_task *task, int64_t first, int64_t outputs, panel *own) {
    const int64_t groups = task->weight_groups;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < PANEL; i++)
            own->scale[g * PANEL + i] = i < outputs ? task->weight_scale[(first + i) * groups + g] : 0.0f;
    for (int64_t g = 0; g < (own->offsets_in_groups ? groups : 1); g++)
        for (int64_t i = 0; i < PANEL; i++) {
            int32_t offset = 1 << (task->bits - 1);
            if (task->weight_zero) offset = i < outputs ? zero_at(task->weight_zero, groups, g, first + i, task->bits) : 0;
            own->offset[g * PANEL + i] = own->shifted ? offset * 0x01010101 : offset;
        }
    for (int64_t i = 0; i < PANEL; i++) {
        float value = -0.0f; /* which changes nothing */
        if (task->bias && i < outputs)
            value = task->bias_dtype == FLOAT32 ? ((const float *)task->bias)[first + i]
                                                : widened(((const uint16_t *)task->bias)[first + i]);
        own->bias[i] = value;
    }
}

/* Everything about outputs [first, first + outputs) into the panel; outputs beyond are zeros. */
static void take_panel(const multiply_task *task, int64_t first, int64_t outputs, panel *own) {
    const int64_t row = task->words * 4, eights = own->eights * task->parts;
    if (outputs < PANEL) memset(own->weights, 0, eight_bytes(own->nibbles) * eights);
    if (own->nibbles)
        take_nibbles(task->packed + first * row, row, eights, outputs, own->weights);
    else
        take_bytes(task, first, outputs, own);
    take_sides(task, first, outputs, own);
    if (own->nibbles && !IN_REGISTERS) spread(own, eights);
    if (!task->zero && !own->shifted) return;
    if (own->nibbles)
        add_up(own, task->parts, 1);
    else
        add_up(own, task->parts, 0);
}

#endif
