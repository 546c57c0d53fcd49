// cublaslt: matrix products in plain C++, and the refusals of the real library: types that do not go together, leading dimensions
// that are too short, pointers that are less aligned than was promised when the algorithm was asked for. Sums are cut along k in a
// way that differs from shape to shape, and the workspace is scribbled over, as kernels do.
#include "fake.h"
#include <cublasLt.h>
#include <string.h>
#include <vector>

namespace fake
{
struct Layout { // in a cublasLtMatrixLayoutOpaque_t
    cudaDataType type;
    int32_t order;
    uint64_t rows, columns;
    int64_t ld;
};
struct Operation { // in a cublasLtMatmulDescOpaque_t
    cublasComputeType_t compute;
    cudaDataType scale;
    int32_t turn_a, turn_b, epilogue;
};
struct Wish { // in a cublasLtMatmulPreferenceOpaque_t
    uint64_t workspace;
    uint32_t align[4], reductions;
};
struct Algorithm { // in a cublasLtMatmulAlgo_t
    uint64_t magic, workspace;
    uint32_t align[4], parts;
    uint16_t types, turned;
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(Wish) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t), "");
enum { MAGIC = 0x616c676f };

static size_t size_of(cudaDataType t)
{
    return t == CUDA_R_16BF ? 2 : 4;
}

struct Product {
    Operation op;
    Layout a, b, c, d;
    uint64_t m, n, k;
};

// ---- what the library checks ----
static bool types_fit(const Product &p)
{
    if (p.op.compute != CUBLAS_COMPUTE_32F || p.op.scale != CUDA_R_32F) return false;
    if (p.a.type != p.b.type || p.c.type != p.d.type) return false;
    if (p.a.type == CUDA_R_16BF) return p.d.type == CUDA_R_16BF || p.d.type == CUDA_R_32F;
    return p.a.type == CUDA_R_32F && p.d.type == CUDA_R_32F;
}

static bool layout_fits(const Layout &l)
{
    return l.order == CUBLASLT_ORDER_COL && l.rows && l.columns && l.ld >= (int64_t)l.rows;
}

static bool shapes_fit(Product *p)
{
    const Layout *all[] = {&p->a, &p->b, &p->c, &p->d};
    for (const Layout *l : all)
        if (!layout_fits(*l)) return false;
    p->m = p->op.turn_a ? p->a.columns : p->a.rows;
    p->k = p->op.turn_a ? p->a.rows : p->a.columns;
    p->n = p->op.turn_b ? p->b.rows : p->b.columns;
    const uint64_t k = p->op.turn_b ? p->b.columns : p->b.rows;
    return k == p->k && p->c.rows == p->m && p->d.rows == p->m && p->c.columns == p->n && p->d.columns == p->n;
}

static bool read_product(Product *p, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                         cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d)
{
    memcpy(&p->op, op, sizeof p->op);
    memcpy(&p->a, a, sizeof p->a);
    memcpy(&p->b, b, sizeof p->b);
    memcpy(&p->c, c, sizeof p->c);
    memcpy(&p->d, d, sizeof p->d);
    return p->op.epilogue == CUBLASLT_EPILOGUE_DEFAULT && types_fit(*p) && shapes_fit(p);
}

static uint16_t types_of(const Product &p)
{
    return (uint16_t)((unsigned)p.a.type << 8 | (unsigned)p.d.type);
}

static uint16_t turned_of(const Product &p)
{
    return (uint16_t)(p.op.turn_a << 4 | p.op.turn_b);
}

static uint64_t workspace_of(const Product &p, uint32_t parts)
{
    return parts > 1 ? parts * p.m * p.n * sizeof(float) : 0;
}

static bool strides_aligned(const Layout &l, uint32_t bytes)
{
    const uint64_t stride = (uint64_t)l.ld * size_of(l.type);
    return stride % (bytes > 16 ? 16 : bytes) == 0 || bytes <= size_of(l.type);
}

// Kernels that read 16 bytes at a time want rows and pointers to be aligned to them; there are others for everything else.
static uint32_t needed_alignment(const Layout &l, uint32_t promised)
{
    uint32_t a = promised > 16 ? 16 : promised;
    while (!strides_aligned(l, a)) a /= 2;
    return a;
}

static bool algorithm_fits(const Algorithm &a, const Product &p)
{
    const Layout *all[] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++)
        if (!strides_aligned(*all[i], a.align[i])) return false;
    return a.magic == MAGIC && a.types == types_of(p) && a.turned == turned_of(p);
}

// ---- the product ----
static float load(const void *p, cudaDataType t, uint64_t i)
{
    if (t == CUDA_R_32F) return ((const float *)p)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void store(void *p, cudaDataType t, uint64_t i, float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof f);
    if (t == CUDA_R_32F)
        ((float *)p)[i] = f;
    else if (f != f)
        ((uint16_t *)p)[i] = (uint16_t)(bits >> 16 | 0x40);
    else
        ((uint16_t *)p)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Columns of k values each, whichever way they are stored: (count, k).
static std::vector<float> gather(const void *p, const Layout &l, bool along_rows, uint64_t count, uint64_t k)
{
    std::vector<float> out(count * k);
    for (uint64_t i = 0; i < count; i++)
        for (uint64_t j = 0; j < k; j++)
            out[i * k + j] = load(p, l.type, along_rows ? j + i * (uint64_t)l.ld : i + j * (uint64_t)l.ld);
    return out;
}

// sum[0..m) += x (k, m) values times y (k), rows from..to
__attribute__((target_clones("avx2", "default"), optimize("O3"))) static void
add_terms(float *__restrict__ sum, const float *__restrict__ x, const float *y, uint64_t m, uint64_t from, uint64_t to)
{
    for (uint64_t j = from; j < to; j++) {
        const float v = y[j];
        const float *row = x + j * m;
        for (uint64_t i = 0; i < m; i++) sum[i] += row[i] * v;
    }
}

static void multiply(const Product &p, uint32_t parts, float alpha, const void *a, const void *b, float beta,
                     const void *c, void *d)
{
    const std::vector<float> y = gather(b, p.b, !p.op.turn_b, p.n, p.k); // (n, k)
    std::vector<float> x(p.k * p.m), sum(p.m), part(p.m);                // x (k, m)
    for (uint64_t j = 0; j < p.k; j++)
        for (uint64_t i = 0; i < p.m; i++)
            x[j * p.m + i] = load(a, p.a.type, p.op.turn_a ? j + i * (uint64_t)p.a.ld : i + j * (uint64_t)p.a.ld);
    for (uint64_t n = 0; n < p.n; n++) {
        for (uint32_t s = 0; s < parts; s++) {
            std::fill(part.begin(), part.end(), 0.f);
            add_terms(part.data(), x.data(), &y[n * p.k], p.m, p.k * s / parts, p.k * (s + 1) / parts);
            for (uint64_t i = 0; i < p.m; i++) sum[i] = s ? sum[i] + part[i] : part[i];
        }
        for (uint64_t i = 0; i < p.m; i++) {
            float v = alpha * sum[i];
            if (beta != 0) v += beta * load(c, p.c.type, i + n * (uint64_t)p.c.ld);
            store(d, p.d.type, i + n * (uint64_t)p.d.ld, v);
        }
    }
}

static bool in_device(const void *p, const Layout &l)
{
    return cudahost_is_device(p, ((l.columns - 1) * (uint64_t)l.ld + l.rows) * size_of(l.type));
}
} // namespace fake

using namespace fake;

extern "C" {
cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    *out = (cublasLtHandle_t) new int(1);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete (int *)h;
    return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}
const char *cublasLtGetStatusString(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS         ? "success"
           : s == CUBLAS_STATUS_INVALID_VALUE ? "an unsupported value or parameter was passed to the function"
           : s == CUBLAS_STATUS_NOT_SUPPORTED ? "the functionality requested is not supported"
                                              : "failed";
}
cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t out, size_t size, cublasComputeType_t compute,
                                               cudaDataType_t scale)
{
    if (size < sizeof(Operation)) return CUBLAS_STATUS_ALLOC_FAILED;
    const Operation op = {compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT};
    memcpy(out, &op, sizeof op);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t bytes)
{
    Operation op;
    int32_t v;
    if (bytes != sizeof v) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&v, value, sizeof v);
    memcpy(&op, desc, sizeof op);
    if (which == CUBLASLT_MATMUL_DESC_TRANSA)
        op.turn_a = v;
    else if (which == CUBLASLT_MATMUL_DESC_TRANSB)
        op.turn_b = v;
    else if (which == CUBLASLT_MATMUL_DESC_EPILOGUE)
        op.epilogue = v;
    else
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(desc, &op, sizeof op);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t out, size_t size, cudaDataType type,
                                                 uint64_t rows, uint64_t columns, int64_t ld)
{
    if (size < sizeof(Layout)) return CUBLAS_STATUS_ALLOC_FAILED;
    const Layout l = {type, CUBLASLT_ORDER_COL, rows, columns, ld};
    memcpy(out, &l, sizeof l);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t out, size_t size)
{
    if (size < sizeof(Wish)) return CUBLAS_STATUS_ALLOC_FAILED;
    const Wish w = {0, {256, 256, 256, 256}, CUBLASLT_REDUCTION_SCHEME_MASK};
    memcpy(out, &w, sizeof w);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t wish,
                                                    cublasLtMatmulPreferenceAttributes_t which, const void *value,
                                                    size_t bytes)
{
    Wish w;
    memcpy(&w, wish, sizeof w);
    const bool workspace = which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    if (bytes != (workspace ? 8 : 4)) return CUBLAS_STATUS_INVALID_VALUE;
    const int align = which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (workspace)
        memcpy(&w.workspace, value, 8);
    else if (which == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        memcpy(&w.reductions, value, 4);
    else if (align >= 0 && align < 4)
        memcpy(&w.align[align], value, 4);
    else
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(wish, &w, sizeof w);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t wish, int wanted,
                                              cublasLtMatmulHeuristicResult_t *out, int *found)
{
    Product p;
    Wish w;
    *found = 0;
    if (wanted < 1 || !read_product(&p, op, a, b, c, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(&w, wish, sizeof w);
    const Layout *all[] = {&p.a, &p.b, &p.c, &p.d};
    Algorithm algo = {MAGIC, 0, {}, (uint32_t)(1 + (p.m * 7 + p.n * 3 + p.k) % 3), types_of(p), turned_of(p)};
    if (algo.parts > p.k || workspace_of(p, algo.parts) > w.workspace) algo.parts = 1;
    algo.workspace = workspace_of(p, algo.parts);
    for (int i = 0; i < 4; i++) algo.align[i] = needed_alignment(*all[i], w.align[i]);
    memset(out, 0, sizeof *out);
    memcpy(&out->algo, &algo, sizeof algo);
    out->workspaceSize = algo.workspace;
    out->state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *out)
{
    Product p;
    Algorithm with;
    memcpy(&with, algo, sizeof with);
    if (!read_product(&p, op, a, b, c, d) || !algorithm_fits(with, p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->algo = *algo;
    out->workspaceSize = workspace_of(p, with.parts);
    out->state = CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t op, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream)
{
    FAKE_ENTRY;
    Product p;
    Algorithm with;
    if (!algo || !read_product(&p, op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&with, algo, sizeof with);
    const uint64_t needed = workspace_of(p, with.parts);
    if (!algorithm_fits(with, p) || needed > workspace_bytes || (uintptr_t)workspace % 16)
        return CUBLAS_STATUS_INVALID_VALUE;
    const void *pointer[] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)pointer[i] % with.align[i]) return CUBLAS_STATUS_INVALID_VALUE;
    const float scale = *(const float *)alpha, keep = *(const float *)beta;
    submit(stream, "a matrix product", [=] {
        if (!in_device(A, p.a) || !in_device(B, p.b) || !in_device(D, p.d) || (keep != 0 && !in_device(C, p.c)) ||
            (needed && !cudahost_is_device(workspace, needed))) {
            break_device("a matrix product of %zu x %zu x %zu reaches beyond the device's memory", (size_t)p.m,
                         (size_t)p.n, (size_t)p.k);
            return;
        }
        if (needed) memset(workspace, 0xff, needed);
        multiply(p, with.parts, scale, A, B, keep, C, D);
    });
    return CUBLAS_STATUS_SUCCESS;
}
}
