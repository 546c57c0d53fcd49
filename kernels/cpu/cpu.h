// What the files of the CPU device share: the device's own state, scratch memory, and the declaration of
// every op twice, NAME (tuned) and NAME_ref (the specification). Private to kernels/cpu.
//
// An op runs its own OpenMP region with num_threads(cpu_threads(d)) and hands out tasks whose results do not
// depend on who runs them. A Device serves one host thread at a time: scratch belongs to the op that runs.
#pragma once
#include "../kernels.h"

enum { CACHE_LINE = 64 };

// Ordered: a level includes those below it.
typedef enum CpuIsa { ISA_GENERIC, ISA_AVX2, ISA_AVX512_BF16, ISA_COUNT } CpuIsa;
CpuIsa cpu_isa_level(void); // what the machine has, lowered by ATTUNE_ISA

typedef struct ThreadScratch {
    void *data;
    size_t bytes;
    char pad[CACHE_LINE - sizeof(void *) - sizeof(size_t)]; // neighbours belong to other threads
} ThreadScratch;

typedef struct CpuDevice {
    CpuIsa isa; // fixed when the device is opened
    int threads;
    ThreadScratch *scratch; // (threads + 1): one per thread, and the shared one last
    bool notes;             // stands behind a null device: scratch is noted, not taken
} CpuDevice;

static inline CpuDevice *cpu_of(const Device *d)
{
    return d->impl;
}
static inline int cpu_threads(const Device *d)
{
    return cpu_of(d)->threads;
}
static inline CpuIsa cpu_isa_of(const Device *d)
{
    return cpu_of(d)->isa;
}

// Memory of the calling thread, 64-byte aligned, contents undefined; valid until the same thread asks again
// or the op ends. Grows to the largest request and then stays: no allocation once warm. Call it inside the
// op's parallel region.
void *cpu_thread_scratch(Device *d, size_t bytes);
// The same for memory that all threads of an op see. Call it outside the parallel region, once per op.
void *cpu_shared_scratch(Device *d, size_t bytes);
// Over a null device: notes what an op takes of both, and tells that nothing else is to be done.
bool cpu_only_notes(Device *d, size_t thread_bytes, size_t shared_bytes);

// Sums blocks (count, C) into the first one, as a balanced tree: ((0+1)+(2+3))+...
void cpu_add_blocks(float *blocks, int count, int C);

// Is this word of the vocabulary among the V rows at hand? Otherwise its row is another rank's.
static inline bool cpu_in_shard(int32_t word, int V)
{
    return word >= 0 && word < V;
}

// Serial linear_unpack, for reading rows of a packed table inside a parallel region (embedding).
void cpu_unpack_rows(const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld);

static inline float cpu_load(const void *p, DType t,
                             int64_t i) // for references and tails: one element, BF16 or F32
{
    return t == DT_BF16 ? bf16_to_f32(((const bf16_t *)p)[i]) : ((const float *)p)[i];
}
static inline void cpu_store(void *p, DType t, int64_t i, float v)
{
    if (t == DT_BF16)
        ((bf16_t *)p)[i] = f32_to_bf16(v);
    else
        ((float *)p)[i] = v;
}
static inline const void *cpu_at(const void *p, DType t, int64_t i) // address of element i
{
    return (const char *)p + i * (t == DT_BF16 ? 2 : 4);
}
static inline void *cpu_row(const void *p, DType t, int64_t i) // the same, for rows that an inner loop may write
{
    return (void *)cpu_at(p, t, i);
}

#define OP(name, args)                                                                                                 \
    void name args;                                                                                                    \
    void name##_ref args;
#include "../ops.def"
#undef OP

int cpu_device_open(Device **out, const DeviceConfig *c);
int cpu_ref_device_open(Device **out, const DeviceConfig *c);
