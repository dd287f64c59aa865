/* The Kronecker transform of learning, P1ᵀ V P2 of every row V [n1, n2], and its gradients; compiled once for each instruction
 * set, SET.
 *
 * Some rows are taken together: one below the other they are one matrix to P2.
 */
#include "kronecker.h"

/* Floats of the rows that are taken together. */
enum { TOGETHER = 1 << 11 };
/* Sums of P1's gradient that are held in registers. */
enum { HELD_ROWS = 4 };

typedef struct {
    int64_t n1, n2, width, together; /* lines of V stand `width` floats apart, a multiple of LANES, in the buffers */
    float *memory, *next;
} folds;

static int open_folds(folds *own, int64_t n1, int64_t n2, int64_t buffers, int64_t more) {
    own->n1 = n1, own->n2 = n2, own->width = in_vectors(n2);
    own->together = TOGETHER / (n1 * own->width) + 1;
    /* Zeros, and so they stay beyond the last column. */
    own->next = own->memory = calloc(buffers * own->together * n1 * own->width + more, sizeof(float));
    return own->memory == NULL;
}

INLINE float *taken(folds *own, int64_t count) { return (own->next += count) - count; }

INLINE float *buffer(folds *own) { return taken(own, own->together * own->n1 * own->width); }

/* `lines` of n2 floats each as they stand in the buffers. */
INLINE const float *spread(const folds *own, const float *from, int64_t lines, float *to) {
    if (own->width == own->n2) return from;
    for (int64_t i = 0; i < lines; i++) memcpy(to + i * own->width, from + i * own->n2, own->n2 * sizeof(float));
    return to;
}

/* And back, if they are not where they belong. */
INLINE void gather(const folds *own, const float *from, int64_t lines, float *to) {
    for (int64_t i = 0; from != to && i < lines; i++)
        memcpy(to + i * own->n2, from + i * own->width, own->n2 * sizeof(float));
}

/* V · matrix of `lines` lines. */
INLINE void times_right(const folds *own, const float *lines_of_v, int64_t lines, const float *matrix, float *out) {
    product(lines_of_v, own->width, 1, matrix, out, lines, own->n2, own->width);
}

/* Matrix · V of `rows` rows, the matrix [n1, n1] turned or not. */
INLINE void times_left(const folds *own, const float *matrix, const int turned, const float *v, int64_t rows, float *out) {
    const int64_t n1 = own->n1, size = n1 * own->width;
    for (int64_t m = 0; m < rows; m++)
        product(matrix, turned ? 1 : n1, turned ? n1 : 1, v + m * size, out + m * size, n1, n1, own->width);
}

/* out = x (P1 ⊗ P2): x and out [rows, n1 · n2], left P1 [n1, n1], right P2 [n2, n2]. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_kronecker, SET)(const float *x, int64_t rows, int64_t n1, int64_t n2, const float *left, const float *right,
                              float *out) {
    folds own;
    if (open_folds(&own, n1, n2, 3, n2 * in_vectors(n2))) return 1;
    float *folded = buffer(&own), *middle = buffer(&own), *made = buffer(&own);
    right = spread(&own, right, n2, own.next);
    for (int64_t m = 0; m < rows; m += own.together) {
        const int64_t count = rows - m < own.together ? rows - m : own.together, lines = count * n1;
        float *to = out + m * n1 * n2, *final = own.width == n2 ? to : made;
        times_right(&own, spread(&own, x + m * n1 * n2, lines, folded), lines, right, middle);
        times_left(&own, left, 1, middle, count, final);
        gather(&own, final, lines, to);
    }
    free(own.memory);
    return 0;
}

/* sums[i][j] += Σ over rows of the products of line i of `one` and line j of `other`, vectors of partial sums. */
INLINE void line_dots(const folds *own, const int rows, const int columns, const float *one, const float *other, int64_t count,
                      int64_t from, int64_t to, float *sums) {
    const int64_t size = own->n1 * own->width;
    floats total[HELD_ROWS][HELD_ROWS];
    UNROLL
    for (int i = 0; i < rows; i++)
        UNROLL
        for (int j = 0; j < columns; j++) total[i][j] = floats_at(sums + ((from + i) * own->n1 + to + j) * LANES);
    for (int64_t m = 0; m < count; m++)
        for (int64_t k = 0; k < own->width; k += LANES) {
            floats lines[HELD_ROWS];
            UNROLL
            for (int j = 0; j < columns; j++) lines[j] = floats_at(other + m * size + (to + j) * own->width + k);
            UNROLL
            for (int i = 0; i < rows; i++) {
                const floats line = floats_at(one + m * size + (from + i) * own->width + k);
                UNROLL
                for (int j = 0; j < columns; j++) total[i][j] = fused(line, lines[j], total[i][j]);
            }
        }
    UNROLL
    for (int i = 0; i < rows; i++)
        UNROLL
        for (int j = 0; j < columns; j++) put_floats(sums + ((from + i) * own->n1 + to + j) * LANES, total[i][j]);
}

static void all_line_dots(const folds *own, const float *one, const float *other, int64_t count, float *sums) {
    for (int64_t i = 0; i < own->n1;) {
        const int64_t high = i + HELD_ROWS <= own->n1 ? HELD_ROWS : 1;
        for (int64_t j = 0; j < own->n1;) {
            const int64_t wide = j + HELD_ROWS <= own->n1 ? HELD_ROWS : 1;
            if (high == 1 && wide == 1)
                line_dots(own, 1, 1, one, other, count, i, j, sums);
            else if (high == 1)
                line_dots(own, 1, HELD_ROWS, one, other, count, i, j, sums);
            else if (wide == 1)
                line_dots(own, HELD_ROWS, 1, one, other, count, i, j, sums);
            else
                line_dots(own, HELD_ROWS, HELD_ROWS, one, other, count, i, j, sums);
            j += wide;
        }
        i += high;
    }
}

/* Its gradients: to x [rows, n1 · n2], if `to_x`; if `to_left`, those of these rows to left [n1, n1] and right [n2, n2]. */
int NAMED(s2q_kronecker_back, SET)(const float *gradient, const float *x, int64_t rows, int64_t n1, int64_t n2,
                                   const float *left, const float *right, float *to_x, float *to_left, float *to_right) {
    folds own;
    const int64_t square = n2 * in_vectors(n2);
    if (open_folds(&own, n1, n2, 5, 4 * square + n1 * n1 * LANES)) return 1;
    float *folded = buffer(&own), *above = buffer(&own), *middle = buffer(&own), *behind = buffer(&own), *made = buffer(&own);
    float *sums = taken(&own, n1 * n1 * LANES), *part = taken(&own, square), *total = taken(&own, square);
    float *turned = taken(&own, square);
    for (int64_t i = 0; i < n2; i++)
        for (int64_t k = 0; k < n2; k++) turned[k * own.width + i] = right[i * n2 + k];
    right = spread(&own, right, n2, own.next);
    for (int64_t m = 0; m < rows; m += own.together) {
        const int64_t count = rows - m < own.together ? rows - m : own.together, lines = count * n1;
        const float *given = spread(&own, gradient + m * n1 * n2, lines, above);
        times_left(&own, left, 0, given, count, behind);
        if (to_left) {
            const float *v = spread(&own, x + m * n1 * n2, lines, folded);
            times_right(&own, v, lines, right, middle);
            all_line_dots(&own, middle, given, count, sums);
            product(v, 1, own.width, behind, part, n2, lines, own.width);
            for (int64_t i = 0; i < square; i++) total[i] += part[i];
        }
        if (to_x) {
            float *to = to_x + m * n1 * n2, *final = own.width == n2 ? to : made;
            times_right(&own, behind, lines, turned, final);
            gather(&own, final, lines, to);
        }
    }
    for (int64_t i = 0; to_left && i < n1 * n1; i++) {
        to_left[i] = 0.0f;
        for (int k = 0; k < LANES; k++) to_left[i] += sums[i * LANES + k];
    }
    if (to_left) gather(&own, total, n2, to_right);
    free(own.memory);
    return 0;
}
