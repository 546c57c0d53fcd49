// queue: collectives beside the computation. One thread runs posted jobs in the order they were posted; without a
// thread a job runs inside the post, so that callers need not know which it is.
#include "comm_impl.h"
#include "watch.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef struct Job {
    struct Job *next;
    int (*run)(void *ctx);
    void *ctx;
    uint64_t ticket, mark; // mark: of the device
} Job;

struct CommQueue {
    bool threaded, closing;
    Device *device; // that jobs submit to, beside others; NULL: none, or one that does everything at once
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t posted_some, ended_some;
    Job *first, **last;
    uint64_t posted, ended; // tickets: all up to `ended` are done or skipped
    uint64_t skipped;       // jobs up to this ticket are not run: one before them failed
    int status;             // of the first job that failed since the last wait that told of one
    ErrorRecord error;
    double busy_ms, waited_ms;
};

// What a job submits to the device is done when the job is.
static int run_beside(const CommQueue *q, const Job *job)
{
    Device *d = q->device;
    if (!d) return job->run(job->ctx);
    int status = d->side_begin(d, job->mark);
    if (status == OK) status = job->run(job->ctx);
    const int ended = d->side_end(d);
    return status < 0 ? status : ended;
}

// Runs one job; the lock is held on entry and on return, not in between. A queue that holds a failure runs nothing.
static void run_job(CommQueue *q, const Job *job)
{
    if (q->status == OK && job->ticket > q->skipped) {
        pthread_mutex_unlock(&q->lock);
        double start = now_ms();
        int status = run_beside(q, job);
        double took = now_ms() - start;
        pthread_mutex_lock(&q->lock);
        q->busy_ms += took;
        if (!q->threaded) q->waited_ms += took;
        if (status < 0) {
            q->status = status;
            q->error = *error_last();
            error_clear();
        }
    }
    q->ended = job->ticket;
    pthread_cond_broadcast(&q->ended_some);
}

static void *run_jobs(void *arg)
{
    CommQueue *q = arg;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (!q->first && !q->closing) pthread_cond_wait(&q->posted_some, &q->lock);
        Job *job = q->first;
        if (!job) break; // closing, and nothing is left
        q->first = job->next;
        if (!q->first) q->last = &q->first;
        run_job(q, job);
        free(job);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

int start_thread(pthread_t *out, void *(*run)(void *), void *arg)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(out, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc ? fail(E_FAILED, NULL, "look at `ulimit -u`", "cannot start a thread: %s", strerror(rc)) : OK;
}

int comm_queue_open(CommQueue **out, bool threaded)
{
    CommQueue *q = xcalloc(1, sizeof *q);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->posted_some, NULL);
    pthread_cond_init(&q->ended_some, NULL);
    q->last = &q->first;
    int status = threaded ? start_thread(&q->thread, run_jobs, q) : OK;
    q->threaded = threaded && status == OK;
    if (status < 0)
        comm_queue_close(q);
    else
        *out = q;
    return status;
}

void comm_queue_close(CommQueue *q)
{
    if (!q) return;
    if (q->threaded) {
        pthread_mutex_lock(&q->lock);
        q->closing = true;
        pthread_cond_signal(&q->posted_some);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->thread, NULL);
    }
    pthread_cond_destroy(&q->ended_some);
    pthread_cond_destroy(&q->posted_some);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

void comm_queue_use_device(CommQueue *q, Device *d)
{
    if (q && q->threaded && d->mark) q->device = d;
}

uint64_t comm_queue_post(CommQueue *q, int (*run)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&q->lock);
    const uint64_t ticket = ++q->posted;
    if (q->threaded) {
        Job *job = xcalloc(1, sizeof *job);
        *job = (Job){.run = run, .ctx = ctx, .ticket = ticket, .mark = q->device ? q->device->mark(q->device) : 0};
        *q->last = job;
        q->last = &job->next;
        pthread_cond_signal(&q->posted_some);
    } else {
        run_job(q, &(Job){.run = run, .ctx = ctx, .ticket = ticket});
    }
    pthread_mutex_unlock(&q->lock);
    return ticket;
}

int comm_queue_wait(CommQueue *q, uint64_t ticket)
{
    pthread_mutex_lock(&q->lock);
    ASSERT(ticket <= q->posted);
    if (q->ended < ticket) {
        double start = now_ms();
        if (on_main_thread()) comm_in_queue++;
        while (q->ended < ticket) pthread_cond_wait(&q->ended_some, &q->lock);
        if (on_main_thread()) comm_in_queue--;
        q->waited_ms += now_ms() - start;
    }
    const int status = q->status;
    if (status < 0) {
        error_adopt(&q->error);
        q->status = OK;
        q->skipped = q->posted;
    }
    pthread_mutex_unlock(&q->lock);
    return status;
}

CommQueueStats comm_queue_stats(const CommQueue *q)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&q->lock; // reading changes nothing but this
    pthread_mutex_lock(lock);
    CommQueueStats s = {.busy_ms = q->busy_ms, .waited_ms = q->waited_ms, .jobs = q->posted};
    pthread_mutex_unlock(lock);
    return s;
}
