/* Random problems of int8 attention through every instruction set of this machine, each in memory of exactly its size: for the
 * sanitizers, and the bytes of all sets are compared. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

const char *s2q_attention_set(int);
int s2q_attention_pack(const struct attention *, int, int64_t, int64_t);
int s2q_attention_run(const struct attention *, int, int64_t, int64_t);

static int64_t below(int64_t limit) { return rand() % limit; }

static void *exactly(int64_t bytes) { return malloc(bytes ? bytes : 1); }

/* Floats of either kind, some of them large, rarely one that is not finite. */
static void *numbers(int64_t count, int dtype) {
    float *wide = exactly(count * 4);
    for (int64_t i = 0; i < count; i++) wide[i] = (float)(below(20001) - 10000) / (below(50) ? 3000.0f : 3.0f);
    if (count && !below(8)) wide[below(count)] = below(2) ? 1e30f : 1.0f / 0.0f;
    if (dtype == FLOAT32) return wide;
    uint16_t *narrow = exactly(count * 2);
    for (int64_t i = 0; i < count; i++) narrow[i] = (uint16_t)(((uint32_t *)wide)[i] >> 16);
    free(wide);
    return narrow;
}

static int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

static void set_strides(int64_t *stride, int64_t heads, int64_t tokens, int64_t width) {
    stride[0] = heads * tokens * width;
    stride[1] = tokens * width;
    stride[2] = width;
}

static int round_of(int index) {
    struct attention a = {0};
    a.heads = 1 + below(3);
    const int64_t rows = a.heads * (1 + below(2));
    a.queries = 1 + below(70);
    a.keys = 1 + below(150);
    a.width = 1 + below(140);
    a.value_width = 1 + below(80);
    a.blocks = up(a.keys, KEYS) / KEYS;
    const int64_t parts = up(a.width, 64) / 64;
    a.quads = up(a.width, 4 * parts) / 4;
    a.channels = up(a.value_width, 16);
    a.dtype = below(2);
    a.mask_kind = below(4);
    a.scale = 0.2f;
    set_strides(a.query_stride, a.heads, a.queries, a.width);
    set_strides(a.key_stride, a.heads, a.keys, a.width);
    set_strides(a.value_stride, a.heads, a.keys, a.value_width);
    set_strides(a.out_stride, a.heads, a.queries, a.value_width);
    a.query = numbers(rows * a.queries * a.width, (int)a.dtype);
    a.key = numbers(rows * a.keys * a.width, (int)a.dtype);
    a.value = numbers(rows * a.keys * a.value_width, (int)a.dtype);
    a.key_mean = numbers(rows * a.width, FLOAT32);
    a.value_mean = numbers(rows * a.value_width, FLOAT32);
    void *mask = NULL;
    if (a.mask_kind == BOOLEAN) {
        mask = exactly(a.queries * a.keys);
        for (int64_t i = 0; i < a.queries * a.keys; i++) ((uint8_t *)mask)[i] = (uint8_t)below(2);
    } else if (a.mask_kind != NO_MASK) {
        mask = numbers(a.queries * a.keys, a.mask_kind == MASK_FLOAT32 ? FLOAT32 : BFLOAT16);
    }
    a.mask = mask;
    a.mask_stride[2] = a.keys;
    a.mask_stride[3] = 1;
    const int64_t padded = a.blocks * KEYS, size = rows * a.queries * a.value_width * (a.dtype == FLOAT32 ? 4 : 2);
    char *first = NULL;
    int failed = 0;
    for (int set = 0; s2q_attention_set(set) && !failed; set++) {
        a.key_codes = exactly(rows * padded * a.quads * 4);
        a.key_start = exactly(rows * padded * 4);
        a.key_step = exactly(rows * padded * 4);
        a.key_poison = exactly(rows * 4);
        a.value_codes = exactly(rows * padded * a.channels);
        a.value_step = exactly(rows * a.value_width * 4);
        char *out = a.out = exactly(size);
        failed = s2q_attention_pack(&a, set, 0, rows) || s2q_attention_run(&a, set, 0, rows * (up(a.queries, QUERIES) / QUERIES));
        if (first && memcmp(first, out, size)) {
            printf("round %d: set %d differs\n", index, set);
            failed = 1;
        }
        void *kept[] = {a.key_codes, a.key_start, a.key_step, a.key_poison, a.value_codes, a.value_step, first ? out : NULL};
        if (!first) first = out;
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) free(kept[i]);
    }
    const void *given[] = {a.query, a.key, a.value, a.key_mean, a.value_mean, mask, first};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) free((void *)given[i]);
    return failed;
}

int main(int count, char **arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 100;
    srand(1);
    for (int i = 0; i < rounds; i++)
        if (round_of(i)) return 1;
    printf("%d rounds\n", rounds);
    return 0;
}
