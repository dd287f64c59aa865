/* What GCC and Clang are told each in its own words. */
#ifndef S2Q_COMPILERS_H
#define S2Q_COMPILERS_H

#define INLINE static inline __attribute__((always_inline))
/* Before a loop of known length, so that arrays it goes through become registers: at GCC's word Clang would leave them in
 * memory (tests/runtime/test_native_compiled.py). */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
