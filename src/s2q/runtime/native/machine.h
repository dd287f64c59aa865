/* What this machine can run, for the files that choose an instruction set. With AMX they define _GNU_SOURCE first, for syscall. */
#ifndef S2Q_MACHINE_H
#define S2Q_MACHINE_H

#ifdef X86
#include <cpuid.h>
#endif
#ifdef AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef I8MM
#ifdef __APPLE__
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

enum { PLAIN, AVX2, AVX_VNNI, AVX512, AVX512_VNNI, AMX_INT8, NEON_I8MM };

#ifdef X86
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

/* VNNI for vectors of 256 bits, also where there are none of 512. Not every compiler knows its name. */
static int has_avx_vnni(void) {
    enum { BIT = 1 << 4 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & BIT);
}
#endif

#ifdef AMX
/* Whether the processor has AMX for int8, and the system lets this process use its tiles. */
static int has_amx(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18, TILE = 1 << 24, INT8 = 1 << 25 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE) && (d & INT8) &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

#ifdef I8MM
/* Dot products of unsigned and signed bytes, which came with Armv8.6. */
static int has_i8mm(void) {
#ifdef __APPLE__
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, NULL, 0) == 0 && value;
#else
    enum { BIT = 1 << 13 };
    return (getauxval(AT_HWCAP2) & BIT) != 0;
#endif
}
#endif

/* One bit for each of the above. */
static int find_sets(void) {
    int found = 1 << PLAIN;
#ifdef I8MM
    if (has_i8mm()) found |= 1 << NEON_I8MM;
#endif
#ifdef X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
    found |= 1 << AVX2;
    if (has_avx_vnni()) found |= 1 << AVX_VNNI;
    if (!has_avx512()) return found;
    found |= 1 << AVX512;
    if (!__builtin_cpu_supports("avx512vnni")) return found;
    found |= 1 << AVX512_VNNI;
#ifdef AMX
    if (has_amx()) found |= 1 << AMX_INT8;
#endif
#endif
    return found;
}

/* Whether this machine can run code that needs one of them. */
static int can_run(int needed) {
    static int found = 0;
    if (!found) found = find_sets();
    return found >> needed & 1;
}

#endif
