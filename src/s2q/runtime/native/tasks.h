/* The arguments of a call, each 64 bits wide, in the order in which library.py packs them. Addresses may be 0 where said. */
#ifndef S2Q_TASKS_H
#define S2Q_TASKS_H

#include <stdint.h>

enum { FLOAT32 = 0, BFLOAT16 = 1 };
/* Orders of the codes: as they come, and in tiles as product.c reads them; SHIFTED with 128 added, so that they are unsigned;
 * SQUARES as squares.h reads them. */
enum { NATURAL = 0, TILES = 1, SHIFTED = 2, SQUARES = 3 };
/* Most rows of a tile: SHIFTED ones are smaller, for their product keeps float sums in registers too. */
enum { TILE = 8, SHIFTED_TILE = 6 };
/* Rows and columns of a square, and its bytes; squares are always whole, what is beyond the last row or column is zeros. */
enum { SIDE = 16, STEP = 64, SQUARE = SIDE * STEP };

/* M rows (tokens), K columns, N outputs, G groups of the tokens, P groups of the product: the most of tokens and weight. */
typedef struct {
    int64_t dtype;        /* of x: FLOAT32 or BFLOAT16 */
    int64_t rows, columns;
    int64_t groups;       /* G */
    int64_t parts;        /* P, a multiple of G */
    int64_t n1, n2;       /* of the Kronecker transform, or 0 */
    int64_t block;        /* of the Hadamard transform, or 0 */
    int64_t bits;
    int64_t layout;
    const void *x;        /* [M, K] */
    const float *channel; /* [K] or 0: multiplied first */
    const float *left;    /* [n1, n1] or 0: the Kronecker transform, with */
    const float *right;   /* [n2, n2] */
    const float *clip;    /* [1] or 0: factor on the range */
    const float *range;   /* [2] or 0: lowest and highest value, instead of each token's own */
    int8_t *codes;        /* [M, K], in tiles [M, P · padded(K / P)], in SQUARES both rounded up to whole ones */
    float *scale;         /* [M, G] */
    float *zero;          /* [M, G], or 0 for the symmetric grid */
    int32_t *sums;        /* [M, P]: sums of (code − zero), in TILES only */
    float *values;        /* [M, K] or 0: the transformed tokens */
} quantize_task;

typedef struct {
    int64_t rows, columns, outputs;
    int64_t groups;        /* G: 1 or P */
    int64_t parts;         /* P */
    int64_t words;         /* of 4 bytes, in a row of `packed` */
    int64_t bits;
    int64_t weight_groups; /* 1 or P */
    int64_t dtype;         /* of out */
    int64_t gelu;          /* 1: GELU by tanh of the output, 0: none */
    int64_t layout;        /* of the codes: SHIFTED where lanes.h says so, SQUARES where the set has them, else TILES */
    const int8_t *codes;   /* zero points taken off unless `zero` is there */
    const float *scale;    /* [M, G] */
    const float *zero;     /* [M, G] or 0: zero points that are still in the codes */
    const int32_t *sums;   /* [M, P] of codes in TILES */
    const uint8_t *packed; /* [N, words · 4 bytes] */
    const float *weight_scale;   /* [N, weight_groups] */
    const uint32_t *weight_zero; /* [⌈N · bits / 32⌉, weight_groups] or 0 */
    const void *bias;            /* [N] or 0 */
    int64_t bias_dtype;
    const float *branch;   /* [M, N] or 0: added before the bias */
    void *out;             /* [M, N] */
} multiply_task;

#endif
