// The CUDA device: one GPU, its streams, and what has gone wrong on it. Memory is in memory.c, products in gemm.c, ops in ops.c.
#include "cuda.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static _Thread_local const CudaDevice *beside; // the device whose second stream this thread submits to
static _Thread_local int current = -1;         // the runtime keeps one per thread

// ---- faults ---------------------------------------------------------------------------------------------------------
void cuda_note_text(Device *d, const char *text)
{
    CudaDevice *c = cuda_of(d);
    pthread_mutex_lock(&c->fault_lock);
    if (!*c->fault) snprintf(c->fault, sizeof c->fault, "%s", text);
    pthread_mutex_unlock(&c->fault_lock);
}

bool cuda_note(Device *d, cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return false;
    cuda_note_text(d, tmpf("%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e)));
    return true;
}

bool cuda_skips(const Device *d)
{
    return cuda_of(d)->dry || *cuda_of(d)->fault;
}

int cuda_fault(Device *d)
{
    CudaDevice *c = cuda_of(d);
    pthread_mutex_lock(&c->fault_lock);
    char text[sizeof c->fault];
    memcpy(text, c->fault, sizeof text);
    pthread_mutex_unlock(&c->fault_lock);
    if (!*text) return OK;
    const bool memory = strstr(text, "memory") != NULL;
    return fail(E_FAILED, "cuda",
                memory ? "lower train.micro_tokens, or set train.recompute; `attune plan RECIPE` tells what a run needs"
                       : "`nvidia-smi -q` tells of a GPU's errors; compute-sanitizer finds a kernel's",
                "%s", text);
}

// ---- waiting --------------------------------------------------------------------------------------------------------
void cuda_watch(Device *d, int (*look)(void *ctx), void *ctx)
{
    CudaDevice *c = cuda_of(d);
    int i = 0;
    pthread_mutex_lock(&c->fault_lock);
    while (i < MOST_WATCHERS && c->watcher[i].look) i++;
    ASSERT(i < MOST_WATCHERS);
    c->watcher[i] = (struct CudaWatcher){look, ctx};
    pthread_mutex_unlock(&c->fault_lock);
}

void cuda_unwatch(Device *d, void *ctx)
{
    CudaDevice *c = cuda_of(d);
    pthread_mutex_lock(&c->fault_lock);
    for (int i = 0; i < MOST_WATCHERS; i++)
        if (c->watcher[i].look && c->watcher[i].ctx == ctx) c->watcher[i] = (struct CudaWatcher){0};
    pthread_mutex_unlock(&c->fault_lock);
}

static int look_around(Device *d)
{
    CudaDevice *c = cuda_of(d);
    for (int i = 0; i < MOST_WATCHERS; i++) {
        pthread_mutex_lock(&c->fault_lock);
        const struct CudaWatcher w = c->watcher[i];
        pthread_mutex_unlock(&c->fault_lock);
        if (w.look) TRY(w.look(w.ctx));
    }
    return OK;
}

bool cuda_reached(cudaEvent_t e)
{
    const cudaError_t r = cudaEventQuery(e);
    if (r == cudaErrorNotReady) (void)cudaGetLastError(); // which "not ready" is, too
    return r == cudaSuccess;
}

// By asking, not by blocking: only so can a peer that is gone be noticed. A moment of spinning first, since most waits are short.
int cuda_wait(Device *d, cudaEvent_t e)
{
    enum { SPINS = 2000, LOOK_MS = 20 };
    double looked = 0;
    for (unsigned tries = 0;; tries++) {
        const cudaError_t r = cudaEventQuery(e);
        if (r == cudaSuccess) return OK;
        (void)cudaGetLastError(); // "not ready" counts as the last error too
        if (r != cudaErrorNotReady) {
            cuda_note(d, r, "waiting");
            return cuda_fault(d);
        }
        if (tries < SPINS) continue;
        const double now = now_ms();
        if (!looked) looked = now;
        if (now - looked > LOOK_MS) {
            TRY(look_around(d));
            looked = now;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

// ---- streams --------------------------------------------------------------------------------------------------------
cudaStream_t cuda_stream(Device *d)
{
    CudaDevice *c = cuda_of(d);
    if (current != c->index && !cuda_note(d, cudaSetDevice(c->index), "cudaSetDevice")) current = c->index;
    return beside == c ? c->side : c->compute;
}

// In the end watchers are told, too, when there was nothing to wait for.
static int cuda_sync(Device *d)
{
    CudaDevice *c = cuda_of(d);
    if (beside == c) { // what is promised to the host is the computing thread's
        cuda_note(d, cudaEventRecord(c->side_reached, cuda_stream(d)), "cudaEventRecord");
        TRY(cuda_wait(d, c->side_reached));
        TRY(cuda_fault(d));
    } else {
        TRY(cuda_deliver_all(d));
    }
    return look_around(d);
}

static uint64_t cuda_mark(Device *d)
{
    CudaDevice *c = cuda_of(d);
    const uint64_t mark = atomic_fetch_add(&c->marks, 1);
    cuda_note(d, cudaEventRecord(c->mark[mark % MARKS], cuda_stream(d)), "cudaEventRecord");
    return mark;
}

// An event that has been taken for a later mark meanwhile only makes this one wait for longer.
static int cuda_side_begin(Device *d, uint64_t mark)
{
    CudaDevice *c = cuda_of(d);
    ASSERT(!beside);
    beside = c;
    cuda_note(d, cudaStreamWaitEvent(cuda_stream(d), c->mark[mark % MARKS], 0), "cudaStreamWaitEvent");
    return cuda_fault(d);
}

static int cuda_side_end(Device *d)
{
    ASSERT(beside == cuda_of(d));
    int status = cuda_sync(d);
    beside = NULL;
    return status;
}

// ---- opening --------------------------------------------------------------------------------------------------------
static int no_device(cudaError_t e)
{
    const char *hint = e == cudaErrorInsufficientDriver
                           ? "install or update NVIDIA's driver; `nvidia-smi` must show the GPU"
                       : e == cudaErrorNoDevice ? "is this machine's GPU visible (CUDA_VISIBLE_DEVICES, the container)?"
                                                : "`nvidia-smi` must show the GPU; or set device: cpu";
    return fail(E_MISSING, "cuda", hint, "%s", cudaGetErrorString(e));
}

// Ranks of a node take its GPUs in turn. Where the launcher shows each rank a GPU of its own, all have the number 0: whether two
// ranks have got the same one is seen by comparing places.
static int pick_device(const DeviceConfig *config, int *index)
{
    int count = 0;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || !count) return no_device(e == cudaSuccess ? cudaErrorNoDevice : e);
    *index = config->index % count;
    return OK;
}

static int attribute(int index, enum cudaDeviceAttr a)
{
    int value = 0;
    return cudaDeviceGetAttribute(&value, a, index) == cudaSuccess ? value : 0;
}

static int check_device(Device *d, int index)
{
    struct cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e != cudaSuccess) return no_device(e);
    if (p.major < 8)
        return fail(E_MISSING, "cuda", "Ampere (compute capability 8.0) or later; or set device: cpu",
                    "%s has compute capability %d.%d", p.name, p.major, p.minor);
    d->memory_bytes = p.totalGlobalMem;
    for (size_t i = 0; i < sizeof p.uuid.bytes; i++)
        snprintf(d->place + 2 * i, 3, "%02x", (unsigned char)p.uuid.bytes[i]);
    snprintf(d->about, sizeof d->about, "%.80s, %.0f GiB, compute capability %d.%d, CUDA %d.%d", p.name,
             (double)p.totalGlobalMem / (1 << 30), p.major, p.minor, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return OK;
}

static int open_streams(Device *d)
{
    CudaDevice *c = cuda_of(d);
    const unsigned plain = cudaEventDisableTiming;
    cudaError_t e = cudaSetDevice(c->index);
    if (e != cudaSuccess) return no_device(e);
    current = c->index;
    cuda_note(d, cudaStreamCreateWithFlags(&c->compute, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda_note(d, cudaStreamCreateWithFlags(&c->side, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda_note(d, cudaEventCreateWithFlags(&c->reached, plain), "cudaEventCreate");
    cuda_note(d, cudaEventCreateWithFlags(&c->side_reached, plain), "cudaEventCreate");
    for (int i = 0; i < MARKS; i++) cuda_note(d, cudaEventCreateWithFlags(&c->mark[i], plain), "cudaEventCreate");
    return cuda_fault(d);
}

static size_t packed_bytes(const Device *d, DType t, int N, int K)
{
    (void)d;
    return (size_t)N * (size_t)K * dtype_size(t);
}

// All device memory that is not blocks for arenas: what ops grow, and what is there from the beginning.
static size_t scratch_bytes(const Device *d)
{
    const CudaDevice *c = cuda_of(d);
    return c->scratch_bytes + c->attention.bytes + WORKSPACE_BYTES + (size_t)STAGES * STAGE_BYTES + FLAG_BYTES;
}

static void dry_close(Device *d)
{
    pthread_mutex_destroy(&cuda_of(d)->fault_lock);
    free(d->impl);
    free(d);
}

// The very ops, so that what they will be found to take is what they take.
static void cuda_imitate(const Device *d, Device *null)
{
    CudaDevice *c = xcalloc(1, sizeof *c);
    pthread_mutex_init(&c->fault_lock, NULL);
    c->dry = true;
    null->op = d->op;
    null->packed_bytes = packed_bytes;
    null->scratch_bytes = scratch_bytes;
    null->close = dry_close;
    null->impl = c;
}

static void cuda_close(Device *d)
{
    CudaDevice *c = cuda_of(d);
    if (c->compute) (void)cudaStreamSynchronize(c->compute);
    if (c->side) (void)cudaStreamSynchronize(c->side);
    cuda_gemm_close(d);
    cuda_memory_close(d);
    for (int i = 0; i < MARKS; i++)
        if (c->mark[i]) cudaEventDestroy(c->mark[i]);
    if (c->reached) cudaEventDestroy(c->reached);
    if (c->side_reached) cudaEventDestroy(c->side_reached);
    if (c->compute) cudaStreamDestroy(c->compute);
    if (c->side) cudaStreamDestroy(c->side);
    pthread_mutex_destroy(&c->fault_lock);
    free(c);
    free(d);
}

int cuda_device_open(Device **out, const DeviceConfig *config)
{
    static const OpTable ops = {
#define OP(name, args) .name = cuda_op_##name,
#include "../ops.def"
#undef OP
    };
    int index = 0, status = OK;
    TRY(pick_device(config, &index));
    CudaDevice *c = xcalloc(1, sizeof *c);
    Device *d = xcalloc(1, sizeof *d);
    pthread_mutex_init(&c->fault_lock, NULL);
    c->index = index;
    c->sms = attribute(index, cudaDevAttrMultiProcessorCount);
    *d = (Device){.name = "cuda",
                  .op = ops,
                  .fast_bf16 = true,
                  .borders = true,
                  .sync = cuda_sync,
                  .packed_bytes = packed_bytes,
                  .scratch_bytes = scratch_bytes,
                  .imitate = cuda_imitate,
                  .close = cuda_close,
                  .mark = cuda_mark,
                  .side_begin = cuda_side_begin,
                  .side_end = cuda_side_end,
                  .impl = c};
    TRY_DONE(check_device(d, index));
    TRY_DONE(open_streams(d));
    TRY_DONE(cuda_memory_open(d));
    TRY_DONE(cuda_gemm_open(d));
    *out = d;
    d = NULL;
done:
    if (d) cuda_close(d);
    return status;
}
