/* What one call of int8 attention is about; s2q/runtime/native/attention.py fills it in, field by field. */
#ifndef S2Q_ATTENTION_H
#define S2Q_ATTENTION_H

#include <stdint.h>

/* Queries of a tile, keys of a block. */
enum { QUERIES = 32, KEYS = 64 };
enum { FLOAT32 = 0, BFLOAT16 = 1 };
enum { NO_MASK = 0, BOOLEAN = 1, MASK_FLOAT32 = 2, MASK_BFLOAT16 = 3 };

/* Strides count elements; the last dimension of query, key, value and out is dense. */
struct attention {
    const void *query, *key, *value, *mask;
    void *out;
    const float *key_mean, *value_mean;  /* [heads of all batches, width], [.., value_width] */
    int8_t *key_codes;                   /* [.., blocks * KEYS, quads * 4] */
    int32_t *key_start;                  /* [.., blocks * KEYS] */
    float *key_step;                     /* [.., blocks] */
    float *key_poison;                   /* [..], NaN where a key is not finite, else 0 */
    int8_t *value_codes;                 /* [.., blocks * KEYS / TOGETHER, channels, TOGETHER] */
    float *value_step;                   /* [.., value_width] */
    int64_t heads, queries, keys, width, value_width;
    int64_t blocks, channels;            /* keys and value_width rounded up: to KEYS, to 16 */
    int64_t quads;                       /* of width, rounded up to equal parts of at most 16 */
    int64_t query_stride[3], key_stride[3], value_stride[3], out_stride[3], mask_stride[4];
    int64_t dtype, mask_kind;
    float scale;                         /* times log2 e */
};

#endif
