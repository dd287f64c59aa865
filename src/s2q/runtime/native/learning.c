/* The passes over all values that learning makes at every step: rounding on each group's own grid, its gradient, Hadamard blocks,
 * gradients of channel scales.
 *
 * Values are those of s2q/numerics/straight_through.py and hadamard.py bit for bit, gradients the same on every instruction set;
 * compiled once for each, SET.
 */
#include "hadamard.h"
#include "rounding.h"

/* Sums of a group go to this many partial ones in turn, whatever the width of a vector. */
enum { PARTIAL = 16 };

typedef struct {
    float step, offset; /* code = clamp(round(x / step) + offset), value = (code − offset) · step */
    float low, high;    /* the range; on the symmetric grid how far it goes either way, in `high` */
    float smallest, largest;
} own_grid;

INLINE own_grid grid_of(const float *x, int64_t size, float clip, int bits, const int symmetric) {
    own_grid own = {.smallest = -(float)(1 << (bits - 1)), .largest = (float)((1 << (bits - 1)) - 1)};
    int unordered;
    range_of(x, size, symmetric, &own.low, &own.high, &unordered);
    const float odd = unordered ? NAN : 0.0f;
    grids(1, symmetric, own.largest, own.smallest, clip, &own.low, &own.high, &odd, &own.step, &own.offset);
    return own;
}

INLINE void round_group(const float *x, int64_t size, float clip, int bits, const int symmetric, float *out) {
    const own_grid own = grid_of(x, size, clip, bits, symmetric);
    for (int64_t k = 0; k < size; k++) {
        float code = rintf(x[k] / own.step);
        if (!symmetric) code += own.offset;
        code = code < own.smallest ? own.smallest : code;
        code = code > own.largest ? own.largest : code;
        if (!symmetric) code -= own.offset;
        out[k] = code * own.step;
    }
}

/* Add `share` to the gradient of the values that are `end`, in equal parts; returns 0 if there are none. */
INLINE int add_to_end(const float *x, int64_t size, float end, float share, float *passed) {
    int32_t there = 0;
    for (int64_t k = 0; k < size; k++) there += x[k] == end;
    if (!there) return 0;
    const float part = share / (float)there;
    for (int64_t k = 0; k < size; k++) passed[k] += x[k] == end ? part : 0.0f;
    return 1;
}

/* What passes to x, and what the factor on the range receives. */
INLINE float round_back(const float *gradient, const float *x, int64_t size, float clip, int bits, const int symmetric,
                        float *passed) {
    const own_grid own = grid_of(x, size, clip, bits, symmetric);
    float partial[PARTIAL] = {0.0f};
    int64_t k = 0;
#define PASS(i)                                                                           \
    {                                                                                     \
        const float ratio = x[k + (i)] / own.step, code = rintf(ratio) + own.offset;      \
        float whole = code < own.smallest ? own.smallest : code;                          \
        whole = whole > own.largest ? own.largest : whole;                                \
        const float through = whole == code ? gradient[k + (i)] : 0.0f;                   \
        passed[k + (i)] = through;                                                        \
        partial[i] += (whole - own.offset) * gradient[k + (i)] - ratio * through;         \
    }
    for (; k + PARTIAL <= size; k += PARTIAL)
        for (int i = 0; i < PARTIAL; i++) PASS(i)
    for (int i = 0; k + i < size; i++) PASS(i)
#undef PASS
    for (int half = PARTIAL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) partial[i] += partial[i + half];
    const float span = symmetric ? own.high : own.high - own.low;
    const float steps = symmetric ? own.largest : own.largest - own.smallest;
    /* Groups of zeros have a step of 1, whatever their range. */
    const float to_step = span * clip > 0.0f ? partial[0] : 0.0f, share = to_step * clip / steps;
    if (!symmetric) {
        add_to_end(x, size, own.high, share, passed);
        add_to_end(x, size, own.low, -share, passed);
    } else if (!add_to_end(x, size, own.high, share, passed)) {
        add_to_end(x, size, -own.high, -share, passed);
    }
    return to_step * span / steps;
}

/* Round groups [groups, size], each on its own grid; `clip` [groups] is a factor on their ranges. */
void NAMED(s2q_round_groups, SET)(const float *x, int64_t groups, int64_t size, const float *clip, int bits, int symmetric,
                                  float *out) {
    for (int64_t g = 0; g < groups; g++, x += size, out += size)
        if (symmetric)
            round_group(x, size, clip[g], bits, 1, out);
        else
            round_group(x, size, clip[g], bits, 0, out);
}

/* Its gradients: `passed` [groups, size] to x, `to_clip` [groups] to the factors. */
void NAMED(s2q_round_groups_back, SET)(const float *gradient, const float *x, int64_t groups, int64_t size, const float *clip,
                                       int bits, int symmetric, float *passed, float *to_clip) {
    for (int64_t g = 0; g < groups; g++, gradient += size, x += size, passed += size)
        if (symmetric)
            to_clip[g] = round_back(gradient, x, size, clip[g], bits, 1, passed);
        else
            to_clip[g] = round_back(gradient, x, size, clip[g], bits, 0, passed);
}

/* Blocks [blocks, block] of `x`, mixed. */
void NAMED(s2q_mix_blocks, SET)(const float *x, int64_t blocks, int64_t block, float *out) {
    const float factor = (float)(1.0 / sqrt((double)block));
    for (int64_t b = 0; b < blocks; b++, x += block, out += block) {
        memcpy(out, x, block * sizeof(float));
        mix(out, block, factor);
    }
}

/* Sums over rows of products of two [rows, width], of columns [first, last). */
void NAMED(s2q_column_dots, SET)(const float *one, const float *other, int64_t rows, int64_t width, int64_t first, int64_t last,
                                 float *out) {
    for (int64_t k = first; k < last; k++) out[k] = 0.0f;
    for (int64_t m = 0; m < rows; m++, one += width, other += width)
        for (int64_t k = first; k < last; k++) out[k] += one[k] * other[k];
}
