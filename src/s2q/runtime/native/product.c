/* The integer product: coded tokens in tiles times packed weights, with groups, zero points, bias and rounding of the output.
 *
 *   y = Σ_p float(Σ_k c_k u_k − v · Σ_k c_k) · Δ_a · Δ_w + branch + bias
 *
 * where c are the codes of the tokens without their zero point, u = w + 2^(b−1) the weight's codes as they are packed, and
 * v = z_w + 2^(b−1). The inner sum is exact in int32 and equals Σ (a − z_a)(w − z_w), so these are the bits of
 * s2q/runtime/reference.py: every float operation in its order, each rounded. Codes of 8 bits keep their zero point, which
 * z_a · Σ_k (u_k − v) = z_a · Σ_k u_k − z_a · v · K takes off; sums[] holds Σ (a − z_a), so that only z_a · Σ_k u_k is left to do.
 *
 * Weights are read as they are stored. PANEL outputs at a time are brought into the order of the vector registers, in a
 * scratch of the size of a cache: 4-bit ones by moving words of eight codes, unpacked in registers (low nibbles are columns
 * 0, 2, 4, 6 of eight, high ones 1, 3, 5, 7); others, and groups that are no multiple of eight, as bytes.
 */
#include "lanes.h"
#include "tasks.h"

enum { PANEL = 32, VECTORS = PANEL / LANES };
/* Rows of a tile whose sums stay in registers. */
#if LANES == 16
enum { ROWS = 8 };
#elif LANES == 8
enum { ROWS = 2 };
#else
enum { ROWS = 1 };
#endif
/* Bytes of codes that panels pass over before the next ones are taken, and the fewest rows of such a block. */
enum { BLOCK = 1 << 20, BLOCK_LEAST = 512 };

/* sum + Σ of the four products of unsigned bytes u and signed bytes c in each lane. `small` says that u < 128. */
INLINE ints dot(ints sum, ints u, ints c, const int small) {
#if defined(__AVX512VNNI__)
    (void)small;
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)c);
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

typedef struct {
    uint8_t *weights;   /* [eights of columns][PANEL] words, or [eights][2][PANEL] words of bytes */
    float *scale;       /* [weight_groups][PANEL] */
    int32_t *offset;    /* v: [weight_groups or 1][PANEL] */
    int32_t *sums;      /* Σ u: [parts][PANEL] */
    float *bias;        /* [PANEL] */
    int64_t eights;     /* of columns in a part */
    int nibbles, offsets_in_groups;
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

/* Words of sixteen rows, from rows `stride` bytes apart to columns PANEL words apart. */
#if LANES == 16
static void turn_words(const uint8_t *from, int64_t stride, uint8_t *to) {
    __m512i a[16], b[16];
    UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * stride);
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
        _mm512_storeu_si512(to + 4 * PANEL * i, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + 4 * PANEL * (i + 8), _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
}
#endif

/* 4-bit codes of `outputs` rows: word w of row n to word (w, n) of the panel. */
static void take_nibbles(const uint8_t *rows, int64_t stride, int64_t count, int64_t outputs, uint8_t *to) {
    int64_t n = 0;
#if LANES == 16
    for (; n + 16 <= outputs; n += 16) {
        int64_t w = 0;
        for (; w + 16 <= count; w += 16) turn_words(rows + n * stride + 4 * w, stride, to + 4 * (w * PANEL + n));
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
    for (int64_t i = 0; i < outputs; i++) {
        const uint8_t *stream = task->packed + (first + i) * row;
        for (int64_t p = 0; p < task->parts; p++)
            for (int64_t e = 0; e < own->eights; e++) {
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

INLINE ints weights_at(const uint8_t *eight, int half, int v, const int nibbles) {
    if (!nibbles) return ints_at(eight + 4 * PANEL * half + 4 * LANES * v);
    const ints both = ints_at(eight + 4 * LANES * v);
    return (half ? both >> 4 : both) & 0x0f0f0f0f;
}

INLINE void add_up(panel *own, int64_t parts, const int nibbles) {
    const int64_t size = nibbles ? 4 * PANEL : 8 * PANEL;
    for (int64_t p = 0; p < parts; p++)
        for (int v = 0; v < VECTORS; v++) {
            ints sum = all_ints(0);
            for (int64_t e = 0; e < own->eights; e++)
                for (int half = 0; half < 2; half++) {
                    const ints u = weights_at(own->weights + size * (p * own->eights + e), half, v, nibbles);
                    sum = dot(sum, u, all_ints(0x01010101), nibbles);
                }
            memcpy(own->sums + p * PANEL + v * LANES, &sum, sizeof sum);
        }
}

/* Everything about outputs [first, first + outputs) into the panel; outputs beyond are zeros. */
static void take_panel(const multiply_task *task, int64_t first, int64_t outputs, panel *own) {
    const int64_t groups = task->weight_groups, row = task->words * 4;
    const int64_t eights = own->eights * task->parts;
    if (outputs < PANEL) memset(own->weights, 0, (own->nibbles ? 4 : 8) * PANEL * eights);
    if (own->nibbles)
        take_nibbles(task->packed + first * row, row, eights, outputs, own->weights);
    else
        take_bytes(task, first, outputs, own);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < PANEL; i++)
            own->scale[g * PANEL + i] = i < outputs ? task->weight_scale[(first + i) * groups + g] : 0.0f;
    for (int64_t g = 0; g < (own->offsets_in_groups ? groups : 1); g++)
        for (int64_t i = 0; i < PANEL; i++)
            own->offset[g * PANEL + i] = !task->weight_zero ? 1 << (task->bits - 1)
                                         : i < outputs ? zero_at(task->weight_zero, groups, g, first + i, task->bits)
                                                       : 0;
    for (int64_t i = 0; i < PANEL; i++) {
        float value = 0.0f;
        if (task->bias && i < outputs)
            value = task->bias_dtype == FLOAT32 ? ((const float *)task->bias)[first + i]
                                                : widened(((const uint16_t *)task->bias)[first + i]);
        own->bias[i] = value;
    }
    if (!task->zero) return;
    if (own->nibbles)
        add_up(own, task->parts, 1);
    else
        add_up(own, task->parts, 0);
}

INLINE void put_shorts(uint16_t *to, floats value) {
    words bits;
    memcpy(&bits, &value, sizeof bits);
    const words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, odd = (words)(value != value);
    const shorts narrow = __builtin_convertvector((rounded & ~odd) | (odd & 0x7fc0u), shorts);
    memcpy(to, &narrow, sizeof narrow);
}

/* Vector v of the panel's part of a row, of which `outputs` values are wanted, to position `at` of the output. */
INLINE void finish(const multiply_task *task, const panel *own, floats y, int v, int64_t at, int64_t outputs) {
    const int64_t left = outputs - v * LANES, count = left < LANES ? left : LANES, to = at + v * LANES;
    float wide[LANES];
    uint16_t narrow[LANES];
    if (task->branch) {
        memcpy(wide, task->branch + to, count * sizeof(float));
        y += floats_at(wide);
    }
    if (task->bias) y += floats_at(own->bias + v * LANES);
    if (task->dtype == FLOAT32) {
        float *out = (float *)task->out + to;
        put_floats(count == LANES ? out : wide, y);
        if (count < LANES) memcpy(out, wide, count * sizeof(float));
    } else {
        uint16_t *out = (uint16_t *)task->out + to;
        put_shorts(count == LANES ? out : narrow, y);
        if (count < LANES) memcpy(out, narrow, count * sizeof(uint16_t));
    }
}

/* `rows` rows of a tile of `high` rows, from row `first` of all, times the panel; `codes` are the first of these rows.
 * `single` says that there is one part. */
INLINE void multiply_rows(const int rows, const int nibbles, const int single, const multiply_task *task,
                          const panel *own, const int8_t *codes, int64_t high, int64_t first, int64_t output,
                          int64_t outputs) {
    float y[ROWS][PANEL];
    const uint8_t *weights = own->weights;
    const int64_t parts = single ? 1 : task->parts, step = 4 * high;
    if (!single)
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) put_floats(&y[r][v * LANES], all_floats(-0.0f));
    for (int64_t p = 0; p < parts; p++) {
        ints sums[ROWS][VECTORS];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) sums[r][v] = all_ints(0);
        for (int64_t e = 0; e < own->eights; e++) {
            UNROLL
            for (int half = 0; half < 2; half++) {
                UNROLL
                for (int v = 0; v < VECTORS; v++) {
                    const ints u = weights_at(weights, half, v, nibbles);
                    UNROLL
                    for (int r = 0; r < rows; r++) {
                        int32_t four;
                        memcpy(&four, codes + 4 * r, 4);
                        sums[r][v] = dot(sums[r][v], u, all_ints(four), nibbles);
                    }
                }
                codes += step;
            }
            weights += nibbles ? 4 * PANEL : 8 * PANEL;
        }
        const int64_t at = task->groups == 1 ? 0 : p, column = task->weight_groups == 1 ? 0 : p;
        const float *scale = own->scale + column * PANEL;
        const int32_t *offset = own->offset + (own->offsets_in_groups ? column * PANEL : 0);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const int64_t m = first + r;
            const ints sum = all_ints(task->sums[m * parts + p]);
            const floats delta = all_floats(task->scale[m * task->groups + at]);
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                ints total = sums[r][v] - ints_at(offset + v * LANES) * sum;
                if (task->zero)
                    total -= ints_at(own->sums + p * PANEL + v * LANES) *
                             all_ints((int32_t)task->zero[m * task->groups + at]);
                const floats part = __builtin_convertvector(total, floats) * delta * floats_at(scale + v * LANES);
                if (!single)
                    put_floats(&y[r][v * LANES], floats_at(&y[r][v * LANES]) + part);
                else if (v * LANES < outputs)
                    finish(task, own, part, v, m * task->outputs + output, outputs);
            }
        }
    }
    if (single) return;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS && v * LANES < outputs; v++)
            finish(task, own, floats_at(&y[r][v * LANES]), v, (first + r) * task->outputs + output, outputs);
}

#define MULTIPLY_ROWS(rows, nibbles, single) \
    multiply_rows(rows, nibbles, single, task, own, codes, high, first, output, outputs)
#define CASE(rows)                                                          \
    case rows:                                                              \
        if (own->nibbles && task->parts == 1)                               \
            MULTIPLY_ROWS(rows, 1, 1);                                      \
        else if (own->nibbles)                                              \
            MULTIPLY_ROWS(rows, 1, 0);                                      \
        else                                                                \
            MULTIPLY_ROWS(rows, 0, 0);                                      \
        break;

static void multiply_tile(const multiply_task *task, const panel *own, const int8_t *codes, int64_t high, int64_t first,
                          int64_t output, int64_t outputs) {
    for (int64_t r = 0; r < high; r += ROWS, first += ROWS, codes += 4 * ROWS)
        switch (high - r < ROWS ? high - r : ROWS) {
            CASE(1)
#if LANES >= 8
            CASE(2)
#endif
#if LANES == 16
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
            CASE(7)
            CASE(8)
#endif
        }
}

/* Outputs of panels [panel_first, panel_last), rows of tiles [tile_first, tile_last). Returns 0, or 1 if there is no memory. */
int NAMED(s2q_multiply, SET)(const multiply_task *task, int64_t panel_first, int64_t panel_last, int64_t tile_first,
                             int64_t tile_last) {
    const int64_t parts = task->parts, length = task->columns / parts, wide = padded(length), row = parts * wide;
    panel own = {.eights = wide / 8, .nibbles = task->bits == 4 && length % 8 == 0};
    own.offsets_in_groups = task->weight_zero && task->weight_groups > 1;
    const int64_t groups = task->weight_groups, bytes = (own.nibbles ? 4 : 8) * PANEL * own.eights * parts;
    void *whole;
    own.weights = aligned_memory(bytes + 4 * PANEL * (2 * groups + parts + 1), &whole);
    if (!own.weights) return 1;
    own.scale = (float *)(own.weights + bytes);
    own.offset = (int32_t *)(own.scale + groups * PANEL);
    own.sums = own.offset + groups * PANEL;
    own.bias = (float *)(own.sums + parts * PANEL);
    int64_t block = BLOCK / row > BLOCK_LEAST ? BLOCK / row / TILE : BLOCK_LEAST / TILE;
    const int64_t blocks = (tile_last - tile_first + block - 1) / block;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t from = tile_first + (tile_last - tile_first) * b / blocks;
        const int64_t to = tile_first + (tile_last - tile_first) * (b + 1) / blocks;
        for (int64_t p = panel_first; p < panel_last; p++) {
            const int64_t output = p * PANEL, outputs = task->outputs - output < PANEL ? task->outputs - output : PANEL;
            take_panel(task, output, outputs, &own);
            for (int64_t t = from; t < to; t++) {
                const int64_t first = tile_start(task->rows, t), high = tile_start(task->rows, t + 1) - first;
                multiply_tile(task, &own, task->codes + first * row, high, first, output, outputs);
            }
        }
    }
    free(whole);
    return 0;
}
