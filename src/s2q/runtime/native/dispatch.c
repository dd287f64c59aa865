/* The library's interface: each call goes to the code for this machine's instruction set; see rowwise.c. */
#include <stdint.h>

#define API __attribute__((visibility("default")))

#define QUANTIZE(set)                                                                                               \
    int s2q_quantize_rows_##set(const void *, int, int64_t, int64_t, int64_t, const float *, float, int, int, int8_t *, \
                                float *, float *)
#define UNPACK(set) void s2q_unpack_halves_##set(const uint8_t *, int64_t, int64_t, int8_t *)
#define SCALE(set)                                                                                                  \
    int s2q_scale_sums_##set(const int32_t *, int64_t, int64_t, const float *, const float *, const int32_t *,      \
                             const int32_t *, const float *, int, void *)

QUANTIZE(baseline);
UNPACK(baseline);
SCALE(baseline);
#ifdef X86
QUANTIZE(avx2);
UNPACK(avx2);
SCALE(avx2);
QUANTIZE(avx512);
UNPACK(avx512);
SCALE(avx512);

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#define PICK(name, ...)                                                 \
    (has_avx512()  ? s2q_##name##_avx512(__VA_ARGS__)                   \
     : has_avx2() ? s2q_##name##_avx2(__VA_ARGS__)                      \
                  : s2q_##name##_baseline(__VA_ARGS__))
#else
#define PICK(name, ...) s2q_##name##_baseline(__VA_ARGS__)
#endif

/* Increase whenever a signature changes. */
API int s2q_version(void) { return 1; }

API const char *s2q_instruction_set(void) {
#ifdef X86
    return has_avx512() ? "AVX-512" : has_avx2() ? "AVX2" : "baseline";
#else
    return "baseline";
#endif
}

API int s2q_quantize_rows(const void *x, int dtype, int64_t rows, int64_t columns, int64_t groups, const float *channel,
                          float clip, int bits, int halves, int8_t *codes, float *scale, float *zero) {
    return PICK(quantize_rows, x, dtype, rows, columns, groups, channel, clip, bits, halves, codes, scale, zero);
}

API void s2q_unpack_halves(const uint8_t *packed, int64_t rows, int64_t columns, int8_t *codes) {
    PICK(unpack_halves, packed, rows, columns, codes);
}

API int s2q_scale_sums(const int32_t *sums, int64_t rows, int64_t columns, const float *scale, const float *weight_scale,
                       const int32_t *zero, const int32_t *weight_sum, const float *bias, int dtype, void *out) {
    return PICK(scale_sums, sums, rows, columns, scale, weight_scale, zero, weight_sum, bias, dtype, out);
}
