/* Random shapes and schemes through every instruction set of this machine, for the sanitizers: each set must give the bits of the
 * baseline, from memory of exactly the size it is promised. Takes the number of rounds; prints how many it did. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tasks.h"

int s2q_use(const char *);
const char *s2q_set_name(int);
int s2q_quantize(const quantize_task *, int64_t, int64_t);
int64_t s2q_peak(int64_t, int32_t *);
int s2q_multiply(const multiply_task *, int64_t, int64_t, int64_t, int64_t);
void s2q_round_groups(const float *, int64_t, int64_t, const float *, int, int, float *);
void s2q_round_groups_back(const float *, const float *, int64_t, int64_t, const float *, int, int, float *, float *);
void s2q_mix_blocks(const float *, int64_t, int64_t, float *);
void s2q_column_dots(const float *, const float *, int64_t, int64_t, int64_t, int64_t, float *);
int s2q_kronecker(const float *, int64_t, int64_t, int64_t, const float *, const float *, float *);
int s2q_kronecker_back(const float *, const float *, int64_t, int64_t, int64_t, const float *, const float *, float *, float *,
                       float *);

static uint64_t state = 1;

static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int64_t one_of(const int64_t *values, int count) { return values[next() % count]; }
#define ONE_OF(...) one_of((const int64_t[]){__VA_ARGS__}, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static void *filled(size_t size) {
    uint8_t *memory = malloc(size ? size : 1);
    for (size_t i = 0; i < size; i++) memory[i] = (uint8_t)next();
    return memory;
}

static float *floats(size_t count) {
    float *memory = malloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++) memory[i] = (float)(int)(next() % 2001) / 1000.0f - 1.0f;
    return memory;
}

static int round_trip(void) {
    const int64_t rows = ONE_OF(1, 2, 7, 8, 9, 17, 90), outputs = ONE_OF(1, 31, 32, 33, 70);
    const int64_t parts = ONE_OF(1, 1, 2, 3), length = ONE_OF(1, 5, 8, 16, 40, 64, 136, 192), columns = parts * length;
    const int64_t groups = next() % 2 ? parts : 1, weight_groups = groups == 1 ? parts : next() % 2 ? parts : 1;
    const int64_t bits = ONE_OF(4, 6, 7, 8), weight_bits = ONE_OF(2, 3, 4, 4, 5, 8);
    const int64_t wide = parts * ((length + 7) / 8 * 8), words = (columns * weight_bits + 31) / 32;
    const int symmetric = next() % 2, narrow = next() % 2, kronecker = next() % 3 == 0;
    const int64_t blocks = next() % 3 ? 0 : columns & -columns;
    const int shifted = weight_bits == 4 && parts > 1 && length % 8 == 0;
    const int64_t size = narrow ? 2 : 4, panels = (outputs + 31) / 32;
    const int squares = weight_bits == 4 && (symmetric || bits < 8) && length % 8 == 0;
    float *x = floats(rows * columns), *channel = floats(columns), *left = floats(parts * parts);
    float *right = floats(length * length), *branch = floats(rows * outputs), *bias = floats(outputs);
    float *weight_scale = floats(outputs * weight_groups), clip = 0.9f;
    uint16_t *low = malloc(rows * columns * 2);
    for (int64_t i = 0; i < rows * columns; i++) {
        uint32_t word;
        memcpy(&word, &x[i], 4);
        low[i] = (uint16_t)(word >> 16);
    }
    uint8_t *packed = filled(outputs * words * 4);
    uint32_t *weight_zero = filled((outputs * weight_bits + 31) / 32 * weight_groups * 4);
    const int with_zero = next() % 2, with_bias = next() % 2, with_branch = next() % 2, gelu = next() % 2;
    void *first = NULL;
    int failed = 0;
    for (int set = 0; s2q_set_name(set); set++) {
        s2q_use(s2q_set_name(set));
        const int64_t layout = squares && !strcmp(s2q_set_name(set), "AMX") ? SQUARES : shifted ? SHIFTED : TILES;
        const int64_t high = layout == SQUARES ? SIDE : layout == SHIFTED ? SHIFTED_TILE : TILE;
        const int64_t tiles = (rows + high - 1) / high;
        int8_t *codes = malloc(layout == SQUARES ? tiles * SIDE * parts * ((length + STEP - 1) / STEP * STEP) : rows * wide);
        float *scale = malloc(rows * groups * 4), *zero = malloc(rows * groups * 4), *values = malloc(rows * columns * 4);
        int32_t *sums = malloc(rows * parts * 4);
        void *out = malloc(rows * outputs * size);
        const quantize_task coded = {
            .dtype = narrow, .rows = rows, .columns = columns, .groups = groups, .parts = parts,
            .n1 = kronecker ? parts : 0, .n2 = kronecker ? length : 0, .block = blocks, .bits = bits,
            .layout = layout,
            .x = narrow ? (void *)low : x, .channel = channel, .left = kronecker ? left : NULL, .right = right,
            .clip = &clip, .codes = codes, .scale = scale, .zero = symmetric ? NULL : zero, .sums = sums,
            .values = values};
        failed |= s2q_quantize(&coded, 0, tiles);
        const multiply_task product = {
            .rows = rows, .columns = columns, .outputs = outputs, .groups = groups, .parts = parts, .words = words,
            .bits = weight_bits, .weight_groups = weight_groups, .dtype = narrow, .gelu = gelu, .layout = layout, .codes = codes, .scale = scale,
            .zero = symmetric || bits < 8 ? NULL : zero, .sums = sums, .packed = packed, .weight_scale = weight_scale,
            .weight_zero = with_zero ? weight_zero : NULL, .bias = with_bias ? bias : NULL,
            .branch = with_branch ? branch : NULL, .out = out};
        failed |= s2q_multiply(&product, 0, panels, 0, tiles);
        /* Sums of the transform are fused where the set can, so their last bits may differ. */
        if (!first)
            first = out;
        else {
            failed |= !kronecker && memcmp(first, out, rows * outputs * size) != 0;
            free(out);
        }
        free(codes), free(scale), free(zero), free(values), free(sums);
    }
    free(first), free(x), free(channel), free(left), free(right), free(branch), free(bias), free(weight_scale);
    free(low), free(packed), free(weight_zero);
    return failed;
}

/* The passes of learning; the Kronecker transform alone may differ. */
static int learning_trip(void) {
    const int64_t rows = ONE_OF(1, 2, 7, 40), n1 = ONE_OF(1, 3, 4, 10, 17), n2 = ONE_OF(1, 5, 8, 16, 20, 33), columns = n1 * n2;
    const int64_t size = rows * columns, block = columns & -columns;
    const int bits = (int)ONE_OF(2, 4, 6, 8), symmetric = next() % 2, to_x = next() % 2, to_left = !to_x || next() % 2;
    float *x = floats(size), *gradient = floats(size), *clip = floats(rows), *left = floats(n1 * n1), *right = floats(n2 * n2);
    float *first = NULL;
    int failed = 0;
    for (int set = 0; s2q_set_name(set); set++) {
        s2q_use(s2q_set_name(set));
        float *found = malloc((3 * size + rows + columns) * sizeof(float));
        float *transformed = malloc(size * sizeof(float)), *back = to_x ? malloc(size * sizeof(float)) : NULL;
        float *to_n1 = to_left ? malloc(n1 * n1 * sizeof(float)) : NULL, *to_n2 = to_left ? malloc(n2 * n2 * sizeof(float)) : NULL;
        s2q_round_groups(x, rows, columns, clip, bits, symmetric, found);
        s2q_round_groups_back(gradient, x, rows, columns, clip, bits, symmetric, found + size, found + 3 * size);
        s2q_mix_blocks(x, size / block, block, found + 2 * size);
        s2q_column_dots(x, gradient, rows, columns, 0, columns / 2, found + 3 * size + rows);
        s2q_column_dots(x, gradient, rows, columns, columns / 2, columns, found + 3 * size + rows);
        failed |= s2q_kronecker(x, rows, n1, n2, left, right, transformed);
        failed |= s2q_kronecker_back(gradient, x, rows, n1, n2, left, right, back, to_n1, to_n2);
        free(transformed), free(back), free(to_n1), free(to_n2);
        if (!first)
            first = found;
        else {
            failed |= memcmp(first, found, (3 * size + rows + columns) * sizeof(float)) != 0;
            free(found);
        }
    }
    free(first), free(x), free(gradient), free(clip), free(left), free(right);
    return failed;
}

int main(int count, char **arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 100;
    for (int i = 0; i < rounds; i++)
        if (round_trip() || learning_trip()) {
            printf("round %d: an instruction set differs from the baseline\n", i);
            return 1;
        }
    int32_t sum;
    for (int set = 0; s2q_set_name(set); set++) {
        s2q_use(s2q_set_name(set));
        if (s2q_peak(3, &sum) <= 0) return 1;
    }
    printf("%d rounds\n", rounds);
    return 0;
}
