/* The library's interface: each call goes to the code for one instruction set, the best this machine has unless told otherwise. */
#ifdef AMX
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <string.h>

#include "machine.h"
#include "tasks.h"
#include "team.h"

#define API __attribute__((visibility("default")))

typedef struct {
    const char *name;
    int needs; /* of machine.h */
    int (*quantize)(const quantize_task *, int64_t, int64_t);
    int (*multiply)(const multiply_task *, int64_t, int64_t, int64_t, int64_t);
    void (*unpack_nibbles)(const uint8_t *, int64_t, int64_t, int8_t *);
    int (*scale_sums)(const int32_t *, int64_t, int64_t, const float *, const float *, const int32_t *, const int32_t *,
                      const float *, int, void *);
    int64_t (*peak)(int64_t, int32_t *);
    void (*round_groups)(const float *, int64_t, int64_t, const float *, int, int, float *);
    void (*round_groups_back)(const float *, const float *, int64_t, int64_t, const float *, int, int, float *, float *);
    void (*mix_blocks)(const float *, int64_t, int64_t, float *);
    void (*column_dots)(const float *, const float *, int64_t, int64_t, int64_t, int64_t, float *);
    int (*kronecker)(const float *, int64_t, int64_t, int64_t, const float *, const float *, float *);
    int (*kronecker_back)(const float *, const float *, int64_t, int64_t, int64_t, const float *, const float *, float *,
                          float *, float *);
} functions;

#define DECLARE(set)                                                                                                  \
    int s2q_quantize_##set(const quantize_task *, int64_t, int64_t);                                                  \
    int s2q_multiply_##set(const multiply_task *, int64_t, int64_t, int64_t, int64_t);                                \
    void s2q_unpack_nibbles_##set(const uint8_t *, int64_t, int64_t, int8_t *);                                       \
    int s2q_scale_sums_##set(const int32_t *, int64_t, int64_t, const float *, const float *, const int32_t *,        \
                             const int32_t *, const float *, int, void *);                                            \
    int64_t s2q_peak_##set(int64_t, int32_t *);                                                                       \
    void s2q_round_groups_##set(const float *, int64_t, int64_t, const float *, int, int, float *);                   \
    void s2q_round_groups_back_##set(const float *, const float *, int64_t, int64_t, const float *, int, int, float *, \
                                     float *);                                                                        \
    void s2q_mix_blocks_##set(const float *, int64_t, int64_t, float *);                                              \
    void s2q_column_dots_##set(const float *, const float *, int64_t, int64_t, int64_t, int64_t, float *);             \
    int s2q_kronecker_##set(const float *, int64_t, int64_t, int64_t, const float *, const float *, float *);         \
    int s2q_kronecker_back_##set(const float *, const float *, int64_t, int64_t, int64_t, const float *,              \
                                 const float *, float *, float *, float *);
#define OF(set, name, needs)                                                                                          \
    {name,                                                                                                            \
     needs,                                                                                                           \
     s2q_quantize_##set,                                                                                              \
     s2q_multiply_##set,                                                                                              \
     s2q_unpack_nibbles_##set,                                                                                        \
     s2q_scale_sums_##set,                                                                                            \
     s2q_peak_##set,                                                                                                  \
     s2q_round_groups_##set,                                                                                          \
     s2q_round_groups_back_##set,                                                                                     \
     s2q_mix_blocks_##set,                                                                                            \
     s2q_column_dots_##set,                                                                                           \
     s2q_kronecker_##set,                                                                                             \
     s2q_kronecker_back_##set}

DECLARE(baseline)
#ifdef X86
DECLARE(avx2)
#ifdef AVX_VNNI_BUILT
DECLARE(avxvnni)
#endif
DECLARE(avx512)
DECLARE(vnni_registers)
DECLARE(vnni)
#endif
#ifdef AMX
DECLARE(amx)
#endif
#ifdef I8MM
DECLARE(i8mm)
#endif

/* Best last; `preferred` wants the two for VNNI side by side, AMD's first. */
static const functions sets[] = {
    OF(baseline, "baseline", PLAIN),
#ifdef X86
    OF(avx2, "AVX2", AVX2),
#ifdef AVX_VNNI_BUILT
    OF(avxvnni, "AVX-VNNI", AVX_VNNI),
#endif
    OF(avx512, "AVX-512", AVX512),
    OF(vnni_registers, "AVX-512 VNNI (AMD)", AVX512_VNNI),
    OF(vnni, "AVX-512 VNNI", AVX512_VNNI),
#endif
#ifdef AMX
    OF(amx, "AMX", AMX_INT8),
#endif
#ifdef I8MM
    OF(i8mm, "NEON I8MM", NEON_I8MM),
#endif
};
enum { SETS = sizeof sets / sizeof *sets };

static const functions *chosen;

/* The last set that this machine can run; of the two for VNNI that for AMD's, which have four ports for vectors, two of which
 * multiply, so that nibbles are unpacked beside the products. */
static const functions *preferred(void) {
    int last = SETS - 1;
    while (!can_run(sets[last].needs)) last--;
#ifdef X86
    if (sets[last].needs == AVX512_VNNI && __builtin_cpu_is("amd")) last--;
#endif
    return &sets[last];
}

static const functions *own(void) {
    if (!chosen) chosen = preferred();
    return chosen;
}

/* Increase whenever a signature or a task changes. */
API int s2q_version(void) { return 9; }

API const char *s2q_instruction_set(void) { return own()->name; }

/* Name of set `index`, from the plainest to the best that this machine has; NULL beyond. */
API const char *s2q_set_name(int index) {
    for (int i = 0; i < SETS; i++)
        if (can_run(sets[i].needs) && index-- == 0) return sets[i].name;
    return NULL;
}

/* Use the set of this name from now on, or for NULL the one preferred. Returns 0, or 1 if this machine has none of that name. */
API int s2q_use(const char *name) {
    if (!name) {
        chosen = preferred();
        return 0;
    }
    for (int i = 0; i < SETS; i++)
        if (can_run(sets[i].needs) && strcmp(name, sets[i].name) == 0) {
            chosen = &sets[i];
            return 0;
        }
    return 1;
}

API int s2q_quantize(const quantize_task *task, int64_t first, int64_t last) { return own()->quantize(task, first, last); }

API int s2q_multiply(const multiply_task *task, int64_t panel_first, int64_t panel_last, int64_t tile_first,
                     int64_t tile_last) {
    return own()->multiply(task, panel_first, panel_last, tile_first, tile_last);
}

static int quantize_tiles(const void *task, const int64_t *more, int64_t start, int64_t stop) {
    (void)more;
    return own()->quantize(task, start, stop);
}

static int multiply_panels(const void *task, const int64_t *tiles, int64_t start, int64_t stop) {
    return own()->multiply(task, start, stop, tiles[0], tiles[1]);
}

static int multiply_tiles(const void *task, const int64_t *tiles, int64_t start, int64_t stop) {
    return own()->multiply(task, 0, tiles[2], tiles[0] + start, tiles[0] + stop);
}

/* `s2q_quantize` of all tiles, in `parts` ranges by a team of `size` threads. */
API int s2q_quantize_shared(const team *threads, int64_t size, const quantize_task *task, int64_t tiles, int64_t parts) {
    return share_out(threads, size, quantize_tiles, task, NULL, tiles, parts);
}

/* `s2q_multiply` of tiles [first, last) and all panels, in ranges of panels, or of tiles. */
API int s2q_multiply_shared(const team *threads, int64_t size, const multiply_task *task, int64_t first, int64_t last,
                            int64_t panels, int64_t parts, int by_panels) {
    const int64_t tiles[] = {first, last, panels};
    return by_panels ? share_out(threads, size, multiply_panels, task, tiles, panels, parts)
                     : share_out(threads, size, multiply_tiles, task, tiles, last - first, parts);
}

API void s2q_unpack_nibbles(const uint8_t *packed, int64_t rows, int64_t columns, int8_t *codes) {
    own()->unpack_nibbles(packed, rows, columns, codes);
}

API int s2q_scale_sums(const int32_t *sums, int64_t rows, int64_t columns, const float *scale, const float *weight_scale,
                       const int32_t *zero, const int32_t *weight_sum, const float *bias, int dtype, void *out) {
    return own()->scale_sums(sums, rows, columns, scale, weight_scale, zero, weight_sum, bias, dtype, out);
}

API int64_t s2q_peak(int64_t rounds, int32_t *out) { return own()->peak(rounds, out); }

static int peak_of_each(const void *done, const int64_t *rounds, int64_t start, int64_t stop) {
    int32_t out;
    for (int64_t i = start; i < stop; i++) __atomic_fetch_add((int64_t *)done, own()->peak(*rounds, &out), __ATOMIC_RELAXED);
    return 0;
}

/* `s2q_peak` of each of a team of `size` threads. */
API int64_t s2q_peak_shared(const team *threads, int64_t size, int64_t rounds) {
    int64_t done = 0;
    share_out(threads, size, peak_of_each, &done, &rounds, size, size);
    return done;
}

API void s2q_round_groups(const float *x, int64_t groups, int64_t size, const float *clip, int bits, int symmetric,
                          float *out) {
    own()->round_groups(x, groups, size, clip, bits, symmetric, out);
}

API void s2q_round_groups_back(const float *gradient, const float *x, int64_t groups, int64_t size, const float *clip,
                               int bits, int symmetric, float *passed, float *to_clip) {
    own()->round_groups_back(gradient, x, groups, size, clip, bits, symmetric, passed, to_clip);
}

API void s2q_mix_blocks(const float *x, int64_t blocks, int64_t block, float *out) {
    own()->mix_blocks(x, blocks, block, out);
}

API void s2q_column_dots(const float *one, const float *other, int64_t rows, int64_t width, int64_t first, int64_t last,
                         float *out) {
    own()->column_dots(one, other, rows, width, first, last, out);
}

API int s2q_kronecker(const float *x, int64_t rows, int64_t n1, int64_t n2, const float *left, const float *right,
                      float *out) {
    return own()->kronecker(x, rows, n1, n2, left, right, out);
}

API int s2q_kronecker_back(const float *gradient, const float *x, int64_t rows, int64_t n1, int64_t n2, const float *left,
                           const float *right, float *to_x, float *to_left, float *to_right) {
    return own()->kronecker_back(gradient, x, rows, n1, n2, left, right, to_x, to_left, to_right);
}
