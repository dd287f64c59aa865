/* The most integer products this instruction set can make: out of registers and the first-level cache, for `s2q bench` to compare with.
 *
 * Operands are random bits, for AMX is slower with them than with zeros. Compiled once for each instruction set, SET.
 */
#include "panel.h"
#include "tiles.h"

enum { OPERANDS = 1024 };

static void fill(uint8_t operands[OPERANDS]) {
    uint32_t state = 1;
    for (int i = 0; i < OPERANDS; i++) {
        state = state * 1664525u + 1013904223u;
        operands[i] = (uint8_t)(state >> 24);
    }
}

/* `rounds` times some products; what they add up to is written to *out. Returns how many operations they were, an addition
 * and a multiplication each. */
int64_t NAMED(s2q_peak, SET)(int64_t rounds, int32_t *out) {
    uint8_t operands[OPERANDS] __attribute__((aligned(64)));
    fill(operands);
#if defined(__AMX_INT8__)
    int32_t sums[SIDE * SIDE];
    configure((uint8_t[8]){16, 16, 16, 16, 16, 16, 16, 16}, (uint16_t[8]){64, 64, 64, 64, 64, 64, 64, 64});
    settle();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, operands, STEP);
    _tile_loadd(5, operands, STEP);
    _tile_loadd(6, operands, STEP);
    _tile_loadd(7, operands, STEP);
    for (int64_t i = 0; i < rounds; i++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums, STEP);
    _tile_release();
    settle();
    *out = sums[0];
    return rounds * 4 * 2 * SIDE * SIDE * STEP;
#else
    ints sums[ROWS][VECTORS];
    words total = {0};
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) sums[r][v] = all_ints(0);
    for (int64_t i = 0; i < rounds; i++) {
        /* As if they were others each time: else a compiler multiplies once. */
        __asm__ volatile("" : "+m"(operands));
        ints codes[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) codes[r] = four_at((int8_t *)operands + 4 * r);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const ints weights = ints_at(operands + 64 + 4 * LANES * v);
            UNROLL
            for (int r = 0; r < ROWS; r++)
#if NARROW
                sums[r][v] = add_narrow(sums[r][v], weights, codes[r]);
#else
                sums[r][v] = dot(sums[r][v], weights, codes[r], 1);
#endif
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) total += (words)sums[r][v];
    *out = (int32_t)total[0];
    return rounds * ROWS * VECTORS * 2 * 4 * LANES;
#endif
}
