/* AMX tiles: their shapes, and what GCC's intrinsics leave out. */
#ifndef S2Q_TILES_H
#define S2Q_TILES_H

#if defined(__AMX_INT8__)
#include <immintrin.h>
#include <stdint.h>

/* Everything written so far is in memory: intrinsics that load a tile do not tell the compiler that they read it. */
static inline void settle(void) { __asm__ volatile("" ::: "memory"); }

/* Give tiles 0 to 7 their shapes. */
static inline void configure(const uint8_t rows[8], const uint16_t bytes[8]) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = bytes[i];
        config.rows[i] = rows[i];
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

#endif
#endif
