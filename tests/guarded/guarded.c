// The device "cpu" with memory of its own: host code cannot touch it. Its arenas are accessible only while an op or a copy runs,
// as a GPU's are, and what ops give back to the host arrives when the device is synchronised and no sooner. Linked into the
// program with --wrap=cpu_device_open, it turns every test of whole runs into one of who follows the rules of kernels.h.
#define _GNU_SOURCE
#include "kernels.h"
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_REGIONS = 16 };

static struct Region {
    char *at;
    size_t bytes;
} region[MOST_REGIONS];
static int users; // ops and copies under way
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static OpTable real;
static Device was;
static _Thread_local bool beside;

// ---- the guard ------------------------------------------------------------------------------------------------------
static void protect(int access)
{
    for (int i = 0; i < MOST_REGIONS; i++)
        if (region[i].at) ASSERT(mprotect(region[i].at, region[i].bytes, access) == 0);
}

static void guard_open(void)
{
    pthread_mutex_lock(&lock);
    if (!users++) protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
}

static void guard_close(void)
{
    pthread_mutex_lock(&lock);
    if (!--users) protect(PROT_NONE);
    pthread_mutex_unlock(&lock);
}

static struct Region *region_of(const void *p)
{
    for (int i = 0; i < MOST_REGIONS; i++)
        if (region[i].at && (const char *)p >= region[i].at && (const char *)p < region[i].at + region[i].bytes)
            return &region[i];
    return NULL;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    void *frame[32];
    char text[128];
    int n = snprintf(text, sizeof text, "guarded: host code touches %s at %p\n",
                     region_of(info->si_addr) ? "device memory" : "what is nobody's memory", info->si_addr);
    if (write(STDERR_FILENO, text, (size_t)n) < 0) _exit(99);
    backtrace_symbols_fd(frame, backtrace(frame, (int)COUNT_OF(frame)), STDERR_FILENO);
    signal(sig, SIG_DFL);
    raise(sig);
}

// ---- memory ---------------------------------------------------------------------------------------------------------
static int guarded_obtain(Device *d, void **out, size_t bytes, const char *name)
{
    (void)d;
    int i = 0;
    while (i < MOST_REGIONS && region[i].at) i++;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (i == MOST_REGIONS || p == MAP_FAILED) return fail(E_FAILED, name, NULL, "no memory for it");
    memset(p, 0xff, bytes); // NaN, for who expects zeros
    mprotect(p, bytes, PROT_NONE);
    pthread_mutex_lock(&lock);
    region[i] = (struct Region){p, bytes};
    if (users) protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
    *out = p;
    return OK;
}

static void guarded_release(Device *d, void *memory, size_t bytes)
{
    (void)d;
    struct Region *r = region_of(memory);
    ASSERT(r && r->at == memory && r->bytes == bytes);
    pthread_mutex_lock(&lock);
    *r = (struct Region){0};
    pthread_mutex_unlock(&lock);
    munmap(memory, bytes);
}

static bool guarded_owns(const Device *d, const void *p)
{
    (void)d;
    return region_of(p);
}

static int guarded_upload(Device *d, void *dst, const void *src, size_t bytes)
{
    ASSERT(!bytes || (region_of(dst) && !region_of(src)));
    guard_open();
    int status = was.upload(d, dst, src, bytes);
    guard_close();
    return status;
}

static int guarded_download(Device *d, void *dst, const void *src, size_t bytes)
{
    ASSERT(!bytes || (region_of(src) && !region_of(dst)));
    guard_open();
    int status = was.download(d, dst, src, bytes);
    guard_close();
    return status;
}

static int guarded_zero(Device *d, void *dst, size_t bytes)
{
    ASSERT(!bytes || region_of(dst));
    guard_open();
    int status = was.zero(d, dst, bytes);
    guard_close();
    return status;
}

// ---- what ops give back to the host ---------------------------------------------------------------------------------
typedef struct Result {
    struct Result *next;
    void *to;
    size_t bytes;
    double value[];
} Result;
static Result *results;

static void deliver_later(void *to, const void *value, size_t bytes)
{
    Result *r = xmalloc(sizeof *r + bytes);
    *r = (Result){results, to, bytes};
    memcpy(r->value, value, bytes);
    results = r;
}

static int guarded_sync(Device *d)
{
    while (results) {
        Result *r = results;
        results = r->next;
        memcpy(r->to, r->value, r->bytes);
        free(r);
    }
    return was.sync(d);
}

static void guarded_row_squares(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    double *host = xcalloc((size_t)rows + 1, sizeof *host);
    guard_open();
    real.row_squares(d, host, x, rows, K);
    guard_close();
    deliver_later(out, host, (size_t)rows * sizeof *host);
    free(host);
}

static void guarded_fix_add(Device *d, int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow)
{
    int found = 0;
    guard_open();
    real.fix_add(d, acc, g, n, limit, &found);
    guard_close();
    if (found) deliver_later(overflow, &found, sizeof found);
}

#include "forwarders.inc"

// ---- beside the ops -------------------------------------------------------------------------------------------------
static _Atomic uint64_t marks;

static uint64_t guarded_mark(Device *d)
{
    (void)d;
    ASSERT(!beside);
    return ++marks;
}

static int guarded_side_begin(Device *d, uint64_t mark)
{
    (void)d;
    ASSERT(!beside && mark && mark <= marks);
    beside = true;
    return OK;
}

static int guarded_side_end(Device *d)
{
    (void)d;
    ASSERT(beside);
    beside = false;
    return OK;
}

// ---- opening --------------------------------------------------------------------------------------------------------
int __real_cpu_device_open(Device **out, const DeviceConfig *c);
int __wrap_cpu_device_open(Device **out, const DeviceConfig *c);

int __wrap_cpu_device_open(Device **out, const DeviceConfig *c)
{
    static const OpTable guarded = {
#define OP(name, args) .name = guarded_##name,
#include "ops.def"
#undef OP
    };
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    TRY(__real_cpu_device_open(out, c));
    Device *d = *out;
    was = *d;
    real = d->op;
    d->op = guarded;
    d->upload = guarded_upload;
    d->download = guarded_download;
    d->zero = guarded_zero;
    d->sync = guarded_sync;
    d->obtain = guarded_obtain;
    d->release = guarded_release;
    d->owns = guarded_owns;
    d->mark = guarded_mark;
    d->side_begin = guarded_side_begin;
    d->side_end = guarded_side_end;
    sigaction(SIGSEGV, &fault, NULL);
    return OK;
}
