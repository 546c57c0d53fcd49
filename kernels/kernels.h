// kernels: the device layer. One Device has a table of ops (ops.def); model code calls d->op.NAME(d, ...) and knows nothing
// of CPUs or GPUs. Every op exists twice on the CPU: NAME_ref (plain loops, f64 sums: the specification) and the tuned one;
// device "cpu-ref" is the table of all references.
//
// Shape letters, used in every declaration:
//   T packed tokens of a micro-batch   S sequences in it    M trained positions (rows that reach the head)
//   C channels (hidden size)   NH query heads   KV key/value heads   D head size   F feed-forward size   V vocabulary
//   L layers   R adapter rank   N, K rows and columns of a weight: y (T,N) = x (T,K) · Wᵀ
//
// Conventions:
//   DType t: type of activations and packed weights, BF16 or F32. Sums, statistics, losses and gradients of parameters are
//     always f32 (or f64 inside); bf16 results are rounded once, to nearest even.
//   ld*: elements between two rows. Pointers are device memory unless said "host".
//   "(+)=": the op has an `accumulate` flag; false stores, true adds.
//   Determinism: every output element is summed in an order that depends on the shapes alone; never on the number of threads,
//     on scheduling, or on which rows share a micro-batch. No float atomics.
#pragma once
#include "attention.h"
#include "base.h"
#include "dtype.h"
#include "gelu.h"
#include "quant.h"
#include "sample.h"

size_t dtype_size(DType t);
const char *dtype_name(DType t); // "f32", "bf16", ...

typedef uint16_t bf16_t; // bit pattern
static inline float bf16_to_f32(bf16_t b)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)b << 16};
    return v.f;
}
static inline bf16_t f32_to_bf16(float f) // nearest even; NaN stays NaN
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (bf16_t)(v.u >> 16 | 0x40);
    return (bf16_t)((v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16);
}

// One linear layer's weight on a device, in the device's own layout (one copy; both directions read it).
// Made by linear_pack; frozen weights are never held in any other form.
typedef struct Packed {
    DType t;
    int N, K; // logical shape
    void *
        data; // device memory, d->packed_bytes(d, t, N, K) bytes, ARENA_ALIGN-byte aligned; or, with ld, in another's memory
    int64_t
        ld; // on a device with borders: elements between two rows, each at a multiple of 16 bytes; 0: K, side by side
} Packed;

// On a device with borders (cuda) the adapter of a weight may lie in a border of it, [W B; A ·] in one piece of (N+R, K+R) elements, and
// where s lies behind x, [x s], in the rows of one matrix, as ds behind dy, the two products of a linear are one:
//   y = [x s] · [W B]ᵀ      dx = [dy ds] · [W; A]

// A low-rank second product beside a linear: y += s · Bᵀ, dx += ds · A. r == 0: none.
typedef struct LowRank {
    int R;
    const void *s; // forward: s (T,R), the scaled x·Aᵀ.  backward: ds (T,R), the scaled dy·B.  row stride lds
    int64_t lds;
    const Packed *w; // forward: B (N,R).  backward: A (R,K)
} LowRank;

typedef struct Device Device;

typedef struct OpTable {
#define OP(name, args) void(*name) args;
#include "ops.def"
#undef OP
} OpTable;

struct Device {
    const char *name; // "cpu", "cpu-ref", "cuda"
    OpTable op;
    char about[160];     // "NVIDIA H100, 80 GiB, ..." or the CPU's instruction set
    size_t memory_bytes; // of the device's own; 0: it uses the host's
    bool fast_bf16;      // bf16 is not slower than f32
    bool borders;        // a Packed is rows, which may be part of a larger matrix (Packed.ld)
    char place[40];      // which piece of hardware it is, all over the world; empty: the host's processor
    // Memory of the device; on CPUs the host's. What is submitted later sees what an earlier call wrote; sources may be used again
    // when the call returns. upload, and linear_pack from host memory, may be called from several threads at once.
    int (*upload)(Device *d, void *dst, const void *host_src, size_t bytes);
    int (*download)(Device *d, void *host_dst, const void *src, size_t bytes); // host_dst is filled when it returns
    int (*zero)(Device *d, void *dst, size_t bytes);
    int (*sync)(Device *d); // waits for everything submitted, fills host results of ops; reports what failed
    size_t (*packed_bytes)(const Device *d, DType t, int N, int K);
    size_t (*scratch_bytes)(const Device *d); // what it holds now for its own use, in that memory, arenas apart
    void (*imitate)(const Device *d,
                    Device *null); // or NULL: lets a null device note the scratch that d's ops would take
    void (*close)(Device *d);
    // All NULL where device memory is the host's. obtain: E_FAILED when there is not as much; name is for the message.
    // owns: p lies in memory that obtain gave and release has not taken back.
    int (*obtain)(Device *d, void **out, size_t bytes, const char *name);
    void (*release)(Device *d, void *memory, size_t bytes);
    bool (*owns)(const Device *d, const void *p);
    // All NULL where ops are done when they return. mark: a point behind all that was submitted until now. Between side_begin and
    // side_end (which waits for them) what the calling thread submits runs beside what other threads submit, after the mark.
    uint64_t (*mark)(Device *d);
    int (*side_begin)(Device *d, uint64_t mark);
    int (*side_end)(Device *d);
    void *impl;
};

typedef struct DeviceConfig {
    const char *name; // "auto", "cpu", "cpu-ref", "cuda"
    int index;        // which GPU
    int threads;      // CPU threads; 0: OMP_NUM_THREADS, else all the rank may use
} DeviceConfig;
int device_open(Device **out, const DeviceConfig *c); // E_MISSING when the device is not there
// A device whose ops compute nothing and touch nothing, not even host outputs (callers zero those before): a training step
// runs over it with measuring arenas, whose pointers are all NULL, to learn what it asks for (a gradient that an op may be
// given as NULL, and that is wanted, has the address of nothing). upload, download, zero and sync return OK and touch no
// memory; name and packed_bytes are those of `like`, which stays the caller's and must outlive it; scratch_bytes is what
// `like` would have come to hold.
int device_open_null(Device **out, const Device *like);
void device_close(Device *d);                                                      // NULL is fine
int device_arena(Arena **out, Device *d, const char *name, size_t capacity_bytes); // an arena in the device's memory
bool device_owns(const Device *d, const void *p); // p is memory of the device's own, which the host must not touch
// "avx512-bf16", "avx2", "generic": what the tuned CPU kernels will use. ATTUNE_ISA=NAME lowers it (tests do).
const char *cpu_isa(void);
bool cpu_has_fast_bf16(void);
