// clockjump: a library to preload under which the time of day jumps at every reading: a day back, a day forth, to 1970, to 2100. The
// monotonic clock goes on as it is.
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jumped(time_t now)
{
    static atomic_uint reading;
    switch (atomic_fetch_add(&reading, 1) % 4) {
    case 0: return now - 86400;
    case 1: return now + 86400;
    case 2: return 5;
    default: return 4102444800; // 2100-01-01
    }
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
    long rc = syscall(SYS_clock_gettime, clock, t);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) t->tv_sec = jumped(t->tv_sec);
    return (int)rc;
}

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    *out = (struct timeval){.tv_sec = t.tv_sec, .tv_usec = t.tv_nsec / 1000};
    return 0;
}
