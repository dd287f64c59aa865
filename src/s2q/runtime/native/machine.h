/* What this machine can run, for the files that choose an instruction set. With AMX they define _GNU_SOURCE first, for syscall. */
#ifndef S2Q_MACHINE_H
#define S2Q_MACHINE_H

#ifdef AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the processor has AMX for int8, and the system lets this process use its tiles. */
static int has_amx(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18, TILE = 1 << 24, INT8 = 1 << 25 };
    static int known = -1;
    unsigned a, b, c, d;
    if (known < 0)
        known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE) && (d & INT8) &&
                syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return known;
}
#endif

/* The best of baseline, AVX2, AVX-512, AVX-512 VNNI and AMX, counted from 0; of those that were built. */
static int best(void) {
#ifdef X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512cd"))
        return 1;
    if (!__builtin_cpu_supports("avx512vnni")) return 2;
#ifdef AMX
    if (has_amx()) return 4;
#endif
    return 3;
#else
    return 0;
#endif
}

#endif
