/* Whether AMX can be used, for the files that choose an instruction set; they define _GNU_SOURCE first, for syscall. */
#ifndef S2Q_AMX_H
#define S2Q_AMX_H

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
