// Matrix products by cuBLASLt. Which of its kernels is best for a shape it says itself, in tens of microseconds: the answers are kept.
//
// The number of tokens differs from one micro-batch to the next. Answers are asked for and kept by that number rounded up to a
// multiple of TOKENS, so that there are few, and then they depend on nothing that was computed before: the same shape gets the same
// kernel in every run.
#include "cuda.h"
#include <stdlib.h>
#include <string.h>

enum { ENTRIES = 4096, TOKENS = 128 };

// What an answer depends on. Everything is int64, so that there is no padding to compare.
typedef struct GemmKey {
    int64_t M, N, K, a_turned, b_turned, in, out, lda, ldb, ldc, ldout, adds, in_place;
    int64_t aligned_a, aligned_b, aligned_c, aligned_out;
} GemmKey;

typedef struct GemmEntry {
    GemmKey key;
    cublasLtMatmulAlgo_t algo;
    bool used, none; // none: cuBLASLt has nothing for it
    int64_t fits;    // number of tokens that it was last found to fit
} GemmEntry;

struct GemmCache {
    GemmEntry entry[ENTRIES];
    int n, asked;
};

// Row-major a·b is column-major (bᵀ·aᵀ): cuBLASLt's A is our b and its B our a, and turned is turned.
typedef struct GemmPlan {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, c, out;
} GemmPlan;

static bool note(Device *d, cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return false;
    cuda_note_text(d, tmpf("cuBLASLt: %s: %s", what, cublasLtGetStatusString(s)));
    return true;
}

static cudaDataType_t type_of(DType t)
{
    ASSERT(t == DT_F32 || t == DT_BF16);
    return t == DT_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static bool set_turned(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t which, bool turned)
{
    const int32_t value = turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    return cublasLtMatmulDescSetAttribute(op, which, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

static void lay_out(cublasLtMatrixLayoutOpaque_t *l, DType t, int64_t rows, int64_t columns, int64_t ld)
{
    cublasLtMatrixLayoutInit(l, type_of(t), (uint64_t)columns, (uint64_t)rows, ld);
}

static bool make_plan(GemmPlan *p, const CudaGemm *g)
{
    if (cublasLtMatmulDescInit(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS) return false;
    if (!set_turned(&p->op, CUBLASLT_MATMUL_DESC_TRANSA, g->b_turned)) return false;
    if (!set_turned(&p->op, CUBLASLT_MATMUL_DESC_TRANSB, g->a_turned)) return false;
    lay_out(&p->a, g->in, g->b_turned ? g->N : g->K, g->b_turned ? g->K : g->N, g->ldb);
    lay_out(&p->b, g->in, g->a_turned ? g->K : g->M, g->a_turned ? g->M : g->K, g->lda);
    lay_out(&p->c, g->out_t, g->M, g->N, g->ldc);
    lay_out(&p->out, g->out_t, g->M, g->N, g->ldout);
    return true;
}

// ---- answers --------------------------------------------------------------------------------------------------------
static int64_t alignment(const void *p)
{
    int64_t a = 256;
    while ((uintptr_t)p % (uintptr_t)a) a /= 2;
    return a;
}

static GemmKey key_of(const CudaGemm *g)
{
    return (GemmKey){.M = g->M,
                     .N = g->N,
                     .K = g->K,
                     .a_turned = g->a_turned,
                     .b_turned = g->b_turned,
                     .in = g->in,
                     .out = g->out_t,
                     .lda = g->lda,
                     .ldb = g->ldb,
                     .ldc = g->ldc,
                     .ldout = g->ldout,
                     .adds = g->beta != 0,
                     .in_place = g->c == g->out,
                     .aligned_a = alignment(g->b),
                     .aligned_b = alignment(g->a),
                     .aligned_c = alignment(g->c),
                     .aligned_out = alignment(g->out)};
}

static bool ask(Device *d, const GemmKey *k, GemmPlan *p, cublasLtMatmulAlgo_t *algo)
{
    CudaDevice *c = cuda_of(d);
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasLtMatmulHeuristicResult_t best;
    const uint64_t workspace = WORKSPACE_BYTES;
    // partial sums of a product that is cut along K are added in a fixed order, in f32
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        int64_t bytes;
    } align[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k->aligned_a},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k->aligned_b},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k->aligned_c},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k->aligned_out}};
    int found = 0;
    cublasLtMatmulPreferenceInit(&wish);
    cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                         sizeof reductions);
    for (size_t i = 0; i < COUNT_OF(align); i++) {
        const uint32_t bytes = (uint32_t)align[i].bytes;
        cublasLtMatmulPreferenceSetAttribute(&wish, align[i].name, &bytes, sizeof bytes);
    }
    c->gemms->asked++;
    const cublasStatus_t s =
        cublasLtMatmulAlgoGetHeuristic(c->lt, &p->op, &p->a, &p->b, &p->c, &p->out, &wish, 1, &best, &found);
    if (s != CUBLAS_STATUS_SUCCESS || !found || best.state != CUBLAS_STATUS_SUCCESS) return false;
    *algo = best.algo;
    return true;
}

// The answer for g's shape as it is in `shape`, asked for if it is new.
static GemmEntry *answer(Device *d, const CudaGemm *shape)
{
    GemmCache *c = cuda_of(d)->gemms;
    const GemmKey key = key_of(shape);
    size_t at = (size_t)hash64(&key, sizeof key, 0) % ENTRIES;
    while (c->entry[at].used && memcmp(&c->entry[at].key, &key, sizeof key) != 0) at = (at + 1) % ENTRIES;
    GemmEntry *e = &c->entry[at];
    if (e->used) return e;
    if (c->n == ENTRIES / 2) { // begin anew: at this size, looking for a free place would take long
        memset(c->entry, 0, sizeof c->entry);
        c->n = 0;
    }
    GemmPlan p;
    *e = (GemmEntry){.key = key, .used = true};
    e->none = !make_plan(&p, shape) || !ask(d, &key, &p, &e->algo);
    c->n++;
    return e;
}

static int rounded(int tokens)
{
    return tokens < TOKENS ? tokens : (int)ROUND_UP((int64_t)tokens, TOKENS);
}

static bool fits(Device *d, GemmEntry *e, const GemmPlan *p, int64_t tokens)
{
    cublasLtMatmulHeuristicResult_t check;
    if (e->none || e->fits == tokens) return !e->none;
    GemmPlan q = *p;
    const cublasStatus_t s = cublasLtMatmulAlgoCheck(cuda_of(d)->lt, &q.op, &q.a, &q.b, &q.c, &q.out, &e->algo, &check);
    if (s != CUBLAS_STATUS_SUCCESS || check.state != CUBLAS_STATUS_SUCCESS || check.workspaceSize > WORKSPACE_BYTES)
        return false;
    e->fits = tokens;
    return true;
}

// For activations M is the number of tokens; for gradients of weights, where a is turned, K is.
static const cublasLtMatmulAlgo_t *choose(Device *d, const CudaGemm *g, const GemmPlan *p)
{
    CudaGemm shape = *g;
    int *tokens = g->a_turned ? &shape.K : &shape.M;
    const int exact = *tokens;
    *tokens = rounded(exact);
    GemmEntry *e = answer(d, &shape);
    if (!fits(d, e, p, exact) && *tokens != exact) e = answer(d, g);
    return e->none ? NULL : &e->algo;
}

// ---- products -------------------------------------------------------------------------------------------------------
// Nothing to sum: out = beta * c, which callers want with beta 0 or with c in place only.
static void no_terms(Device *d, const CudaGemm *g)
{
    ASSERT(g->beta == 0 || g->c == g->out);
    const size_t size = dtype_size(g->out_t);
    if (g->beta == 0)
        cuda_note(
            d, cudaMemset2DAsync(g->out, (size_t)g->ldout * size, 0, (size_t)g->N * size, (size_t)g->M, cuda_stream(d)),
            "cudaMemset2DAsync");
}

void cuda_gemm(Device *d, const CudaGemm *wanted)
{
    CudaDevice *c = cuda_of(d);
    CudaGemm g = *wanted;
    if (g.beta == 0) g.c = g.out, g.ldc = g.ldout;
    if (!g.M || !g.N || cuda_skips(d)) return;
    if (!g.K) {
        no_terms(d, &g);
        return;
    }
    GemmPlan p;
    const cublasLtMatmulAlgo_t *algo = make_plan(&p, &g) ? choose(d, &g, &p) : NULL;
    if (!algo) {
        cuda_note_text(d, tmpf("cuBLASLt has no product of %d x %d x %d (%s to %s)", g.M, g.N, g.K, dtype_name(g.in),
                               dtype_name(g.out_t)));
        return;
    }
    note(d,
         cublasLtMatmul(c->lt, &p.op, &g.alpha, g.b, &p.a, g.a, &p.b, &g.beta, g.c, &p.c, g.out, &p.out, algo,
                        c->workspace, WORKSPACE_BYTES, cuda_stream(d)),
         tmpf("product of %d x %d x %d", g.M, g.N, g.K));
}

int cuda_gemm_shapes(const Device *d)
{
    return cuda_of(d)->gemms->asked;
}

// ---- opening --------------------------------------------------------------------------------------------------------
int cuda_gemm_open(Device *d)
{
    CudaDevice *c = cuda_of(d);
    c->gemms = xcalloc(1, sizeof *c->gemms);
    cuda_note(d, cudaMalloc(&c->workspace, WORKSPACE_BYTES), "device memory");
    note(d, cublasLtCreate(&c->lt), "cublasLtCreate");
    return cuda_fault(d);
}

void cuda_gemm_close(Device *d)
{
    CudaDevice *c = cuda_of(d);
    if (c->lt) cublasLtDestroy(c->lt);
    cudaFree(c->workspace);
    free(c->gemms);
}
