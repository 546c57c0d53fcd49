// cuda: what the host files of the CUDA device share (device.c, memory.c, gemm.c, ops.c, head.c) and comm/comm_nccl.c sees. The toolkit's
// headers are included in this folder and there only.
//
// Ops and copies are put on a stream and run later, in the order in which they were submitted; what fails is told by the next
// sync or download. A thread between side_begin and side_end submits to the second stream; all others to the first.
#pragma once
#include "../kernels.h"
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
    STAGES = 16,             // pinned pieces for uploads under way
    STAGE_BYTES = 512 << 10, // of each
    DOWN_BYTES = 2 << 20,    // of each of the two pieces for downloads
    RESULT_BYTES = 4 << 20,  // host results of ops that wait for the next sync
    MARKS = 256,             // more than are waited for at a time
    MOST_BLOCKS = 64,        // blocks of memory that are handed out at a time
    MOST_FLAGS = 16,         // integers of the host that ops set
    FLAG_BYTES = MOST_FLAGS * sizeof(int),
    MOST_WATCHERS = 8,
    WORKSPACE_BYTES = 32 << 20, // what cuBLAS asks for on Hopper
};

typedef struct CudaStage {
    pthread_mutex_t lock; // held while it is filled
    char *host;           // pinned
    char *device;         // for what is not put where it belongs as it is
    cudaEvent_t sent;     // until then it is being read
} CudaStage;

typedef struct CudaResult { // a value on its way from the device to the host
    void *to;
    const char *from; // pinned
    size_t bytes;
} CudaResult;

// ops.c: attention's table for the sequences that were asked for last.
typedef struct CudaAttention {
    AttnShape shape;
    int32_t *lists; // shape's arrays; NULL: there is no table yet
    void *table;    // device
    size_t bytes;
} CudaAttention;

typedef struct GemmCache GemmCache;

typedef struct CudaDevice {
    int index, sms;
    bool dry; // of a null device (imitate): ops are called to see what they ask for, and nothing is submitted or taken
    cudaStream_t compute, side;
    cudaEvent_t reached, side_reached, mark[MARKS];
    _Atomic uint64_t marks;

    // memory.c
    pthread_mutex_t memory_lock;
    struct CudaBlock {
        char *at;
        size_t bytes;
    } block[MOST_BLOCKS];
    CudaStage stage[STAGES];
    _Atomic unsigned next_stage;
    pthread_mutex_t down_lock;
    char *down[2];
    cudaEvent_t down_sent[2];
    void *scratch;
    size_t scratch_bytes;

    // results of ops that are the host's: filled by sync
    char *results;
    size_t results_used;
    CudaResult *result;
    int n_results, cap_results;
    int *flags;               // device (MOST_FLAGS)
    int *flag_to[MOST_FLAGS]; // the host's integer that each stands for
    int n_flags;

    CudaAttention attention;

    cublasLtHandle_t lt;
    void *workspace;
    GemmCache *gemms;

    pthread_mutex_t fault_lock;
    char fault[256]; // the first that happened; empty: none
    struct CudaWatcher {
        int (*look)(void *ctx);
        void *ctx;
    } watcher[MOST_WATCHERS];
} CudaDevice;

static inline CudaDevice *cuda_of(const Device *d)
{
    return d->impl;
}

// ---- device.c ----
cudaStream_t cuda_stream(Device *d); // the calling thread's; makes d this thread's current device
// Remembers the first fault; sync tells it. Returns whether e is one.
bool cuda_note(Device *d, cudaError_t e, const char *what);
void cuda_note_text(Device *d, const char *text);
bool cuda_skips(const Device *d); // nothing is to be submitted: something has gone wrong, or d is dry
int cuda_fault(Device *d);        // OK, or E_FAILED with the fault in the error record
bool cuda_reached(cudaEvent_t e); // does not count as an error when it is not
// Until the event has come, looking at the watchers meanwhile.
int cuda_wait(Device *d, cudaEvent_t e);
// look is called now and then while the host waits for the device, from any thread that does: a status below 0 ends the waiting.
void cuda_watch(Device *d, int (*look)(void *ctx), void *ctx);
void cuda_unwatch(Device *d, void *ctx);

// ---- memory.c ----
int cuda_memory_open(Device *d);
void cuda_memory_close(Device *d);
// What is held for a request of so much: up to a quarter more, since requests differ a little. It grows with them in steps, so that what
// is held in the end is a matter of the largest alone, and not of the order in which they came.
size_t cuda_room(size_t bytes);
// Device memory for one op, 256-byte aligned, undefined; the next op's may be the same. NULL, and a fault noted, when there is not
// as much; NULL of a dry device, which only notes what would be held. From the computing thread only.
void *cuda_scratch(Device *d, size_t bytes);
// bytes at device memory `from` go to `to`, on the host, when the device is next synchronised.
void cuda_deliver(Device *d, void *to, const void *from, size_t bytes);
// A device integer that ops may set to 1, for the host's *to, which becomes 1 when the device is next synchronised.
int *cuda_flag(Device *d, int *to);
int cuda_deliver_all(Device *d); // waits for the device and fills what was promised
// Rows of K elements in host memory, ld apart, into device memory, ldd apart; rounds when src is F32 and dst BF16.
int cuda_upload_rows(Device *d, void *dst, DType dst_t, int64_t ldd, const void *src, DType src_t, int64_t ld, int rows,
                     int K);
// Rows of K elements as quantised blocks (quant.h) side by side in host memory, decoded into device memory, ldd apart.
int cuda_upload_blocks(Device *d, void *dst, DType dst_t, int64_t ldd, const void *src, Quant format, int rows, int K);

// ---- gemm.c ----
// Row-major matrices, ld elements from row to row: out (M,N) = alpha * op(a) (M,K) · op(b) (K,N) + beta * c (M,N), where a is (M,K),
// or (K,M) when a_turned, and b is (K,N), or (N,K) when b_turned. a and b are of type in; c and out of type out_t; products and
// sums are f32 (without TF32), c may be out.
typedef struct CudaGemm {
    int M, N, K;
    bool a_turned, b_turned;
    DType in, out_t;
    const void *a, *b, *c;
    void *out;
    int64_t lda, ldb, ldc, ldout;
    float alpha, beta;
} CudaGemm;
int cuda_gemm_open(Device *d);
void cuda_gemm_close(Device *d);
void cuda_gemm(Device *d, const CudaGemm *g);
int cuda_gemm_shapes(const Device *d); // that heuristics were asked for

// ---- ops.c, head.c ----
// Over a dry device an op has no memory (device_open_null) and is run for its cuda_scratch alone, which it asks for before anything makes
// it return. Outside of RUN it moves pointers with cuda_at and looks into the host's only.
static inline void *cuda_at(const void *p, size_t bytes) // NULL stays NULL
{
    return p ? (char *)p + bytes : NULL;
}
// Launches cuda_NAME(arguments..., stream); when nothing is to be submitted, the arguments are not even looked at.
#define RUN(name, ...)                                                                                                 \
    do {                                                                                                               \
        if (cuda_skips(d)) break;                                                                                      \
        cuda_##name(__VA_ARGS__, cuda_stream(d));                                                                      \
        cuda_note(d, cudaGetLastError(), #name);                                                                       \
    } while (0)
#define OP(name, args) void cuda_op_##name args;
#include "../ops.def"
#undef OP

int cuda_device_open(Device **out, const DeviceConfig *c);
