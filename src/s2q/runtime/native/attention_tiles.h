/* The two products of int8 attention in AMX tiles: sums of 16 keys, or channels, and 16 queries. Included by attention.c alone. */
#if defined(__AMX_INT8__)
#include "tiles.h"

/* AT_ONCE channels are multiplied before any of their sums is looked at: a tile is long on its way. */
enum { SIDE = 16, AT_ONCE = 4 * SIDE, SPREAD = WIDE * VECTOR };

/* Quads of a product: all of them, or as many equal parts as they fit in. */
INLINE int64_t quads_at_once(int64_t quads) { return quads / ((quads + SIDE - 1) / SIDE); }

/* Tiles 0 to 3 are sums, 4 keys, 5 queries, 6 values, 7 shares of a vector of queries. */
static void start_tiles(int64_t quads) {
    const uint8_t part = (uint8_t)quads_at_once(quads);
    configure((uint8_t[8]){16, 16, 16, 16, 16, part, 16, 16}, (uint16_t[8]){64, 64, 64, 64, 4 * part, 64, 64, 64});
}

/* Σ of the products of a block of keys and all queries. */
INLINE void multiply_keys(const struct attention *a, const int8_t *keys, const ints (*queries)[WIDE], ints (*sums)[WIDE]) {
    const int64_t part = quads_at_once(a->quads), row = 4 * a->quads;
    settle();
#define SUM(one, other, j)                                     \
    _tile_zero(one);                                           \
    _tile_zero(other);                                         \
    for (int64_t d = 0; d < a->quads; d += part) {             \
        _tile_loadd(4, keys + (j) * row + 4 * d, row);         \
        _tile_loadd(5, &queries[d][0], SPREAD);                \
        _tile_dpbssd(one, 4, 5);                               \
        _tile_loadd(5, &queries[d][1], SPREAD);                \
        _tile_dpbssd(other, 4, 5);                             \
    }                                                          \
    _tile_stored(one, &sums[j][0], SPREAD);                    \
    _tile_stored(other, &sums[j][1], SPREAD);
    for (int64_t j = 0; j < KEYS; j += 2 * SIDE) {
        SUM(0, 1, j)
        SUM(2, 3, j + SIDE)
    }
#undef SUM
}

/* Σ of the products of the shares of a vector of queries and up to 64 channels of a block of values. */
INLINE void multiply_values(const int8_t *values, int64_t channels, const ints (*shares)[WIDE], ints *sums) {
    _tile_loadd(7, shares, SPREAD);
#define MULTIPLY(tile)                                     \
    if (channels > SIDE * (tile)) {                        \
        _tile_zero(tile);                                  \
        _tile_loadd(6, values + SIDE * KEYS * (tile), KEYS); \
        _tile_dpbsud(tile, 6, 7);                          \
    }
#define STORE(tile) \
    if (channels > SIDE * (tile)) _tile_stored(tile, sums + SIDE * (tile), VECTOR);
    MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3)
    STORE(0) STORE(1) STORE(2) STORE(3)
#undef STORE
#undef MULTIPLY
}

#endif
