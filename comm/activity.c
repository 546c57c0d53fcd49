// activity: what this rank does in which group, for the watchdog. Kept by a few stores per collective; read by another thread.
#define _GNU_SOURCE
#include "comm_impl.h"
#include "watch.h"
#include <math.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static Comm *open_first; // the groups of several processes
_Atomic int comm_in_queue;

bool on_main_thread(void)
{
    static _Thread_local int is_main = -1;
    if (is_main < 0) is_main = syscall(SYS_gettid) == getpid();
    return is_main;
}

void activity_open(Comm *c)
{
    if (c->size == 1 || c->ops != &comm_mpi) return;
    pthread_mutex_lock(&open_lock);
    c->next = open_first;
    open_first = c;
    pthread_mutex_unlock(&open_lock);
}

void activity_close(const Comm *c)
{
    pthread_mutex_lock(&open_lock);
    Comm **at = &open_first;
    while (*at && *at != c) at = &(*at)->next;
    if (*at) *at = c->next;
    pthread_mutex_unlock(&open_lock);
}

double activity_enter(Comm *c, const char *what)
{
    const double now = now_ms();
    c->what = what;
    c->by_main = on_main_thread();
    c->since_us = (int64_t)(now * 1e3);
    c->entered++;
    return now;
}

double activity_leave(Comm *c)
{
    const double now = now_ms();
    c->since_us = (int64_t)(now * 1e3);
    c->left++;
    return now;
}

void comm_tell(Beat *out, double since_ms)
{
    const double now = now_ms();
    double outside_ms = now - since_ms;
    *out = (Beat){.in_queue = comm_in_queue};
    pthread_mutex_lock(&open_lock);
    for (const Comm *c = open_first; c && out->n < WATCH_GROUPS; c = c->next) {
        WatchGroup *g = &out->group[out->n++];
        const bool inside = c->entered != c->left || c->under_way;
        const double for_ms = MAX(now - MAX((double)c->since_us * 1e-3, since_ms), 0);
        *g = (WatchGroup){.group = c->group, .entered = c->entered, .waiting_ms = -1, .main = c->by_main};
        if (inside) g->waiting_ms = (int32_t)for_ms;
        outside_ms = inside ? 0 : MIN(outside_ms, for_ms);
        if (c->what) snprintf(g->what, sizeof g->what, "%s", c->what);
    }
    pthread_mutex_unlock(&open_lock);
    out->outside_ms = (int32_t)MIN(outside_ms, INT32_MAX);
}
