// The watchdog: a thread per rank that tells the first rank once per second what its rank does, by messages on a communicator
// of its own. The first rank judges (watch.c) and ends the job when it stands still; the second one watches the first.
//
// MPI itself never notices a rank that hangs, and who waits at a window of shared memory cannot. This thread needs
// MPI_THREAD_MULTIPLE, and an MPI that lets go of its locks while it waits, as MPICH does in its blocking calls.
#include "comm_mpi.h"
#include "watch.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { BEAT, GOODBYE }; // tags
enum { SILENT_S = 60, WAITING_S = 1800, LATE_MS = 2000, HOOK_S = 10 };

typedef struct Place {
    char host[60];
    int32_t pid;
} Place;

typedef struct Watch {
    MPI_Comm comm;
    int rank, size;
    bool running, closing;
    double silent_ms, waiting_ms, period_ms;
    double since_ms; // before this the process, or the machine, was suspended
    int goodbyes;
    WatchRank *ranks;
    Place *place;
    Beat out; // MPI's while it is being sent
    MPI_Request sending;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t close;
} Watch;

static Watch watch; // of the world

int watch_read_environment(void)
{
    const char *text = getenv("ATTUNE_COMM_TIMEOUT");
    char *end = NULL;
    const double seconds = text ? strtod(text, &end) : 0;
    if (text && (end == text || *end || !(seconds >= 0)))
        return fail(E_INPUT, "ATTUNE_COMM_TIMEOUT", "0 stands for no limit", "\"%s\" is no number of seconds", text);
    watch.silent_ms = 1e3 * (text ? seconds : SILENT_S);
    watch.waiting_ms = 1e3 * (text ? seconds : WAITING_S);
    watch.period_ms = MIN(1000, watch.silent_ms / 4);
    return OK;
}

// ---- beats ------------------------------------------------------------------------------------------------------------
static int watcher(const Watch *w)
{
    return w->rank == 0 ? 1 : 0;
}

static void send_beat(Watch *w)
{
    WatchRank *me = &w->ranks[w->rank];
    int sent = 0;
    comm_tell(&me->beat, w->since_ms);
    me->heard_ms = now_ms();
    if (MPI_Test(&w->sending, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || !sent) return; // the watcher does not listen
    w->out = me->beat;
    MPI_Isend(&w->out, sizeof w->out, MPI_BYTE, watcher(w), BEAT, w->comm, &w->sending);
}

static void receive_beats(Watch *w)
{
    for (;;) {
        MPI_Status s;
        Beat b;
        int came = 0;
        if (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, w->comm, &came, &s) != MPI_SUCCESS || !came) return;
        if (MPI_Recv(&b, sizeof b, MPI_BYTE, s.MPI_SOURCE, s.MPI_TAG, w->comm, MPI_STATUS_IGNORE) != MPI_SUCCESS)
            return;
        WatchRank *r = &w->ranks[s.MPI_SOURCE];
        r->heard_ms = now_ms();
        if (s.MPI_TAG == BEAT) {
            r->beat = b;
        } else {
            r->watched = false;
            w->goodbyes++;
        }
    }
}

// ---- the end of the job -----------------------------------------------------------------------------------------------
static void end_job(const Watch *w, const Verdict *v)
{
    Buf who = {0};
    for (int i = 0; i < v->n; i++) {
        const Place *p = &w->place[v->rank[i]];
        buf_printf(&who, "%srank %d (%s, pid %d)", i ? ", " : "", v->rank[i], p->host, (int)p->pid);
    }
    if (v->more) buf_printf(&who, " and %d more", v->more);
    buf_printf(&who, ": %s", v->what);
    mpi_end_within(HOOK_S, error_exit_code(E_FAILED)); // whatever the hook's disk or MPI are up to
    fprintf(stderr,
            "attune: error: %s\n  hint: %s; ATTUNE_COMM_TIMEOUT=SECONDS says how long ranks wait for each other (0: "
            "for ever)\n",
            who.data, v->hint);
    tell_abort(v->rank[0], who.data);
    mpi_abort(NULL, error_exit_code(E_FAILED));
}

static void judge(const Watch *w)
{
    const double never = INFINITY; // the second rank only looks whether the first is alive
    const WatchLimits limits = {
        .silent_ms = w->silent_ms, .waiting_ms = w->rank == 0 ? w->waiting_ms : never, .fresh_ms = 3 * w->period_ms};
    Verdict v;
    if (w->rank <= 1 && watch_judge(w->ranks, w->size, now_ms(), &limits, &v)) end_job(w, &v);
}

// All ranks are done. What is still on its way is fetched: MPI complains of messages that nobody took.
static void say_goodbye(Watch *w)
{
    const int senders = w->rank == 0 ? w->size - 1 : w->rank == 1; // to this rank
    MPI_Wait(&w->sending, MPI_STATUS_IGNORE);
    MPI_Isend(NULL, 0, MPI_BYTE, watcher(w), GOODBYE, w->comm, &w->sending);
    for (int sent = 0; !sent || w->goodbyes < senders;) {
        receive_beats(w);
        if (!sent) MPI_Test(&w->sending, &sent, MPI_STATUS_IGNORE);
        judge(w); // a rank may be lost even now
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

// ---- the thread -------------------------------------------------------------------------------------------------------
static bool sleep_until(Watch *w, double at_ms)
{
    const struct timespec at = {.tv_sec = (time_t)(at_ms * 1e-3), .tv_nsec = (long)(fmod(at_ms, 1e3) * 1e6)};
    pthread_mutex_lock(&w->lock);
    for (int rc = 0; !w->closing && rc == 0;) rc = pthread_cond_timedwait(&w->close, &w->lock, &at);
    const bool closing = w->closing;
    pthread_mutex_unlock(&w->lock);
    return !closing;
}

static void *keep_watch(void *arg)
{
    Watch *w = arg;
    double began = now_ms();
    while (sleep_until(w, began + w->period_ms)) {
        // Late by this much, it was not the others who stood still: all clocks start anew.
        const double now = now_ms();
        const bool was_suspended = now - began - w->period_ms > LATE_MS;
        began = now;
        if (was_suspended) {
            w->since_ms = now;
            for (int r = 0; r < w->size; r++) w->ranks[r].heard_ms = now;
        }
        send_beat(w);
        receive_beats(w);
        judge(w);
    }
    say_goodbye(w);
    return NULL;
}

static int exchange_places(Watch *w)
{
    w->place = xcalloc((size_t)w->size, sizeof *w->place);
    Place *mine = &w->place[w->rank];
    gethostname(mine->host, sizeof mine->host - 1);
    mine->pid = (int32_t)getpid();
    return mpi_check(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, w->place, sizeof *mine, MPI_BYTE, w->comm),
                     "MPI_Allgather");
}

static void free_watch(Watch *w)
{
    if (w->comm != MPI_COMM_NULL) MPI_Comm_free(&w->comm);
    free(w->ranks);
    free(w->place);
    w->ranks = NULL;
    w->place = NULL;
}

int watch_start(const Comm *world)
{
    Watch *w = &watch;
    // One rank may have been given another limit than the others: the least careful of them says whether there is a watch.
    double least = w->silent_ms;
    TRY(mpi_check(MPI_Allreduce(MPI_IN_PLACE, &least, 1, MPI_DOUBLE, MPI_MIN, ((MpiComm *)world->impl)->comm),
                  "MPI_Allreduce"));
    if (least == 0 || world->size == 1) return OK;
    TRY(mpi_check(MPI_Comm_dup(((MpiComm *)world->impl)->comm, &w->comm), "MPI_Comm_dup"));
    w->rank = world->rank;
    w->size = world->size;
    w->sending = MPI_REQUEST_NULL;
    w->ranks = xcalloc((size_t)w->size, sizeof *w->ranks);
    for (int r = 0; r < w->size; r++) w->ranks[r] = (WatchRank){w->rank == 0 || r <= 1, now_ms(), {0}};
    TRY(exchange_places(w));
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->close, &attr);
    pthread_condattr_destroy(&attr);
    TRY(start_thread(&w->thread, keep_watch, w));
    w->running = true;
    return OK;
}

void watch_end(void)
{
    Watch *w = &watch;
    if (w->running) {
        pthread_mutex_lock(&w->lock);
        w->closing = true;
        pthread_cond_signal(&w->close);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
        pthread_cond_destroy(&w->close);
        pthread_mutex_destroy(&w->lock);
    }
    if (w->ranks) free_watch(w);
    w->running = w->closing = false;
}
