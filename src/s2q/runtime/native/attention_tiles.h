/* The two products of int8 attention in AMX tiles: sums of 16 keys, or channels, and 16 queries. Included by attention.c alone. */
#if defined(__AMX_INT8__)
#include "tiles.h"

enum { SIDE = 16, SPREAD = WIDE * VECTOR };

/* Quads of a product: all of them, or as many equal parts as they fit in. */
INLINE int64_t quads_at_once(int64_t quads) { return quads / ((quads + SIDE - 1) / SIDE); }

/* Tiles 0 to 3 are sums, or shares of a vector of queries; 4 keys, 5 queries, 6 values, 7 shares. */
static void start_tiles(int64_t quads) {
    const uint8_t part = (uint8_t)quads_at_once(quads);
    configure((uint8_t[8]){16, 16, 16, 16, 16, part, 16, 16}, (uint16_t[8]){64, 64, 64, 64, 4 * part, 64, 64, 64});
}

/* Σ of the products of a block of keys and all queries, 128 in each code of a query included. */
INLINE void multiply_keys(const struct attention *a, const int8_t *keys, const ints (*queries)[WIDE], ints (*sums)[WIDE]) {
    const int64_t part = quads_at_once(a->quads), row = 4 * a->quads;
    settle();
#define SUM(one, other, j)                                     \
    _tile_zero(one);                                           \
    _tile_zero(other);                                         \
    for (int64_t d = 0; d < a->quads; d += part) {             \
        _tile_loadd(4, keys + (j) * row + 4 * d, row);         \
        _tile_loadd(5, &queries[d][0], SPREAD);                \
        _tile_dpbsud(one, 4, 5);                               \
        _tile_loadd(5, &queries[d][1], SPREAD);                \
        _tile_dpbsud(other, 4, 5);                             \
    }                                                          \
    _tile_stored(one, &sums[j][0], SPREAD);                    \
    _tile_stored(other, &sums[j][1], SPREAD);
    for (int64_t j = 0; j < KEYS; j += 2 * SIDE) {
        SUM(0, 1, j)
        SUM(2, 3, j + SIDE)
    }
#undef SUM
}

/* Shares of a block into tiles, for `multiply_values`. */
INLINE void take_shares(const ints (*shares)[WIDE]) {
    settle();
    _tile_loadd(3, &shares[0][0], SPREAD);
    _tile_loadd(7, &shares[0][1], SPREAD);
}

/* Σ of the products of 16 channels of a block of values and the shares. */
INLINE void multiply_values(const int8_t *values, ints (*sums)[WIDE]) {
    _tile_loadd(6, values, KEYS);
    _tile_zero(0);
    _tile_dpbsud(0, 6, 3);
    _tile_stored(0, &sums[0][0], SPREAD);
    _tile_zero(1);
    _tile_dpbsud(1, 6, 7);
    _tile_stored(1, &sums[0][1], SPREAD);
}

#endif
