// ledger: what each CUDA kernel costs, without a GPU. Runs the operations of kernels.def under the executor and counts; reads registers, spills
// and shared memory out of ptxas -v; prints tables; exits with 1 when a gate is not met.
//   ledger [PTXAS_LOG...]
//
// Gates: no finding, no spills and no stack in any kernel, sectors at most 1.1 times and wavefronts at most 1.05 times the ideal, bytes moved at most what
// kernels.def says.
//
// The bound is the largest of: tensor FLOPs / peak, bytes moved / memory bandwidth, sectors requested / (64 bytes per cycle and SM, the way to
// L2), wavefronts of shared memory / (one per cycle and SM), exp2 / (16 per cycle and SM). It says what limits a perfect schedule, not what
// is reached.
#include "cuda_kernels.h"
#include "cudahost.h"
#include "kernels.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

char *__cxa_demangle(const char *mangled, char *out, size_t *size, int *status);

enum { MAX_RESOURCES = 2048, MAX_KERNELS = 256, MAX_BUFFERS = 64, MMA_FLOPS = 2 * 16 * 8 * 16 };
static const double SECTORS_LIMIT = 1.1, WAVEFRONTS_LIMIT = 1.05;

typedef struct Machine {
    const char *name, *arch;
    double tensor, memory, sms, clock; // FLOP/s, bytes/s, number, Hz
    int smem;                          // bytes per SM
} Machine;
static const Machine machines[] = {
    {"A100", "sm_80", 312e12, 2.039e12, 108, 1.41e9, 164 << 10},
    {"H100", "sm_90", 989e12, 3.35e12, 132, 1.83e9, 228 << 10},
};
enum { MACHINES = sizeof machines / sizeof machines[0] };

static int breaches;
static void breach(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void breach(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("breach: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    breaches++;
}

// ---- what ptxas says ----
typedef struct Resources {
    char name[512], arch[16];
    int registers, smem, stack, spills;
} Resources;
static Resources resources[MAX_RESOURCES];
static int n_resources;

static void read_ptxas(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) {
        breach("%s cannot be read", path);
        return;
    }
    char line[2048];
    Resources *r = NULL;
    while (fgets(line, sizeof line, f)) {
        char name[512], arch[16];
        int stack, stores, loads;
        const char *p;
        if ((p = strstr(line, "Compiling entry function")) &&
            sscanf(p, "Compiling entry function '%511[^']' for '%15[^']'", name, arch) == 2 &&
            n_resources < MAX_RESOURCES) {
            r = &resources[n_resources++];
            snprintf(r->name, sizeof r->name, "%s", name);
            snprintf(r->arch, sizeof r->arch, "%s", arch);
        }
        if (r && (p = strstr(line, "bytes stack frame")) &&
            sscanf(line, " %d bytes stack frame, %d bytes spill stores, %d bytes spill loads", &stack, &stores,
                   &loads) == 3) {
            r->stack = stack;
            r->spills = stores + loads;
        }
        if (r && (p = strstr(line, "Used ")) && sscanf(p, "Used %d registers", &r->registers) == 1)
            if ((p = strstr(line, " bytes smem"))) {
                while (p > line && isdigit((unsigned char)p[-1])) p--;
                r->smem = (int)strtol(p, NULL, 10);
            }
    }
    fclose(f);
}

static const Resources *resources_of(const char *mangled, const char *arch)
{
    for (int i = 0; i < n_resources; i++)
        if (streq(resources[i].name, mangled) && streq(resources[i].arch, arch)) return &resources[i];
    return NULL;
}

// Of every kernel that there is, whether an operation of the ledger launches it or not
static void check_resources(void)
{
    for (const Resources *r = resources; r < resources + n_resources; r++)
        if (r->spills || r->stack)
            breach("%s for %s: %d bytes spilled, %d bytes of stack", r->name, r->arch, r->spills, r->stack);
}

// ---- runs ----
typedef struct Kernel {
    const char *op, *mangled;
    char name[160];
    int launches;
    CudahostLaunch launch; // the last one
    CudahostTotals totals;
} Kernel;
static Kernel kernels[MAX_KERNELS];
static int n_kernels;

typedef struct Op {
    const char *name, *shape, *known;
    double bytes, tensor, exp2, moved_limit;
    int launches;
    CudahostCounts counts;
    CudahostTotals totals;
} Op;

// "norm<bf16, true>" of a symbol
static void print_name(const char *mangled, char *out, size_t size)
{
    int status;
    char *full = __cxa_demangle(mangled, NULL, NULL, &status);
    const char *p = full ? full : mangled;
    if (!strncmp(p, "void ", 5)) p += 5;
    size_t n = 0;
    int depth = 0; // of template arguments, which may have casts
    while (*p && (*p != '(' || depth > 0) && n + 1 < size) {
        depth += (*p == '<') - (*p == '>');
        if (!strncmp(p, "__nv_bfloat16", 13))
            p += 13, n += (size_t)snprintf(out + n, size - n, "bf16");
        else
            out[n++] = *p++;
    }
    out[MIN(n, size - 1)] = 0;
    free(full);
}

static void add_totals(CudahostTotals *to, const CudahostTotals *t)
{
    for (size_t i = 0; i < sizeof *t / sizeof(uint64_t); i++) ((uint64_t *)to)[i] += ((const uint64_t *)t)[i];
}

static void on_launch(void *context, const CudahostKernel *kernel, const CudahostLaunch *launch,
                      const CudahostCounts *counts, const CudahostTotals *totals)
{
    (void)counts;
    Op *op = context;
    const char *mangled = cudahost_kernel_name(kernel);
    Kernel *k = kernels;
    while (k < kernels + n_kernels && (!streq(k->mangled, mangled) || !streq(k->op, op->name))) k++;
    if (k == kernels + MAX_KERNELS) return;
    if (k == kernels + n_kernels) {
        n_kernels++;
        *k = (Kernel){.op = op->name, .mangled = mangled};
        print_name(mangled, k->name, sizeof k->name);
    }
    k->launches++;
    k->launch = *launch;
    add_totals(&k->totals, totals);
    op->launches++;
}

// ---- operands ----
static void *buffers[MAX_BUFFERS];
static int n_buffers;

static void *buffer(size_t bytes)
{
    if (n_buffers == MAX_BUFFERS) abort();
    return buffers[n_buffers++] = cudahost_alloc(bytes, "an operand");
}
static float uniform(size_t i)
{
    uint32_t u[4];
    philox((uint64_t)n_buffers, 0, i, u);
    return 2 * u32_to_unit(u[0]) - 1;
}
static void *bf16s(size_t n)
{
    bf16_t *p = buffer(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = f32_to_bf16(uniform(i));
    return p;
}
static void *f32s(size_t n)
{
    float *p = buffer(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = uniform(i);
    return p;
}
static void *iota(size_t n)
{
    int32_t *p = buffer(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = (int32_t)i;
    return p;
}
static void *zeros(size_t bytes)
{
    return memset(buffer(bytes), 0, bytes);
}
static void *any(size_t bytes) // scratch, outputs
{
    return buffer(bytes);
}
// One sequence whose last `queries` tokens see themselves and what is before them
static AttnShape attention(int queries, int keys, int NH, int KV, int D)
{
    static int32_t zero, q, k;
    q = queries, k = keys;
    return (AttnShape){.S = 1,
                       .q_start = &zero,
                       .q_len = &q,
                       .k_start = &zero,
                       .k_len = &k,
                       .NH = NH,
                       .KV = KV,
                       .D = D,
                       .scale = 0.1f};
}
static void *attn_table(const AttnShape *a)
{
    void *table = any(cuda_attn_table_bytes(a));
    cuda_attn_table(table, a);
    return table;
}
static void free_buffers(void)
{
    while (n_buffers > 0) cudahost_free(buffers[--n_buffers]);
}

// Lines of the source that cost more than they must, as table rows
static Buf dear_lines;

static void note_lines(const Op *op)
{
    static CudahostSite sites[1024];
    for (size_t i = 0, n = cudahost_sites(sites, COUNT_OF(sites)); i < n; i++) {
        const CudahostSite *s = &sites[i];
        if (s->cost * 100 > s->ideal * 102)
            buf_printf(&dear_lines, "| %s | %s | %s | %zu | %.2f |\n", op->name, s->where,
                       cudahost_traffic_name(s->kind), (size_t)s->requests, (double)s->cost / (double)s->ideal);
    }
}

static void begin(Op *op)
{
    cudahost_order(CUDAHOST_FORWARD, 0);
    cudahost_clear();
    cudahost_listen(on_launch, op);
}
static void end(Op *op)
{
    cudahost_listen(NULL, NULL);
    op->counts = cudahost_counts();
    op->totals = cudahost_totals();
    note_lines(op);
    free_buffers();
    for (size_t i = 0; i < cudahost_findings(); i++) {
        const CudahostFinding *f = cudahost_finding(i);
        breach("%s: %s: %s", op->name, cudahost_kind_name(f->kind), f->text);
    }
}

// ---- kernels.def ----
#define SHAPE(...) enum { __VA_ARGS__ };
#define BYTES(f)   .bytes = (f)
#define TENSOR(f)  .tensor = (f)
#define EXP2(f)    .exp2 = (f)
#define MOVED(f)   .moved_limit = (f)
#define CALL(...)  __VA_ARGS__
#define OP(op_name, shape_text, constants, bytes, tensor, exp2, moved, known_text, call)                               \
    static void run_##op_name(Op *op)                                                                                  \
    {                                                                                                                  \
        constants *op = (Op){.name = #op_name, .shape = shape_text, .known = known_text, bytes, tensor, exp2, moved};  \
        begin(op);                                                                                                     \
        call;                                                                                                          \
        end(op);                                                                                                       \
    }
#include "kernels.def"
#undef OP

static void (*const runs[])(Op *op) = {
#define OP(op_name, ...) run_##op_name,
#include "kernels.def"
#undef OP
};

// ---- tables ----
static double ratio(double a, double b)
{
    return b > 0 ? a / b : 1;
}

// Blocks that an SM holds at once, and what keeps it from more
static int resident(const Resources *r, const CudahostLaunch *l, const Machine *m, const char **limit)
{
    const int warps = (int)((l->block[0] * l->block[1] * l->block[2] + 31) / 32);
    const int by_warps = 64 / warps, by_registers = 65536 / ROUND_UP(r->registers * 32, 256) / 4 * 4 / warps;
    const int by_smem = m->smem / (ROUND_UP(r->smem + (int)l->smem_bytes, 128) + 1024);
    int blocks = MIN(MIN(by_warps, by_registers), MIN(by_smem, 32));
    *limit = blocks == by_warps ? "full" : blocks == by_registers ? "registers" : blocks == by_smem ? "smem" : "blocks";
    return blocks;
}

static void check_limit(const Kernel *k, const char *measure, double value, double limit)
{
    if (value > limit + 1e-9) breach("%s (%s): %s %.3g, limit %.3g", k->name, k->op, measure, value, limit);
}

static void print_kernel(const Kernel *k)
{
    const unsigned *b = k->launch.block;
    const double sectors = ratio((double)k->totals.sectors, (double)k->totals.sectors_ideal);
    const double wavefronts = ratio((double)k->totals.wavefronts, (double)k->totals.wavefronts_ideal);
    printf("| %s | %s | %u |", k->op, k->name, b[0] * b[1] * b[2]);
    for (int m = 0; m < MACHINES; m++) {
        const Resources *r = resources_of(k->mangled, machines[m].arch);
        if (!r) {
            printf(" - | - | - |");
            if (n_resources) breach("%s: ptxas does not know it for %s", k->name, machines[m].arch);
            continue;
        }
        const char *limit;
        const int blocks = resident(r, &k->launch, &machines[m], &limit);
        printf(" %d%s | %zu | %.0f%% (%s) |", r->registers, r->spills ? " SPILLS" : "",
               (size_t)r->smem + k->launch.smem_bytes, 100.0 * blocks * (int)((b[0] * b[1] * b[2] + 31) / 32) / 64,
               limit);
        if (blocks == 0) breach("%s: no block fits on %s", k->name, machines[m].name);
    }
    printf(" %.2f | %.2f |\n", sectors, wavefronts);
    check_limit(k, "sectors", sectors, SECTORS_LIMIT);
    check_limit(k, "wavefronts", wavefronts, WAVEFRONTS_LIMIT);
}

static void print_bound(const Op *op, const Machine *m)
{
    const char *const names[] = {"tensor", "memory", "L2", "smem", "exp2"};
    const double cycles = m->sms * m->clock, moved = (double)(op->totals.unique_read + op->totals.unique_written);
    const double terms[] = {(double)op->counts.mma * MMA_FLOPS / m->tensor, moved / m->memory,
                            32.0 * (double)op->totals.sectors / (64 * cycles), (double)op->totals.wavefronts / cycles,
                            (double)op->counts.exp2 / (16 * cycles)};
    size_t most = 0, next = 1;
    for (size_t i = 0; i < COUNT_OF(terms); i++)
        if (terms[i] > terms[most]) most = i;
    next = most == 0 ? 1 : 0;
    for (size_t i = 0; i < COUNT_OF(terms); i++)
        if (i != most && terms[i] > terms[next]) next = i;
    printf(" %s, then %s %.0f%% |", names[most], names[next], 100 * ratio(terms[next], terms[most]));
}

static void print_op(const Op *op)
{
    const double moved = (double)(op->totals.unique_read + op->totals.unique_written);
    const double times = ratio(moved, op->bytes), flops = (double)op->counts.mma * MMA_FLOPS;
    printf("| %s | %s | %d | %.0f | %.3f | %.2f |", op->name, op->shape, op->launches, op->bytes / 1024, times,
           ratio(32.0 * (double)op->totals.sectors, moved));
    if (op->tensor > 0)
        printf(" %.2f |", flops / op->tensor);
    else
        printf(" - |");
    if (op->exp2 > 0)
        printf(" %.2f |", (double)op->counts.exp2 / op->exp2);
    else
        printf(" - |");
    for (int m = 0; m < MACHINES; m++) print_bound(op, &machines[m]);
    printf(" %s |\n", op->known);
    if (times > op->moved_limit + 1e-9)
        breach("%s: moves %.3f times its bytes, limit %.3f", op->name, times, op->moved_limit);
}

int main(int argc, char **argv)
{
    static Op ops[COUNT_OF(runs)];
    for (int i = 1; i < argc; i++) read_ptxas(argv[i]);
    check_resources();
    if (!cudahost_hooked()) {
        fprintf(stderr, "ledger: the kernels were compiled without hooks\n");
        return 1;
    }
    for (size_t i = 0; i < COUNT_OF(runs); i++) runs[i](&ops[i]);
    printf("### Operations\n\n| operation | shape | launches | least KiB | moved / least | requested / moved | "
           "tensor FLOPs / needed | "
           "exp2 / needed | bound on A100 | bound on H100 | known |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < COUNT_OF(runs); i++) print_op(&ops[i]);
    printf("\n### Kernels\n\n| operation | kernel | threads | sm_80: registers | shared memory | occupancy | sm_90: "
           "registers | shared memory | "
           "occupancy | sectors / ideal | wavefronts / ideal |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n_kernels; i++) print_kernel(&kernels[i]);
    if (dear_lines.len)
        printf("\n### Lines that cost more than the ideal\n\n| operation | line | access | requests | cost / ideal "
               "|\n|---|---|---|---|---|\n%s",
               dear_lines.data);
    buf_free(&dear_lines);
    return breaches > 0;
}
