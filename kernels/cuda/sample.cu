// sample: a token from each row of logits, by the rule of kernels/sample.h; the same passes as kernels/cpu/sample.c. A block has a row.
// Weights are integers, so that sums come out the same in any order of adding.
#define SAMPLE_FN DEVICE
#include "cuda_kernels.h"
#include "dev.cuh"
#include "sample.h"
#include "sample_rule.h"
#include <math.h>

typedef unsigned long long u64; // what atomics take

constexpr int SAMPLE_THREADS = 1024, SAMPLE_WARPS = SAMPLE_THREADS / WARP, DIGITS = 3, BINS = 2 * SAMPLE_THREADS;
static_assert(BINS == 1 << 11, "32 bits are 11 + 11 + 10");

struct SampleRule {
    double top_p;
    float rate;
    int top_k;
    bool greedy;
};

// Tokens with larger keys are kept, and the first `equal` ones of this key. {0, 0}: all
struct Cut {
    uint32_t key;
    int equal;
};

struct SampleRow {
    const float *logits;
    int V;
    float top, rate;
    DEVICE u64 weight(uint32_t key) const { return sample_weight(sample_value(key), top, rate); }
};

struct SampleShared {
    u64 bin[BINS], of_warp[SAMPLE_WARPS], before;
    int equal[SAMPLE_WARPS];
    uint32_t found;
};

DEVICE u64 warp_total(u64 v)
{
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// The largest of (key, ids from the highest down), so that the first of equals is it; all ones: a logit is no number, or infinite
DEVICE u64 best_token(const SampleRow &r, SampleShared &m)
{
    u64 best = 0;
    for (int i = threadIdx.x; i < r.V; i += SAMPLE_THREADS) {
        const float z = r.logits[i];
        const u64 of = z < INFINITY ? (u64)sample_key(z) << 32 | ~(uint32_t)i : ~0ull;
        best = max(best, of);
    }
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
    if (threadIdx.x % WARP == 0) m.of_warp[threadIdx.x / WARP] = best;
    __syncthreads();
    for (int k = 0; k < SAMPLE_WARPS; k++) best = max(best, m.of_warp[k]);
    return best;
}

DEVICE u64 kept_weight(const SampleRow &r, Cut kept, SampleShared &m)
{
    u64 sum = 0;
    for (int i = threadIdx.x; i < r.V; i += SAMPLE_THREADS) {
        const float z = r.logits[i];
        if (sample_key(z) > kept.key) sum += sample_weight(z, r.top, r.rate);
    }
    sum = warp_total(sum);
    __syncthreads();
    if (threadIdx.x % WARP == 0) m.of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    u64 all = kept.equal ? kept.equal * r.weight(kept.key) : 0;
    for (int k = 0; k < SAMPLE_WARPS; k++) all += m.of_warp[k];
    return all;
}

// Into m.bin: of the kept tokens whose keys begin with `prefix`, what the next digit has.
DEVICE void fill_bins(const SampleRow &r, Cut kept, bool weights, uint32_t prefix, int above, int shift,
                      SampleShared &m)
{
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) m.bin[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < r.V; i += SAMPLE_THREADS) {
        const float z = r.logits[i];
        const uint32_t key = sample_key(z);
        if (key <= kept.key || (uint64_t)key >> above != (uint64_t)prefix >> above) continue;
        const u64 of = weights ? sample_weight(z, r.top, r.rate) : 1;
        if (of) atomicAdd(&m.bin[(key >> shift) % BINS], of);
    }
    if (threadIdx.x == 0 && kept.equal && (uint64_t)kept.key >> above == (uint64_t)prefix >> above)
        atomicAdd(&m.bin[(kept.key >> shift) % BINS], kept.equal * (weights ? r.weight(kept.key) : 1));
    __syncthreads();
}

// The bin, from the highest down, in which the sum exceeds target; a thread has two of them. before: the sum above it
DEVICE uint32_t find_bin(u64 target, u64 &before, SampleShared &m)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, high = BINS - 1 - 2 * threadIdx.x;
    const Pack<u64> two = load16(&m.bin[high - 1]);
    const u64 both = two.v[0] + two.v[1];
    u64 upto = both;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const u64 of = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane >= step) upto += of;
    }
    if (lane == WARP - 1) m.of_warp[warp] = upto;
    __syncthreads();
    u64 first = upto - both;
    for (int k = 0; k < warp; k++) first += m.of_warp[k];
    if (first <= target && target - first < both) {
        const bool lower = target - first >= two.v[1];
        m.found = high - lower;
        m.before = lower ? first + two.v[1] : first;
    }
    __syncthreads();
    before = m.before;
    return m.found;
}

// Goes over the tokens that `kept` keeps, from the best on, adding weights, or ones, until the sum exceeds target: the key it came
// to. before: the sum before any token of that key.
DEVICE uint32_t where_sum_exceeds(const SampleRow &r, Cut kept, bool weights, u64 target, u64 &before, SampleShared &m)
{
    uint32_t found = 0;
    before = 0;
#pragma unroll 1
    for (int digit = 0; digit < DIGITS; digit++) {
        const int above = digit == 0 ? 32 : digit == 1 ? 21 : 10, shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
        fill_bins(r, kept, weights, found, above, shift, m);
        u64 more;
        found |= find_bin(target - before, more, m) << shift;
        before += more;
    }
    return found;
}

DEVICE Cut filter(const SampleRow &r, const SampleRule &rule, u64 &total, SampleShared &m)
{
    Cut kept = {0, 0};
    u64 before;
    if (rule.top_k > 0 && rule.top_k < r.V) {
        kept.key = where_sum_exceeds(r, kept, false, rule.top_k - 1, before, m);
        kept.equal = rule.top_k - (int)before;
    }
    total = kept_weight(r, kept, m);
    if (rule.top_p < 1) {
        const u64 needed = sample_needed(total, rule.top_p);
        kept.key = where_sum_exceeds(r, kept, true, needed - 1, before, m);
        const u64 each = r.weight(kept.key);
        kept.equal = (int)((needed - before + each - 1) / each);
        total = before + kept.equal * each;
    }
    return kept;
}

// ---- the draw ----
// The token is among [from, to): `left` of the weight before it is there, and so many kept ones of the cut's key stand before `from`.
struct Span {
    int from, to, equal;
    u64 left;
};

// A warp each adds up a piece of the span; the token is in one of them.
DEVICE void narrow(const SampleRow &r, Cut kept, Span &span, SampleShared &m)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int piece = (span.to - span.from + SAMPLE_THREADS - 1) / SAMPLE_THREADS * WARP;
    u64 sum = 0;
    int equal = 0;
    for (int i = lane; i < piece && span.from + warp * piece + i < span.to; i += WARP) {
        const float z = r.logits[span.from + warp * piece + i];
        const uint32_t key = sample_key(z);
        if (key > kept.key) sum += sample_weight(z, r.top, r.rate);
        equal += key == kept.key;
    }
    sum = warp_total(sum);
    equal = (int)warp_total((u64)equal);
    __syncthreads();
    if (lane == 0) m.of_warp[warp] = sum, m.equal[warp] = equal;
    __syncthreads();
    const u64 each = kept.equal ? r.weight(kept.key) : 0;
    int k = 0;
    for (;; k++) {
        const int some = min(max(kept.equal - span.equal, 0), m.equal[k]);
        const u64 of = m.of_warp[k] + some * each;
        if (span.left < of || k == SAMPLE_WARPS - 1) break;
        span.left -= of;
        span.equal += m.equal[k];
    }
    span.from += k * piece;
    span.to = min(span.from + piece, span.to);
}

// By one warp: WARP tokens at a time
DEVICE int find_token(const SampleRow &r, Cut kept, Span span)
{
    const int lane = threadIdx.x % WARP;
    for (int i = span.from + lane;; i += WARP) {
        const float z = i < span.to ? r.logits[i] : 0;
        const uint32_t key = i < span.to ? sample_key(z) : 0;
        const unsigned equal = __ballot_sync(ALL_LANES, i < span.to && key == kept.key);
        const int number = span.equal + __popc(equal & ((1u << lane) - 1)); // of this one among those of the cut's key
        const bool keep = key > kept.key || (key == kept.key && number < kept.equal);
        u64 upto = i < span.to && keep ? sample_weight(z, r.top, r.rate) : 0;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const u64 of = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += of;
        }
        const unsigned beyond = __ballot_sync(ALL_LANES, span.left < upto);
        if (beyond) return i - lane + __ffs(beyond) - 1;
        if (i - lane + WARP >= span.to) return -1; // is not reached: left is less than all weights together
        span.left -= __shfl_sync(ALL_LANES, upto, WARP - 1);
        span.equal += __popc(equal);
    }
}

__global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_kernel(int32_t *id, const float *logits, const uint64_t *draw, const SampleRule rule, int V)
{
    __shared__ __align__(16) SampleShared m;
    SampleRow r = {logits + (int64_t)blockIdx.x * V, V, 0, rule.rate};
    const u64 best = best_token(r, m);
    const bool sound = best != ~0ull && best >> 32 > SAMPLE_MASKED;
    if (!sound || rule.greedy) {
        if (threadIdx.x == 0) id[blockIdx.x] = sound ? (int32_t) ~(uint32_t)best : -1;
        return;
    }
    r.top = sample_value((uint32_t)(best >> 32));
    u64 total;
    const Cut kept = filter(r, rule, total, m);
    Span span = {0, V, 0, sample_high(draw[blockIdx.x], total)};
    while (span.to - span.from > 2 * WARP) narrow(r, kept, span, m);
    if (threadIdx.x >= WARP) return;
    const int found = find_token(r, kept, span);
    if (threadIdx.x == 0) id[blockIdx.x] = found;
}

void cuda_sample(int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V, int n,
                 cudaStream_t stream)
{
    if (!n) return;
    const bool greedy = !(c->temperature > 0);
    const SampleRule rule = {c->top_p, greedy ? 0 : SAMPLE_RATE(c->temperature), c->top_k, greedy};
    LAUNCH(sample_kernel, dim3(n), dim3(SAMPLE_THREADS), 0, stream, id, logits, draw, rule, V);
}
