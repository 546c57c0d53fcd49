// quant: blocks of quantised numbers decoded on the device, with the bits of quant.c: each product and sum is rounded by itself.
//
// A thread decodes as many neighbouring elements as 16 bytes hold, or one where dst is not aligned to that.
#include "quant.h"
#include "rows.cuh"
#include <cuda_fp16.h>

DEVICE float half_at(const uint8_t *p) // at an even address
{
    return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t *>(p)));
}
DEVICE float times(float a, float b)
{
    return __fmul_rn(a, b);
}
DEVICE float plus(float a, float b)
{
    return __fadd_rn(a, b);
}

// ---- element i of a block, layouts as in quant.c ----
template <Quant FORMAT> DEVICE float element(const uint8_t *b, int i);

DEVICE int nibble(const uint8_t *q, int i) // of blocks of 32
{
    return q[i % 16] >> (i / 16 * 4) & 15;
}
DEVICE int fifth_bit(const uint8_t *high, int i)
{
    return (high[i / 8] >> i % 8 & 1) << 4;
}
template <> DEVICE float element<QUANT_Q4_0>(const uint8_t *b, int i)
{
    return times(half_at(b), (float)(nibble(b + 2, i) - 8));
}
template <> DEVICE float element<QUANT_Q4_1>(const uint8_t *b, int i)
{
    return plus(times(half_at(b), (float)nibble(b + 4, i)), half_at(b + 2));
}
template <> DEVICE float element<QUANT_Q5_0>(const uint8_t *b, int i)
{
    return times(half_at(b), (float)((nibble(b + 6, i) | fifth_bit(b + 2, i)) - 16));
}
template <> DEVICE float element<QUANT_Q5_1>(const uint8_t *b, int i)
{
    return plus(times(half_at(b), (float)(nibble(b + 8, i) | fifth_bit(b + 4, i))), half_at(b + 2));
}
template <> DEVICE float element<QUANT_Q8_0>(const uint8_t *b, int i)
{
    return times((float)(int8_t)b[2 + i], half_at(b));
}

// Two bits of element i of the first 64 bytes at q, of blocks of 256 in sub-blocks of 16.
DEVICE int two_bits(const uint8_t *q, int i)
{
    return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}
template <> DEVICE float element<QUANT_Q2_K>(const uint8_t *b, int i)
{
    const int scale = b[i / 16];
    const float d = times(half_at(b + 80), (float)(scale & 15)), m = times(half_at(b + 82), (float)(scale >> 4));
    return plus(times(d, (float)two_bits(b + 16, i)), -m);
}
template <> DEVICE float element<QUANT_Q3_K>(const uint8_t *b, int i)
{
    const int s = i / 16, low = b[96 + s % 8] >> (s / 8 * 4) & 15, high = b[104 + s % 4] >> (s / 4 * 2) & 3;
    const float d = times(half_at(b + 108), (float)((low | high << 4) - 32));
    const int less = b[i % 32] >> i / 32 & 1 ? 0 : 4;
    return times(d, (float)(two_bits(b + 32, i) - less));
}

// The 6-bit scale and minimum of sub-block s, of Q4_K and Q5_K
struct ScaleMin {
    float scale, min;
};
DEVICE ScaleMin scale_min(const uint8_t *b, int s)
{
    const uint8_t *packed = b + 4;
    const int scale = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | (packed[s - 4] >> 2 & 0x30);
    const int min = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | (packed[s] >> 2 & 0x30);
    return {times(half_at(b), (float)scale), times(half_at(b + 2), (float)min)};
}
DEVICE int k_nibble(const uint8_t *q, int i)
{
    return q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}
template <> DEVICE float element<QUANT_Q4_K>(const uint8_t *b, int i)
{
    const ScaleMin s = scale_min(b, i / 32);
    return plus(times(s.scale, (float)k_nibble(b + 16, i)), -s.min);
}
template <> DEVICE float element<QUANT_Q5_K>(const uint8_t *b, int i)
{
    const ScaleMin s = scale_min(b, i / 32);
    const int q = k_nibble(b + 48, i) | (b[16 + i % 32] >> i / 32 & 1) << 4;
    return plus(times(s.scale, (float)q), -s.min);
}
template <> DEVICE float element<QUANT_Q6_K>(const uint8_t *b, int i)
{
    const int low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
    const int high = b[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    return times(times(half_at(b + 208), (float)(int8_t)b[192 + i / 16]), (float)((low | high << 4) - 32));
}

// ---- the kernel ----
template <typename T, int N, Quant FORMAT, int BLOCK, int BYTES>
__global__ void __launch_bounds__(ROW_THREADS)
    dequantize(T *__restrict__ dst, const uint8_t *__restrict__ src, size_t elements)
{
    const size_t at = flat_item() * N;
    if (at >= elements) return;
    const uint8_t *block = src + at / BLOCK * BYTES;
    float v[N];
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = element<FORMAT>(block, (int)(at % BLOCK) + i);
    store_n<N>(dst + at, v);
}

template <typename T, int N>
static void launch_width(T *dst, const uint8_t *src, Quant format, size_t blocks, cudaStream_t stream)
{
    switch (format) {
#define QUANT(name, lower, ggml, block, bytes)                                                                         \
    case QUANT_##name:                                                                                                 \
        LAUNCH((dequantize<T, N, QUANT_##name, block, bytes>), flat_blocks(blocks *block, N), ROW_THREADS, 0, stream,  \
               dst, src, blocks *block);                                                                               \
        break;
#include "quant.def"
#undef QUANT
    default: break;
    }
}

template <typename T> static void launch(void *dst, const void *src, Quant format, size_t blocks, cudaStream_t stream)
{
    if (aligned16(dst))
        launch_width<T, Pack<T>::N>((T *)dst, (const uint8_t *)src, format, blocks, stream);
    else
        launch_width<T, 1>((T *)dst, (const uint8_t *)src, format, blocks, stream);
}

void cuda_dequantize(void *dst, DType dst_t, const void *src, Quant format, size_t blocks, cudaStream_t stream)
{
    if (blocks) BY_TYPE(dst_t, launch, dst, src, format, blocks, stream);
}
