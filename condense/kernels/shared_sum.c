/* Sums over the processes of one machine through memory that they share; condense/workers/shared_sum.py calls it.

   The shared memory is a line of control, the sum's own piece, and a piece for each process. */

#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PIECE 262144 /* float32 numbers: 1 MiB */
#define LINE 64      /* bytes of a cache line */
#define WATCHED_NS 100000 /* how long one looks for the others before sleeping: a sleeper wakes after some 50 us */

typedef struct {
    _Atomic uint32_t arrivals; /* of all processes at all meetings so far; wraps */
    _Atomic uint32_t sleepers;
} control_t;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Returns when all have arrived at the meeting of this number (1, 2, ...), or 0 at the deadline. */
static int meet(control_t *control, uint32_t meeting, uint32_t size, int64_t deadline_ns)
{
    const uint32_t all = meeting * size;
    if (atomic_fetch_add(&control->arrivals, 1) + 1 == all) {
        if (atomic_load(&control->sleepers))
            syscall(SYS_futex, &control->arrivals, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        return 1;
    }
    const int64_t watched = now_ns() + WATCHED_NS;
    for (;;) {
        const uint32_t seen = atomic_load(&control->arrivals);
        if ((int32_t)(seen - all) >= 0)
            return 1;
        const int64_t now = now_ns();
        if (now < watched)
            continue;
        if (now >= deadline_ns)
            return 0;
        const int64_t left = deadline_ns - now;
        const struct timespec at_most = {left / 1000000000, left % 1000000000};
        atomic_fetch_add(&control->sleepers, 1);
        syscall(SYS_futex, &control->arrivals, FUTEX_WAIT, seen, &at_most, NULL, 0);
        atomic_fetch_sub(&control->sleepers, 1);
    }
}

int64_t shared_sum_bytes(int64_t size) { return LINE + (size + 1) * (int64_t)PIECE * sizeof(float); }

/* The numbers become their sums over processes, added in the order of ranks; `meetings` is how often these have met.
   Returns 0 where the others did not come. */
int shared_sum(float *numbers, int64_t count, void *shared, int64_t rank, int64_t size, uint32_t *meetings,
               int64_t timeout_ns)
{
    control_t *control = shared;
    float *sum = (float *)((char *)shared + LINE), *pieces = sum + PIECE;
    const int64_t deadline_ns = now_ns() + timeout_ns;
    for (int64_t start = 0; start < count; start += PIECE) {
        const int64_t length = count - start < PIECE ? count - start : PIECE;
        memcpy(pieces + rank * PIECE, numbers + start, length * sizeof(float));
        if (!meet(control, ++*meetings, size, deadline_ns))
            return 0;
        const int64_t first = length * rank / size, end = length * (rank + 1) / size; /* each adds up a part */
        memcpy(sum + first, pieces + first, (end - first) * sizeof(float));
        for (int64_t other = 1; other < size; other++)
            for (int64_t i = first; i < end; i++)
                sum[i] += pieces[other * PIECE + i];
        if (!meet(control, ++*meetings, size, deadline_ns))
            return 0;
        memcpy(numbers + start, sum, length * sizeof(float));
    }
    return 1;
}
