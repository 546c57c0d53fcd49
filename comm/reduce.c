// reduce: the arithmetic of reductions. What n ranks hold is always combined in the order of the ranks, so that a sum of
// floats has the same bits whoever makes it.
#include "comm_impl.h"
#include <string.h>

#ifdef __clang__
#define EACH_APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_APART _Pragma("GCC ivdep")
#endif

enum { BLOCK = 1024 }; // elements that are worked on at a time: their sums stay in the first cache

// out may be a or b: element i of the one meets element i of the other only.
#define COMBINE(T, expr)                                                                                               \
    do {                                                                                                               \
        T *o = out;                                                                                                    \
        const T *x = a, *y = b;                                                                                        \
        EACH_APART for (size_t i = 0; i < count; i++) o[i] = (T)(expr);                                                \
    } while (0)
#define COMBINE_TYPE(T, sum)                                                                                           \
    do {                                                                                                               \
        if (op == REDUCE_SUM)                                                                                          \
            COMBINE(T, sum);                                                                                           \
        else if (op == REDUCE_MAX)                                                                                     \
            COMBINE(T, MAX(x[i], y[i]));                                                                               \
        else                                                                                                           \
            COMBINE(T, MIN(x[i], y[i]));                                                                               \
    } while (0)

static void combine(void *out, const void *a, const void *b, size_t count, DType t, ReduceOp op)
{
    switch (t) {
    case DT_F32: COMBINE_TYPE(float, x[i] + y[i]); break;
    case DT_I64: COMBINE_TYPE(int64_t, (uint64_t)x[i] + (uint64_t)y[i]); break; // wraps, as MPI's does
    case DT_I32: COMBINE_TYPE(int32_t, (uint32_t)x[i] + (uint32_t)y[i]); break;
    case DT_U8: COMBINE_TYPE(uint8_t, x[i] + y[i]); break;
    default: ASSERT(!"a type that can be reduced");
    }
}

// ---- sums of bf16 ---------------------------------------------------------------------------------------------------
// Two neighbours in one word, taken apart and put together again: of 16-bit elements compilers make slow vectors.
static inline float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t word_at(const bf16_t *x, size_t pair)
{
    uint32_t word;
    memcpy(&word, x + 2 * pair, sizeof word);
    return word;
}

static inline float low(uint32_t word)
{
    return from_bits(word << 16);
}

static inline float high(uint32_t word)
{
    return from_bits(word & 0xffff0000u);
}

// The bits of f32_to_bf16(x) in the upper half, anything below.
static inline uint32_t rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
}

static inline void put_pair(bf16_t *x, size_t pair, float l, float h)
{
    const uint32_t word = rounded(l) >> 16 | (rounded(h) & 0xffff0000u);
    memcpy(x + 2 * pair, &word, sizeof word);
}

// Elements [first, first + count) of a block; sums of more than two stay in l and h meanwhile.
static void sum_pairs(bf16_t *out, const void *const *in, int n, size_t first, size_t pairs)
{
    float l[BLOCK / 2], h[BLOCK / 2];
    const bf16_t *x = (const bf16_t *)in[0] + first, *y = (const bf16_t *)in[n - 1] + first;
    if (n == 2) {
        EACH_APART for (size_t i = 0; i < pairs; i++)
            put_pair(out, i, low(word_at(x, i)) + low(word_at(y, i)), high(word_at(x, i)) + high(word_at(y, i)));
        return;
    }
    for (size_t i = 0; i < pairs; i++) {
        l[i] = low(word_at(x, i));
        h[i] = high(word_at(x, i));
    }
    for (int r = 1; r < n - 1; r++) {
        x = (const bf16_t *)in[r] + first;
        for (size_t i = 0; i < pairs; i++) {
            l[i] += low(word_at(x, i));
            h[i] += high(word_at(x, i));
        }
    }
    EACH_APART for (size_t i = 0; i < pairs; i++)
        put_pair(out, i, l[i] + low(word_at(y, i)), h[i] + high(word_at(y, i)));
}

static bf16_t sum_of(const void *const *in, int n, size_t i)
{
    float sum = bf16_to_f32(((const bf16_t *)in[0])[i]);
    for (int r = 1; r < n; r++) sum += bf16_to_f32(((const bf16_t *)in[r])[i]);
    return f32_to_bf16(sum);
}

static void sum_bf16(bf16_t *out, const void *const *in, int n, size_t first, size_t count)
{
    const size_t last = first + count - 1;
    const bf16_t odd = count % 2 ? sum_of(in, n, last) : 0;
    sum_pairs(out + first, in, n, first, count / 2);
    if (count % 2) out[last] = odd;
}

// ---- any type -------------------------------------------------------------------------------------------------------
static void reduce_block(char *out, const void *const *in, int n, size_t at, size_t count, DType t, ReduceOp op)
{
    int64_t sum[BLOCK]; // room for any type
    combine(sum, (const char *)in[0] + at, (const char *)in[1] + at, count, t, op);
    for (int r = 2; r < n - 1; r++) combine(sum, sum, (const char *)in[r] + at, count, t, op);
    combine(out + at, sum, (const char *)in[n - 1] + at, count, t, op);
}

static void reduce_plain(void *out, const void *const *in, int n, size_t count, DType t, ReduceOp op)
{
    if (n == 2 && t != DT_BF16) {
        combine(out, in[0], in[1], count, t, op);
        return;
    }
    for (size_t first = 0; first < count; first += BLOCK) {
        const size_t block = MIN(BLOCK, count - first);
        if (t == DT_BF16)
            sum_bf16(out, in, n, first, block);
        else
            reduce_block(out, in, n, first * dtype_size(t), block, t, op);
    }
}

#if defined(__x86_64__)
// The same loops in wider vectors; without fused multiplications, the same bits.
__attribute__((target("avx2"), flatten)) static void reduce_avx2(void *out, const void *const *in, int n, size_t count,
                                                                 DType t, ReduceOp op)
{
    reduce_plain(out, in, n, count, t, op);
}
#endif

void reduce_ranks(void *out, const void *const *in, int n, size_t count, DType t, ReduceOp op)
{
    ASSERT(n >= 1 && (t != DT_BF16 || op == REDUCE_SUM));
    if (n == 1) {
        memmove(out, in[0], count * dtype_size(t));
        return;
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        reduce_avx2(out, in, n, count, t, op);
        return;
    }
#endif
    reduce_plain(out, in, n, count, t, op);
}

void reduce_into(void *x, const void *y, size_t count, DType t, ReduceOp op)
{
    reduce_ranks(x, (const void *const[]){x, y}, 2, count, t, op);
}
