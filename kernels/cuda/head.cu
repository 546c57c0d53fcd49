// head: what the vocabulary head does between its GEMMs, over a chunk of rows whose logits u (rows, V) f32 a GEMM has just made: softmax
// statistics, the gradient of the logits in their place, the cap for sampling. Formulas in cpu/head.c. A block per row, which is
// read once for statistics and once for gradients; nothing of a row depends on other rows.
//
// The target stays apart from the sums, as on the CPU: 1 - p(target) is the sum over the others, exact when p is near 1.
#include "rows.cuh"
#include <float.h>

constexpr int HEAD_THREADS = 512, HEAD_WARPS = HEAD_THREADS / WARP, STEP = 4 * HEAD_THREADS; // elements at a time

struct HeadRows {
    float *z; // u in, gradients out
    int64_t ldz;
    const int32_t *target;
    float softcap;
    int V;
    float *logp, *lse, *entropy; // statistics, written where not NULL
    const float *weight, *given_lse;
};

DEVICE float capped(float u, float cap)
{
    return cap > 0 ? cap * tanhf(u / cap) : u;
}
DEVICE float cap_slope(float z, float cap)
{
    return cap > 0 ? 1 - z / cap * (z / cap) : 1;
}

// The thread's k-th element of those from v on: four side by side, or THREADS apart where rows are not aligned.
template <bool VEC> DEVICE int element(int v, int k)
{
    return VEC ? v + 4 * (int)threadIdx.x + k : v + (int)threadIdx.x + k * HEAD_THREADS;
}

// capped; minus infinity beyond the row's end
template <bool VEC> DEVICE void load_logits(float (&z)[4], const float *u, int v, int V, float cap)
{
    if (VEC && element<VEC>(v, 3) < V) {
        const Pack<float> p = load16(u + element<VEC>(v, 0));
#pragma unroll
        for (int k = 0; k < 4; k++) z[k] = capped(p.v[k], cap);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) z[k] = element<VEC>(v, k) < V ? capped(u[element<VEC>(v, k)], cap) : -INFINITY;
    }
}

// ---- statistics ----
// Of some of a row's logits without the target: the largest, Σ exp(z - top), Σ exp(z - top) (z - top)
struct Softmax {
    float top, sum, sum_z;
};

DEVICE void raise_top(Softmax &s, float top)
{
    const float by = exp_fast(s.top - top);
    if (s.sum != 0) { // or not a number
        s.sum_z = by * (s.sum_z + s.sum * (s.top - top));
        s.sum *= by;
    }
    s.top = top;
}

DEVICE void add_logits(Softmax &s, const float (&z)[4])
{
    const float top = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
    if (top > s.top) raise_top(s, top);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float d = z[k] - s.top, e = exp_fast(d);
        s.sum += e;
        s.sum_z = fmaf(e, fmaxf(d, -1e4f), s.sum_z); // 0 times what is left out is 0
    }
}

DEVICE Softmax merged(Softmax a, Softmax b)
{
    const float top = fmaxf(a.top, b.top);
    raise_top(a, top);
    raise_top(b, top);
    a.sum += b.sum, a.sum_z += b.sum_z;
    return a;
}

struct RowStats {
    float top, all;                   // p = exp(z - top) / all
    float logp, lse, entropy, others; // others = 1 - p(target)
};

// s over all but the target, whose logit is at (-inf: not here)
DEVICE RowStats row_stats(Softmax s, float at, bool here)
{
    RowStats r;
    r.top = fmaxf(s.top, at);
    raise_top(s, r.top);
    const float d = at - r.top, own = here ? exp_fast(d) : 0;
    r.all = s.sum + own;
    const float log_all = logf(r.all);
    r.lse = r.top + log_all;
    r.others = s.sum / r.all;
    r.logp = !here ? 0 : r.others < 0.5f ? log1pf(-r.others) : d - log_all;
    r.entropy = log_all - (s.sum_z + own * fmaxf(d, -1e4f)) / r.all;
    return r;
}

template <bool VEC> DEVICE RowStats head_stats_row(const HeadRows &p, int64_t row)
{
    __shared__ Softmax of_warp[HEAD_WARPS];
    __shared__ float at;
    const int target = p.target[row], lane = threadIdx.x % WARP;
    const bool here = target >= 0 && target < p.V;
    const float *u = p.z + row * p.ldz;
    Softmax s = {-FLT_MAX, 0, 0};
    for (int v = 0; v < p.V; v += STEP) {
        float z[4];
        load_logits<VEC>(z, u, v, p.V, p.softcap);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (element<VEC>(v, k) == target && here) at = z[k], z[k] = -INFINITY;
        add_logits(s, z);
    }
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float top = __shfl_xor_sync(ALL_LANES, s.top, step);
        const float sum = __shfl_xor_sync(ALL_LANES, s.sum, step);
        const float sum_z = __shfl_xor_sync(ALL_LANES, s.sum_z, step);
        s = merged(s, {top, sum, sum_z});
    }
    if (lane == 0) of_warp[threadIdx.x / WARP] = s;
    __syncthreads();
    s = of_warp[0];
    for (int i = 1; i < HEAD_WARPS; i++) s = merged(s, of_warp[i]);
    return row_stats(s, here ? at : -INFINITY, here);
}

DEVICE void write_stats(const HeadRows &p, int64_t row, const RowStats &r)
{
    if (threadIdx.x) return;
    if (p.logp) p.logp[row] = r.logp;
    if (p.lse) p.lse[row] = r.lse;
    if (p.entropy) p.entropy[row] = r.entropy;
}

// ---- gradient ----
template <typename T, bool VEC> DEVICE void store_dz(T *dz, int v, int V, const float (&x)[4])
{
    if (VEC && element<VEC>(v, 3) < V) {
        store_n<4>(dz + element<VEC>(v, 0), x);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (element<VEC>(v, k) < V) dz[element<VEC>(v, k)] = from_f32<T>(x[k]);
}

// p = exp(z - top) / all. In place: bf16 that is written in one step lies where floats were read in this step or before.
// others < 0: unknown, and top the whole vocabulary's lse.
template <typename T, bool VEC>
DEVICE void head_dz_row(const HeadRows &p, int64_t row, float top, float all, float others)
{
    const int target = p.target[row];
    const float weight = p.weight[row], by = -weight / all, cap = p.softcap;
    float *u = p.z + row * p.ldz;
    for (int v = 0; v < p.V; v += STEP) {
        float z[4];
        load_logits<VEC>(z, u, v, p.V, cap);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float slope = cap_slope(z[k], cap);
            if (element<VEC>(v, k) != target)
                z[k] = by * exp_fast(z[k] - top) * slope;
            else // 1 - p without cancellation
                z[k] = weight * (others >= 0 ? others : -expm1f(z[k] - top)) * slope;
        }
        __syncthreads();
        store_dz<T, VEC>((T *)u, v, p.V, z);
    }
}

// ---- kernels ----
template <bool VEC> __global__ void __launch_bounds__(HEAD_THREADS) head_stats_kernel(const HeadRows p)
{
    write_stats(p, blockIdx.x, head_stats_row<VEC>(p, blockIdx.x));
}

template <typename T, bool VEC> __global__ void __launch_bounds__(HEAD_THREADS) head_grad_kernel(const HeadRows p)
{
    head_dz_row<T, VEC>(p, blockIdx.x, p.given_lse[blockIdx.x], 1, -1);
}

template <typename T, bool VEC> __global__ void __launch_bounds__(HEAD_THREADS) head_loss_kernel(const HeadRows p)
{
    const RowStats r = head_stats_row<VEC>(p, blockIdx.x);
    write_stats(p, blockIdx.x, r);
    head_dz_row<T, VEC>(p, blockIdx.x, r.top, r.all, r.others);
}

constexpr int CAP_THREADS = 256;

__global__ void __launch_bounds__(CAP_THREADS) softcap_kernel(float *z, float cap, size_t n)
{
    const size_t i = (size_t)blockIdx.x * CAP_THREADS + threadIdx.x;
    if (i < n) z[i] = capped(z[i], cap);
}

// ---- launchers ----
static HeadRows head_rows(const float *z, int64_t ldz, const int32_t *target, float softcap, int V)
{
    HeadRows p = {};
    p.z = (float *)z, p.ldz = ldz, p.target = target, p.softcap = softcap, p.V = V;
    return p;
}

static bool rows_aligned(const float *z, int64_t ldz)
{
    return (uintptr_t)z % 16 == 0 && ldz % 4 == 0;
}

void cuda_head_stats(float *logp, float *lse, float *entropy, const float *z, int64_t ldz, const int32_t *target,
                     float softcap, int V, int rows, cudaStream_t stream)
{
    if (!rows) return;
    HeadRows p = head_rows(z, ldz, target, softcap, V);
    p.logp = logp, p.lse = lse, p.entropy = entropy;
    if (rows_aligned(z, ldz))
        LAUNCH((head_stats_kernel<true>), dim3(rows), dim3(HEAD_THREADS), 0, stream, p);
    else
        LAUNCH((head_stats_kernel<false>), dim3(rows), dim3(HEAD_THREADS), 0, stream, p);
}

template <typename T, bool VEC> static void launch_gradient(const HeadRows &p, int rows, cudaStream_t stream)
{
    if (p.given_lse)
        LAUNCH((head_grad_kernel<T, VEC>), dim3(rows), dim3(HEAD_THREADS), 0, stream, p);
    else
        LAUNCH((head_loss_kernel<T, VEC>), dim3(rows), dim3(HEAD_THREADS), 0, stream, p);
}

static void gradient(DType t, const HeadRows &p, int rows, cudaStream_t stream)
{
    const bool vec = rows_aligned(p.z, p.ldz);
    if (!rows) return;
    if (t == DT_BF16)
        vec ? launch_gradient<bf16, true>(p, rows, stream) : launch_gradient<bf16, false>(p, rows, stream);
    else
        vec ? launch_gradient<float, true>(p, rows, stream) : launch_gradient<float, false>(p, rows, stream);
}

void cuda_head_grad(DType t, float *z, int64_t ldz, const float *weight, const float *lse, const int32_t *target,
                    float softcap, int V, int rows, cudaStream_t stream)
{
    HeadRows p = head_rows(z, ldz, target, softcap, V);
    p.weight = weight, p.given_lse = lse;
    gradient(t, p, rows, stream);
}

void cuda_head_loss(DType t, float *logp, float *lse, float *z, int64_t ldz, const float *weight, const int32_t *target,
                    float softcap, int V, int rows, cudaStream_t stream)
{
    HeadRows p = head_rows(z, ldz, target, softcap, V);
    p.logp = logp, p.lse = lse, p.weight = weight;
    gradient(t, p, rows, stream);
}

void cuda_softcap(float *z, float cap, size_t n, cudaStream_t stream)
{
    const size_t blocks = (n + CAP_THREADS - 1) / CAP_THREADS;
    if (blocks) LAUNCH(softcap_kernel, dim3((unsigned)blocks), dim3(CAP_THREADS), 0, stream, z, cap, n);
}
