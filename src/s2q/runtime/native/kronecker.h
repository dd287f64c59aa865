/* The small float products of the Kronecker transform: sums in order of the columns, fused where the set can. */
#ifndef S2Q_KRONECKER_H
#define S2Q_KRONECKER_H

#include "lanes.h"

/* Rows and vectors of a block of the transform that stay in registers. */
#if LANES == 16
enum { BLOCK_ROWS = 8, BLOCK_VECTORS = 3 };
#else
enum { BLOCK_ROWS = 4, BLOCK_VECTORS = 2 };
#endif

INLINE void block(const int rows, const int vectors, const float *a, int64_t a_row, int64_t a_depth, const float *b,
                  float *c, int64_t width, int64_t depth) {
    floats sums[BLOCK_ROWS][BLOCK_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) sums[r][v] = all_floats(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        floats right[BLOCK_VECTORS];
        UNROLL
        for (int v = 0; v < vectors; v++) right[v] = floats_at(b + k * width + v * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const floats left = all_floats(a[r * a_row + k * a_depth]);
            UNROLL
            for (int v = 0; v < vectors; v++) sums[r][v] = fused(left, right[v], sums[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) put_floats(c + r * width + v * LANES, sums[r][v]);
}

#define FOR_VECTORS(rows, vectors)                                                   \
    switch (vectors) {                                                               \
        case 1: block(rows, 1, a, a_row, a_depth, b, c, width, depth); break;        \
        case 2: block(rows, 2, a, a_row, a_depth, b, c, width, depth); break;        \
        default: block(rows, BLOCK_VECTORS, a, a_row, a_depth, b, c, width, depth);  \
    }

static void any_block(int rows, int vectors, const float *a, int64_t a_row, int64_t a_depth, const float *b, float *c,
                      int64_t width, int64_t depth) {
    switch (rows) {
        case 1: FOR_VECTORS(1, vectors) break;
        case 2: FOR_VECTORS(2, vectors) break;
        case 3: FOR_VECTORS(3, vectors) break;
#if LANES == 16
        case 4: FOR_VECTORS(4, vectors) break;
        case 5: FOR_VECTORS(5, vectors) break;
        case 6: FOR_VECTORS(6, vectors) break;
        case 7: FOR_VECTORS(7, vectors) break;
#endif
        default: FOR_VECTORS(BLOCK_ROWS, vectors) break;
    }
}

/* c [rows, width] = a [rows, depth] · b [depth, width]; a's strides are free, width is a multiple of LANES. */
static void product(const float *a, int64_t a_row, int64_t a_depth, const float *b, float *c, int64_t rows, int64_t depth,
                    int64_t width) {
    const int64_t vectors = width / LANES, strips = (vectors + BLOCK_VECTORS - 1) / BLOCK_VECTORS;
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t from = vectors * strip / strips, to = vectors * (strip + 1) / strips;
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
            const int own = rows - r < BLOCK_ROWS ? (int)(rows - r) : BLOCK_ROWS;
            any_block(own, (int)(to - from), a + r * a_row, a_row, a_depth, b + from * LANES,
                      c + r * width + from * LANES, width, depth);
        }
    }
}

#endif
