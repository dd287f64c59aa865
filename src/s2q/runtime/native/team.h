/* Work shared out over the threads that torch's own operations use, where they are OpenMP's.
 *
 * Those wait for their next work by spinning, and take the processors from any threads beside them: so the parts of an operation
 * are given to the same team. Its functions come by address, for which OpenMP runtime torch has loaded is known to Python alone.
 */
#ifndef S2Q_TEAM_H
#define S2Q_TEAM_H

#include <stdint.h>

typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
    int (*index)(void);                                             /* omp_get_thread_num */
    int (*size)(void);                                              /* omp_get_num_threads */
} team;

/* Indices [start, stop) of some work; returns 0, or 1 if there was no memory. */
typedef int range_of_work(const void *task, const int64_t *more, int64_t start, int64_t stop);

typedef struct {
    const team *threads;
    range_of_work *range;
    const void *task;
    const int64_t *more;
    int64_t count, parts;
    int failed;
} shared_work;

static void take_share(void *given) {
    shared_work *own = given;
    const int64_t count = own->count, parts = own->parts;
    /* The team may be smaller than asked for. */
    for (int64_t i = own->threads->index(); i < parts; i += own->threads->size())
        if (own->range(own->task, own->more, count * i / parts, count * (i + 1) / parts))
            __atomic_store_n(&own->failed, 1, __ATOMIC_RELAXED);
}

/* [0, count) in `parts` ranges, by a team of `size` threads: always torch's number, for a team that changes is made anew. */
static int share_out(const team *threads, int64_t size, range_of_work *range, const void *task, const int64_t *more,
                     int64_t count, int64_t parts) {
    shared_work own = {threads, range, task, more, count, parts, 0};
    threads->parallel(take_share, &own, (unsigned)size, 0);
    return own.failed;
}

#endif
