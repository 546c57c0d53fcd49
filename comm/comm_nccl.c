// comm_nccl: memory of CUDA devices exchanged by NCCL, which takes the fastest way there is between them. nccl.h is included here only.
//
// A collective is put on the stream of the thread that calls it and takes its turn among that stream's kernels: the call returns when
// it is submitted. While the host waits for the device, the communicators are asked how they are: one that has failed is given up, and
// the wait ends with an error. That a peer stays away without any fault is the watchdog's to find out: until the last collective has
// run, the group counts as being in it.
#include "comm_impl.h"
#include "cuda/cuda.h"
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Nccl {
    Comm *c;
    Device *d;
    ncclComm_t comm;
    cudaEvent_t last; // behind the last collective that was submitted
    bool recorded, failed;
    pthread_mutex_t lock; // of the thread that calls NCCL: the group's own, or one that looks
} Nccl;

static int failed(Nccl *n, ncclResult_t r, const char *what)
{
    if (!n->failed && n->comm) ncclCommAbort(n->comm); // otherwise its kernels would spin for ever
    n->failed = true;
    return fail(E_FAILED, "NCCL", "NCCL_DEBUG=INFO tells more; ATTUNE_COMM=mpi does without NCCL, slowly", "%s: %s",
                what, ncclGetErrorString(r));
}

// Calls of a communicator that does not block may still be going on when they return.
static int settle(Nccl *n, ncclResult_t r, const char *what)
{
    while (r == ncclInProgress) {
        const ncclResult_t asked = ncclCommGetAsyncError(n->comm, &r);
        if (asked != ncclSuccess) r = asked;
        if (r == ncclInProgress) nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return r == ncclSuccess ? OK : failed(n, r, what);
}

static int look(void *ctx)
{
    Nccl *n = ctx;
    int status = OK;
    if (pthread_mutex_trylock(&n->lock)) return OK; // who holds it will see
    if (!n->failed && n->recorded) {
        ncclResult_t now = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(n->comm, &now);
        if (asked != ncclSuccess) now = asked;
        if (now != ncclSuccess && now != ncclInProgress)
            status = failed(n, now, "a rank or the connection to it is lost");
        if (status == OK && cuda_reached(n->last)) n->c->under_way = false;
    }
    pthread_mutex_unlock(&n->lock);
    return status;
}

// ---- opening --------------------------------------------------------------------------------------------------------
static void nccl_close(void *impl)
{
    Nccl *n = impl;
    cuda_unwatch(n->d, n);
    if (n->comm && !n->failed && settle(n, ncclCommFinalize(n->comm), "ncclCommFinalize") == OK)
        ncclCommDestroy(n->comm);
    if (n->last) cudaEventDestroy(n->last);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

static int nccl_open(void **out, Comm *c, Device *d)
{
    ncclUniqueId id = {0};
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    Nccl *n = xcalloc(1, sizeof *n);
    *n = (Nccl){.c = c, .d = d};
    pthread_mutex_init(&n->lock, NULL);
    config.blocking = 0;
    (void)cuda_stream(d); // its device is this thread's
    ncclResult_t r = c->rank == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
    int status = r == ncclSuccess ? OK : failed(n, r, "ncclGetUniqueId");
    status = comm_agree(c, status);
    if (status == OK) status = comm_broadcast(c, &id, sizeof id, DT_U8, 0);
    if (status == OK)
        status = settle(n, ncclCommInitRankConfig(&n->comm, c->size, id, c->rank, &config), "ncclCommInitRank");
    if (status == OK && cuda_note(d, cudaEventCreateWithFlags(&n->last, cudaEventDisableTiming), "cudaEventCreate"))
        status = cuda_fault(d);
    cuda_watch(d, look, n);
    if (status < 0)
        nccl_close(n);
    else
        *out = n;
    return status;
}

// ---- collectives ----------------------------------------------------------------------------------------------------
static ncclDataType_t type_of(DType t)
{
    switch (t) {
    case DT_F32: return ncclFloat32;
    case DT_BF16: return ncclBfloat16;
    case DT_I64: return ncclInt64;
    case DT_I32: return ncclInt32;
    default: return ncclUint8;
    }
}

static ncclRedOp_t op_of(ReduceOp op)
{
    return op == REDUCE_SUM ? ncclSum : op == REDUCE_MAX ? ncclMax : ncclMin;
}

// Between the two the lock is held.
static int begin(Nccl *n)
{
    pthread_mutex_lock(&n->lock);
    const int status =
        n->failed ? fail(E_FAILED, "NCCL", NULL, "the communicator has failed before") : cuda_fault(n->d);
    if (status < 0) pthread_mutex_unlock(&n->lock);
    return status;
}

static int submitted(Nccl *n, ncclResult_t r, const char *what)
{
    const int status = settle(n, r, what);
    if (status == OK) {
        cuda_note(n->d, cudaEventRecord(n->last, cuda_stream(n->d)), "cudaEventRecord");
        n->c->under_way = n->recorded = true;
    }
    pthread_mutex_unlock(&n->lock);
    return status;
}

static int nccl_all_reduce(void *impl, void *x, size_t count, DType t, ReduceOp op)
{
    Nccl *n = impl;
    TRY(begin(n));
    return submitted(n, ncclAllReduce(x, x, count, type_of(t), op_of(op), n->comm, cuda_stream(n->d)), "ncclAllReduce");
}

static bool even(const Nccl *n, const size_t *start)
{
    for (int r = 1; r < n->c->size; r++)
        if (start[r + 1] - start[r] != start[1] - start[0]) return false;
    return true;
}

// Parts of different sizes: an operation for each, which NCCL does at once. The group's end tells how those under way went.
typedef ncclResult_t PartFn(void *part, size_t count, ncclDataType_t t, int rank, ncclComm_t comm, cudaStream_t stream);
static ncclResult_t each_part(const Nccl *n, char *at, const size_t *start, DType t, PartFn *fn)
{
    ncclResult_t r = ncclGroupStart();
    for (int i = 0; i < n->c->size && r == ncclSuccess; i++) {
        if (start[i + 1] > start[i])
            r = fn(at + start[i] * dtype_size(t), start[i + 1] - start[i], type_of(t), i, n->comm, cuda_stream(n->d));
        if (r == ncclInProgress) r = ncclSuccess;
    }
    const ncclResult_t end = ncclGroupEnd();
    return r == ncclSuccess ? end : r;
}

static ncclResult_t broadcast_part(void *part, size_t count, ncclDataType_t t, int from, ncclComm_t comm,
                                   cudaStream_t s)
{
    return ncclBroadcast(part, part, count, t, from, comm, s);
}

static ncclResult_t reduce_part(void *part, size_t count, ncclDataType_t t, int to, ncclComm_t comm, cudaStream_t s)
{
    return ncclReduce(part, part, count, t, ncclSum, to, comm, s);
}

static int nccl_all_gather(void *impl, void *x, const size_t *start, DType t)
{
    Nccl *n = impl;
    char *at = x;
    const size_t size = dtype_size(t);
    const cudaStream_t stream = cuda_stream(n->d);
    TRY(begin(n));
    if (even(n, start))
        return submitted(n,
                         ncclAllGather(at + start[n->c->rank] * size, at + start[0] * size, start[1] - start[0],
                                       type_of(t), n->comm, stream),
                         "ncclAllGather");
    return submitted(n, each_part(n, at, start, t, broadcast_part), "ncclBroadcast");
}

static int nccl_reduce_scatter(void *impl, void *x, const size_t *start, DType t)
{
    Nccl *n = impl;
    char *at = x;
    const size_t size = dtype_size(t);
    const cudaStream_t stream = cuda_stream(n->d);
    TRY(begin(n));
    if (even(n, start))
        return submitted(n,
                         ncclReduceScatter(at + start[0] * size, at + start[n->c->rank] * size, start[1] - start[0],
                                           type_of(t), ncclSum, n->comm, stream),
                         "ncclReduceScatter");
    return submitted(n, each_part(n, at, start, t, reduce_part), "ncclReduce");
}

static int nccl_broadcast(void *impl, void *x, size_t bytes, int root)
{
    Nccl *n = impl;
    TRY(begin(n));
    return submitted(n, ncclBroadcast(x, x, bytes, ncclUint8, root, n->comm, cuda_stream(n->d)), "ncclBroadcast");
}

const CommWire wire_nccl = {
    .device = "cuda",
    .open = nccl_open,
    .close = nccl_close,
    .all_reduce = nccl_all_reduce,
    .all_gather_parts = nccl_all_gather,
    .reduce_scatter_parts = nccl_reduce_scatter,
    .broadcast = nccl_broadcast,
};
