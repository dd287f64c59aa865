/* Keys and values of int8 attention as codes, once a call, for attention.c, with which it is compiled for each set. */
#include "attention_codes.h"

/* How many keys of a channel lie together. */
#if defined(__AMX_INT8__)
enum { TOGETHER = KEYS };
#else
enum { TOGETHER = 4 };
#endif

static void pack_keys(const struct attention *a, int64_t head, float *rows) {
    const int64_t padded = a->blocks * KEYS, bytes = a->quads * 4, width = a->width;
    const int64_t at = head / a->heads * a->key_stride[0] + head % a->heads * a->key_stride[1];
    int8_t *codes = a->key_codes + head * padded * bytes;
    int32_t *start = a->key_start + head * padded;
    float *steps = a->key_step + head * a->blocks, poison = 0.0f;
    memset(codes, 0, padded * bytes);
    memset(start, 0, padded * sizeof *start);
    for (int64_t block = 0; block < a->blocks; block++) {
        const int64_t first = block * KEYS, last = first + KEYS < a->keys ? first + KEYS : a->keys;
        float most = 0.0f;
        for (int64_t j = first; j < last; j++) {
            float *own = rows + (j - first) * width;
            if (j + AHEAD < a->keys) expect(a->key, at + (j + AHEAD) * a->key_stride[2], width, a->dtype);
            load(own, a->key, at + j * a->key_stride[2], width, a->dtype);
            subtract(own, a->key_mean + head * width, width);
            most = largest(most, magnitude(own, width));
        }
        const float step = step_of(most);
        for (int64_t j = first; j < last; j++)
            start[j] = -128 * round_row(rows + (j - first) * width, width, step, codes + j * bytes);
        steps[block] = step;
        poison += step * 0.0f;
    }
    a->key_poison[head] = poison;
}

static void pack_values(const struct attention *a, int64_t head, float *row, int8_t *codes) {
    const int64_t padded = a->blocks * KEYS, channels = a->channels, width = a->value_width;
    const int64_t at = head / a->heads * a->value_stride[0] + head % a->heads * a->value_stride[1];
    const float *mean = a->value_mean + head * width;
    float *step = a->value_step + head * width;
    int8_t *quads = a->value_codes + head * padded * channels;
    uint32_t *restrict most = (uint32_t *)step;  /* magnitudes as bits, see above */
    memset(quads, 0, padded * channels);
    memset(most, 0, width * sizeof *most);
    for (int64_t j = 0; j < a->keys; j++) {
        if (j + AHEAD < a->keys) expect(a->value, at + (j + AHEAD) * a->value_stride[2], width, a->dtype);
        load(row, a->value, at + j * a->value_stride[2], width, a->dtype);
        subtract(row, mean, width);
        for (int64_t d = 0; d < width; d++) {
            const uint32_t bits = bits_of(row[d]) & 0x7fffffffu;
            most[d] = bits > most[d] ? bits : most[d];
        }
    }
    for (int64_t d = 0; d < width; d++) step[d] = step_of(float_of(most[d]));
    memset(codes, 0, 4 * channels);
    for (int64_t j = 0; j < a->keys; j++) {
        if (j + AHEAD < a->keys) expect(a->value, at + (j + AHEAD) * a->value_stride[2], width, a->dtype);
        load(row, a->value, at + j * a->value_stride[2], width, a->dtype);
        subtract(row, mean, width);
        int8_t *own = codes + j % 4 * channels, *restrict target = quads + j / TOGETHER * TOGETHER * channels + j % TOGETHER / 4 * 4;
        for (int64_t d = 0; d < width; d++) own[d] = rounded(row[d] / step[d]);
        if (j % 4 < 3 && j + 1 < a->keys) continue;
        for (int64_t i = j % 4 + 1; i < 4; i++) memset(codes + i * channels, 0, channels);
        for (int64_t d = 0; d < channels; d++)
            for (int64_t i = 0; i < 4; i++) target[TOGETHER * d + i] = codes[i * channels + d];
    }
}

/* Keys and values of heads `start` to `stop` as codes. Returns 0, or 1 if there is no memory. */
int NAMED(s2q_attention_pack, SET)(const struct attention *a, int64_t start, int64_t stop) {
    float *rows = malloc((a->width > a->value_width ? a->width : a->value_width) * KEYS * sizeof(float));
    int8_t *codes = malloc(4 * a->channels);
    const int missing = !rows || !codes;
    for (int64_t head = start; head < stop && !missing; head++) {
        pack_keys(a, head, rows);
        pack_values(a, head, rows, codes);
    }
    free(codes);
    free(rows);
    return missing;
}
