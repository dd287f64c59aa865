/* The interface of int8 attention: each call goes to the code for this machine's instruction set; see attention.c. */
#ifdef AMX
#define _GNU_SOURCE
#endif
#include <stddef.h>

#include "attention.h"
#include "machine.h"
#include "team.h"

#define API __attribute__((visibility("default")))

typedef int part(const struct attention *, int64_t, int64_t);

struct set {
    int needs; /* of machine.h */
    const char *name;
    part *pack, *run;
};

#define DECLARE(set) part s2q_attention_pack_##set, s2q_attention_run_##set
#define ENTRY(set, name, needs) {needs, name, s2q_attention_pack_##set, s2q_attention_run_##set}

DECLARE(baseline);
#ifdef X86
DECLARE(avx2);
#ifdef AVX_VNNI_BUILT
DECLARE(avxvnni);
#endif
DECLARE(avx512);
DECLARE(vnni);
#endif
#ifdef AMX
DECLARE(amx);
#endif
#ifdef I8MM
DECLARE(i8mm);
#endif

static const struct set SETS[] = {
    ENTRY(baseline, "baseline", PLAIN),
#ifdef X86
    ENTRY(avx2, "AVX2", AVX2),
#ifdef AVX_VNNI_BUILT
    ENTRY(avxvnni, "AVX-VNNI", AVX_VNNI),
#endif
    ENTRY(avx512, "AVX-512", AVX512),
    ENTRY(vnni, "AVX-512 VNNI", AVX512_VNNI),
#endif
#ifdef AMX
    ENTRY(amx, "AMX", AMX_INT8),
#endif
#ifdef I8MM
    ENTRY(i8mm, "NEON I8MM", NEON_I8MM),
#endif
};

/* Set `index` of those that this machine can run, worst first; NULL beyond. */
static const struct set *set_at(int64_t index) {
    for (size_t i = 0; i < sizeof SETS / sizeof *SETS; i++)
        if (can_run(SETS[i].needs) && index-- == 0) return &SETS[i];
    return NULL;
}

/* Increase whenever a signature or the structure changes. */
API int s2q_attention_version(void) { return 6; }

/* Name of set `set` of those that this machine can run, worst first; NULL beyond. */
API const char *s2q_attention_set(int set) { return set_at(set) ? set_at(set)->name : NULL; }

API int s2q_attention_pack(const struct attention *a, int set, int64_t start, int64_t stop) {
    return set_at(set)->pack(a, start, stop);
}

API int s2q_attention_run(const struct attention *a, int set, int64_t start, int64_t stop) {
    return set_at(set)->run(a, start, stop);
}

static int pack_heads(const void *a, const int64_t *set, int64_t start, int64_t stop) {
    return set_at(*set)->pack(a, start, stop);
}

static int run_tiles(const void *a, const int64_t *set, int64_t start, int64_t stop) {
    return set_at(*set)->run(a, start, stop);
}

/* `s2q_attention_pack` of `count` heads, or `s2q_attention_run` of `count` tiles, in `parts` ranges by a team of `size` threads. */
API int s2q_attention_shared(const team *threads, int64_t size, const struct attention *a, int set, int run, int64_t count,
                             int64_t parts) {
    const int64_t chosen = set;
    return share_out(threads, size, run ? run_tiles : pack_heads, a, &chosen, count, parts);
}
