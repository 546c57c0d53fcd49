// The CPU devices: "cpu", the table of tuned ops, and "cpu-ref", the table of references. Owns threads, the
// choice of instruction set and scratch memory; the ops are in the other files of this folder.
#include "cpu.h"
#include "gemm.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>

// ---- instruction set ------------------------------------------------------------------------------------
static const char *const isa_names[ISA_COUNT] = {
    [ISA_GENERIC] = "generic", [ISA_AVX2] = "avx2", [ISA_AVX512_BF16] = "avx512-bf16"};

static CpuIsa machine_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_GENERIC;
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 && __builtin_cpu_supports("avx512bf16") ? ISA_AVX512_BF16 : ISA_AVX2;
#else
    return ISA_GENERIC;
#endif
}

CpuIsa cpu_isa_level(void)
{
    CpuIsa have = machine_isa();
    const char *want = getenv("ATTUNE_ISA");
    for (int i = 0; want && i < ISA_COUNT; i++)
        if (streq(want, isa_names[i])) return MIN((CpuIsa)i, have);
    return have;
}

const char *cpu_isa(void)
{
    return isa_names[cpu_isa_level()];
}
bool cpu_has_fast_bf16(void)
{
    return cpu_isa_level() >= ISA_AVX512_BF16;
}

// ---- scratch --------------------------------------------------------------------------------------------
static void *scratch_reserve(ThreadScratch *s, size_t bytes)
{
    if (bytes > s->bytes) {
        free(s->data);
        s->bytes = ROUND_UP(bytes + bytes / 4, CACHE_LINE); // some room: requests of one op differ a little
        s->data = aligned_alloc(CACHE_LINE, s->bytes);
        ASSERT(s->data);
    }
    return s->data;
}

void *cpu_thread_scratch(Device *d, size_t bytes)
{
    int i = omp_get_thread_num();
    ASSERT(i < cpu_threads(d));
    return scratch_reserve(&cpu_of(d)->scratch[i], bytes);
}

void *cpu_shared_scratch(Device *d, size_t bytes)
{
    return scratch_reserve(&cpu_of(d)->scratch[cpu_threads(d)], bytes);
}

bool cpu_only_notes(Device *d, size_t thread_bytes, size_t shared_bytes)
{
    CpuDevice *c = cpu_of(d);
    for (int i = 0; c->notes && i <= c->threads; i++)
        c->scratch[i].bytes = MAX(c->scratch[i].bytes, i < c->threads ? thread_bytes : shared_bytes);
    return c->notes;
}

static size_t cpu_scratch_bytes(const Device *d)
{
    size_t sum = 0;
    for (int i = 0; i <= cpu_threads(d); i++) sum += cpu_of(d)->scratch[i].bytes;
    return sum;
}

// ---- the device -----------------------------------------------------------------------------------------
// Device memory is host memory, and an op has finished when it returns.
static int cpu_copy(Device *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    if (bytes && dst != src) memmove(dst, src, bytes);
    return OK;
}

static int cpu_zero(Device *d, void *dst, size_t bytes)
{
    (void)d;
    if (bytes) memset(dst, 0, bytes);
    return OK;
}

static int cpu_sync(Device *d)
{
    (void)d;
    return OK;
}

static size_t cpu_packed_bytes(const Device *d, DType t, int N, int K)
{
    (void)d;
    return packed_bytes(t, N, K);
}

static void cpu_close(Device *d)
{
    CpuDevice *c = cpu_of(d);
    for (int i = 0; i <= c->threads; i++) free(c->scratch[i].data);
    free(c->scratch);
    free(c);
    free(d);
}

// The tuned ops that take much scratch; of the others' there is little.
static void cpu_imitate(const Device *d, Device *null)
{
    CpuDevice *c = xcalloc(1, sizeof *c);
    *c = *cpu_of(d);
    c->scratch = xcalloc((size_t)c->threads + 1, sizeof *c->scratch);
    c->notes = true;
    null->op.linear_fwd = linear_fwd;
    null->op.linear_dx = linear_dx;
    null->op.linear_dw = linear_dw;
    null->op.lora_s = lora_s;
    null->op.lora_bwd = lora_bwd;
    null->op.attn_fwd = attn_fwd;
    null->op.attn_bwd = attn_bwd;
    null->op.head_fwd = head_fwd;
    null->op.head_bwd = head_bwd;
    null->op.head_fwd_bwd = head_fwd_bwd;
    null->packed_bytes = cpu_packed_bytes;
    null->scratch_bytes = cpu_scratch_bytes;
    null->close = cpu_close;
    null->impl = c;
}

static int open_with(Device **out, const DeviceConfig *c, const char *name, const OpTable *op)
{
    if (c->threads < 0 || c->threads > 4096)
        return fail(E_INPUT, "device", "0 takes OMP_NUM_THREADS, or all the rank may use", "%d threads", c->threads);
    CpuDevice *cpu = xcalloc(1, sizeof *cpu);
    cpu->isa = cpu_isa_level();
    cpu->threads = c->threads ? c->threads : omp_get_max_threads();
    cpu->scratch = xcalloc((size_t)cpu->threads + 1, sizeof *cpu->scratch);
    Device *d = xcalloc(1, sizeof *d);
    *d = (Device){.name = name,
                  .op = *op,
                  .fast_bf16 = cpu->isa >= ISA_AVX512_BF16,
                  .upload = cpu_copy,
                  .download = cpu_copy,
                  .zero = cpu_zero,
                  .sync = cpu_sync,
                  .packed_bytes = cpu_packed_bytes,
                  .scratch_bytes = cpu_scratch_bytes,
                  .imitate = cpu_imitate,
                  .close = cpu_close,
                  .impl = cpu};
    snprintf(d->about, sizeof d->about, "%s", isa_names[cpu->isa]);
    *out = d;
    return OK;
}

int cpu_device_open(Device **out, const DeviceConfig *c)
{
    static const OpTable tuned = {
#define OP(name, args) .name = name,
#include "../ops.def"
#undef OP
    };
    return open_with(out, c, "cpu", &tuned);
}

int cpu_ref_device_open(Device **out, const DeviceConfig *c)
{
    static const OpTable references = {
#define OP(name, args) .name = name##_ref,
#include "../ops.def"
#undef OP
    };
    return open_with(out, c, "cpu-ref", &references);
}
