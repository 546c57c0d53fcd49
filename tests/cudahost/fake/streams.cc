// streams: work in the order of its stream and of events, otherwise in any.
#include "fake.h"
#include <chrono>
#include <condition_variable>
#include <deque>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

struct CUevent_st {
    uint64_t recorded, reached; // how often it was recorded; up to which of these the streams have come
    bool timing;
    std::chrono::steady_clock::time_point when;
};
struct CUstream_st {
    std::deque<fake::Work> work;
    bool running; // its first piece is at work (on the worker's stack, or begun and not yet done)
};

namespace fake
{
std::recursive_mutex lock;
static CUstream_st first_stream; // the default stream
static std::vector<cudaStream_t> &streams = *new std::vector<cudaStream_t>{&first_stream};
static uint64_t random_state;

int env(const char *name, int otherwise)
{
    const char *s = getenv(name);
    return s ? atoi(s) : otherwise;
}

int seed()
{
    static const int s = env("CUDAHOST_SEED", 1);
    return s;
}

uint32_t random_below(uint32_t n)
{
    if (!random_state) random_state = (uint64_t)seed() * 0x9e3779b97f4a7c15u + 1;
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static bool forgets(const char *what)
{
    const char *forgotten = getenv("CUDAHOST_FORGET");
    return forgotten && !strcmp(forgotten, what);
}

void misuse(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "cudahost: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    abort();
}

// ---- the thread that does the work ----
// The executor wants one thread, and __shared__ variables are that thread's.
static std::mutex call_lock;
static std::condition_variable &called =
    *new std::condition_variable; // never destroyed: the thread waits for it at exit
static std::condition_variable &answered = *new std::condition_variable;
static bool wanted, done_some, there;

// One piece of work of a stream that has some; false when none could be taken any further.
static bool step()
{
    std::vector<cudaStream_t> ready;
    for (cudaStream_t s : streams)
        if (!s->work.empty() && !s->running) ready.push_back(s);
    while (!ready.empty()) {
        const size_t i = seed() ? random_below((uint32_t)ready.size()) : 0;
        cudaStream_t s = ready[i];
        s->running = true;
        const bool ended = s->work.front().step();
        s->running = false;
        if (ended) {
            s->work.pop_front();
            return true;
        }
        ready.erase(ready.begin() + (long)i);
    }
    return false;
}

static void work()
{
    std::unique_lock<std::mutex> l(call_lock);
    for (;;) {
        called.wait(l, [] { return wanted; });
        {
            std::lock_guard<std::recursive_mutex> inside(lock);
            done_some = step();
        }
        wanted = false;
        answered.notify_all();
    }
}

// Lets the worker take one step. Called without the lock.
static bool one_step()
{
    static std::mutex turn; // one caller at a time
    std::lock_guard<std::mutex> mine(turn);
    std::unique_lock<std::mutex> l(call_lock);
    if (!there) {
        std::thread(work).detach();
        there = true;
    }
    wanted = true;
    called.notify_all();
    answered.wait(l, [] { return !wanted; });
    return done_some;
}

// ---- submitting and waiting ----
void submit(cudaStream_t stream, Work work)
{
    std::lock_guard<std::recursive_mutex> inside(lock);
    if (!stream) stream = &first_stream;
    stream->work.push_back(std::move(work));
}

void submit(cudaStream_t stream, const char *what, std::function<void()> run)
{
    submit(stream, Work{[run] {
                            run();
                            return true;
                        },
                        what});
}

bool idle()
{
    std::lock_guard<std::recursive_mutex> inside(lock);
    for (cudaStream_t s : streams)
        if (!s->work.empty()) return false;
    return true;
}

static void tell_who_waits(const char *who)
{
    std::lock_guard<std::recursive_mutex> inside(lock);
    fprintf(stderr, "cudahost: %s waits, and nothing moves:\n", who);
    for (size_t i = 0; i < streams.size(); i++)
        if (!streams[i]->work.empty())
            fprintf(stderr, "  stream %zu: %zu pieces of work, the first is %s\n", i, streams[i]->work.size(),
                    streams[i]->work.front().what);
    abort();
}

void run_until(const char *who, const std::function<bool()> &done)
{
    using namespace std::chrono;
    auto moved = steady_clock::now();
    for (;;) {
        {
            std::lock_guard<std::recursive_mutex> inside(lock);
            if (done()) return;
        }
        if (one_step())
            moved = steady_clock::now();
        else
            std::this_thread::sleep_for(microseconds(50)); // other ranks have to come first
        if (steady_clock::now() - moved > seconds(env("CUDAHOST_PATIENCE", 120))) tell_who_waits(who);
    }
}

void run_some()
{
    bool go;
    {
        std::lock_guard<std::recursive_mutex> inside(lock);
        go = !seed() || random_below(4);
    }
    if (go) one_step();
}
} // namespace fake

using namespace fake;

extern "C" {
// ---- streams ----
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    FAKE_ENTRY;
    if (flags & ~(unsigned)cudaStreamNonBlocking) return error(cudaErrorInvalidValue);
    streams.push_back(*out = new CUstream_st{});
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    return cudaStreamCreateWithFlags(out, cudaStreamNonBlocking);
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (!s) s = &first_stream;
    run_until("cudaStreamSynchronize", [s] { return s->work.empty(); });
    return error(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    if (!s) s = &first_stream;
    run_some();
    FAKE_ENTRY;
    return error(s->work.empty() ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaDeviceSynchronize(void)
{
    run_until("cudaDeviceSynchronize", idle);
    return error(cudaSuccess);
}
// Its work goes on, as on a GPU.
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    run_until("cudaStreamDestroy", [s] { return s->work.empty(); });
    FAKE_ENTRY;
    for (size_t i = 1; i < streams.size(); i++)
        if (streams[i] == s) {
            streams.erase(streams.begin() + (long)i);
            delete s;
            return cudaSuccess;
        }
    misuse("cudaStreamDestroy: not a stream");
}

// ---- events ----
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    FAKE_ENTRY;
    *out = new CUevent_st{};
    (*out)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, 0);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    FAKE_ENTRY;
    const uint64_t number = ++e->recorded;
    submit(s, "an event", [e, number] {
        if (number > e->reached) e->reached = number;
        e->when = std::chrono::steady_clock::now();
    });
    return error(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    FAKE_ENTRY;
    if (forgets("waits")) return error(cudaSuccess);
    const uint64_t number = e->recorded; // of now: a later record does not count; none at all: no wait
    submit(s, Work{[e, number] { return e->reached >= number; }, "a wait for an event"});
    return error(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    bool reached;
    {
        FAKE_ENTRY;
        if (forgets("queries")) return error(cudaSuccess);
        reached = e->reached >= e->recorded;
    }
    if (!reached) run_some();
    FAKE_ENTRY;
    return error(e->reached >= e->recorded ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    const uint64_t number = e->recorded;
    run_until("cudaEventSynchronize", [e, number] { return e->reached >= number; });
    return error(cudaSuccess);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    FAKE_ENTRY;
    if (!from->timing || !to->timing) return error(cudaErrorInvalidResourceHandle);
    if (from->reached < from->recorded || to->reached < to->recorded) return error(cudaErrorNotReady);
    *ms = std::chrono::duration<float, std::milli>(to->when - from->when).count();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    run_until("cudaEventDestroy", [e] { return e->reached >= e->recorded; });
    FAKE_ENTRY;
    delete e;
    return cudaSuccess;
}
}
