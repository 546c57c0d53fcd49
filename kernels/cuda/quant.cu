// quant: blocks of quantised numbers decoded on the device, with the bits of quant.c: each product and sum is rounded by itself.
//
// Blocks are of sizes that no access fits (34 bytes), and their bytes are asked for several times. So a thread block fetches CHUNK elements'
// worth of them into shared memory, 16 bytes an access, and decodes them from there, two neighbouring elements to a thread: the 64 of
// a warp are stored side by side, and what an access of the warp reads lies within 128 bytes, so that no bank is asked for two words at
// once, whatever the format.
#include "quant.h"
#include "rows.cuh"
#include <cuda_fp16.h>

constexpr int CHUNK = 4096; // elements, whole blocks; its bytes are a multiple of 16 in every format

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

// ---- elements i and i + 1 of a block, i even; layouts as in quant.c ----
DEVICE void bytes_at(int (&q)[2], const uint8_t *p) // p at an even address
{
    const int both = *reinterpret_cast<const uint16_t *>(p);
    q[0] = both & 255, q[1] = both >> 8;
}
DEVICE void bits_at(int (&q)[2], const uint8_t *p, int shift, int mask) // of a byte for each
{
    bytes_at(q, p);
#pragma unroll
    for (int j = 0; j < 2; j++) q[j] = q[j] >> shift & mask;
}
DEVICE void add_bits(int (&q)[2], const int (&more)[2], int shift)
{
#pragma unroll
    for (int j = 0; j < 2; j++) q[j] |= more[j] << shift;
}
DEVICE void scaled(float (&v)[2], const int (&q)[2], int zero, float d) // d (q - zero)
{
#pragma unroll
    for (int j = 0; j < 2; j++) v[j] = times(d, (float)(q[j] - zero));
}
DEVICE void shifted(float (&v)[2], const int (&q)[2], float d, float m) // d q + m
{
#pragma unroll
    for (int j = 0; j < 2; j++) v[j] = plus(times(d, (float)q[j]), m);
}

template <Quant FORMAT> struct Format {
};

DEVICE void nibbles(int (&q)[2], const uint8_t *p, int i) // of blocks of 32
{
    bits_at(q, p + i % 16, i / 16 * 4, 15);
}
DEVICE void add_fifth_bits(int (&q)[2], const uint8_t *high, int i) // which lie side by side
{
    const int bits = high[i / 8] >> i % 8;
#pragma unroll
    for (int j = 0; j < 2; j++) q[j] |= (bits >> j & 1) << 4;
}
DEVICE void decode(Format<QUANT_Q4_0>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2];
    nibbles(q, b + 2, i);
    scaled(v, q, 8, half_at(b));
}
DEVICE void decode(Format<QUANT_Q4_1>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2];
    nibbles(q, b + 4, i);
    shifted(v, q, half_at(b), half_at(b + 2));
}
DEVICE void decode(Format<QUANT_Q5_0>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2];
    nibbles(q, b + 6, i);
    add_fifth_bits(q, b + 2, i);
    scaled(v, q, 16, half_at(b));
}
DEVICE void decode(Format<QUANT_Q5_1>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2];
    nibbles(q, b + 8, i);
    add_fifth_bits(q, b + 4, i);
    shifted(v, q, half_at(b), half_at(b + 2));
}
DEVICE void decode(Format<QUANT_Q8_0>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2];
    bytes_at(q, b + 2 + i);
#pragma unroll
    for (int j = 0; j < 2; j++) q[j] = (int8_t)q[j];
    scaled(v, q, 0, half_at(b));
}

// Two bits each of the 64 bytes at p, of blocks of 256 in sub-blocks of 16.
DEVICE void two_bits(int (&q)[2], const uint8_t *p, int i)
{
    bits_at(q, p + i / 128 * 32 + i % 32, i % 128 / 32 * 2, 3);
}
DEVICE void decode(Format<QUANT_Q2_K>, float (&v)[2], const uint8_t *b, int i)
{
    const int scale = b[i / 16];
    int q[2];
    two_bits(q, b + 16, i);
    shifted(v, q, times(half_at(b + 80), (float)(scale & 15)), -times(half_at(b + 82), (float)(scale >> 4)));
}
DEVICE void decode(Format<QUANT_Q3_K>, float (&v)[2], const uint8_t *b, int i)
{
    const int s = i / 16, low = b[96 + s % 8] >> (s / 8 * 4) & 15, high = b[104 + s % 4] >> (s / 4 * 2) & 3;
    int q[2], third[2];
    two_bits(q, b + 32, i);
    bits_at(third, b + i % 32, i / 32, 1);
    add_bits(q, third, 2);
    scaled(v, q, 4, times(half_at(b + 108), (float)((low | high << 4) - 32)));
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
DEVICE void k_nibbles(int (&q)[2], const uint8_t *p, int i)
{
    bits_at(q, p + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 15);
}
DEVICE void decode(Format<QUANT_Q4_K>, float (&v)[2], const uint8_t *b, int i)
{
    const ScaleMin s = scale_min(b, i / 32);
    int q[2];
    k_nibbles(q, b + 16, i);
    shifted(v, q, s.scale, -s.min);
}
DEVICE void decode(Format<QUANT_Q5_K>, float (&v)[2], const uint8_t *b, int i)
{
    const ScaleMin s = scale_min(b, i / 32);
    int q[2], fifth[2];
    k_nibbles(q, b + 48, i);
    bits_at(fifth, b + 16 + i % 32, i / 32, 1);
    add_bits(q, fifth, 4);
    shifted(v, q, s.scale, -s.min);
}
DEVICE void decode(Format<QUANT_Q6_K>, float (&v)[2], const uint8_t *b, int i)
{
    int q[2], high[2];
    bits_at(q, b + i / 128 * 64 + i % 64, i % 128 / 64 * 4, 15);
    bits_at(high, b + 128 + i / 128 * 32 + i % 32, i % 128 / 32 * 2, 3);
    add_bits(q, high, 4);
    scaled(v, q, 32, times(half_at(b + 208), (float)(int8_t)b[192 + i / 16]));
}

// ---- the kernel ----
// `bytes` at src, both even, into shared memory, as far behind a multiple of 16 as they lie in global memory; where they are now
DEVICE const uint8_t *fetch(uint8_t *stage, const uint8_t *src, int bytes)
{
    const int lead = (int)((uintptr_t)src % 16), end = lead + bytes;
    const uint8_t *from = src - lead;
    for (int at = (int)threadIdx.x * 16; at < end; at += ROW_THREADS * 16)
        if (at >= lead && at + 16 <= end)
            *reinterpret_cast<uint4 *>(stage + at) = *reinterpret_cast<const uint4 *>(from + at);
        else // the first and the last
            for (int i = at > lead ? at : lead; i < at + 16 && i < end; i += 2)
                *reinterpret_cast<uint16_t *>(stage + i) = *reinterpret_cast<const uint16_t *>(from + i);
    return stage + lead;
}

template <typename T, Quant FORMAT, int BLOCK, int BYTES>
__global__ void __launch_bounds__(ROW_THREADS)
    dequantize(T *__restrict__ dst, const uint8_t *__restrict__ src, size_t blocks)
{
    constexpr int MOST = CHUNK / BLOCK;
    static_assert(MOST * BYTES % 16 == 0, "chunks begin where 16 bytes can be read");
    __shared__ __align__(16) uint8_t stage[MOST * BYTES + 16];
    const size_t first = blockIdx.x * (size_t)MOST, left = blocks - first;
    const int n = left < MOST ? (int)left : MOST;
    const uint8_t *block = fetch(stage, src + first * BYTES, n * BYTES);
    __syncthreads();
    T *to = dst + first * BLOCK;
    for (int i = (int)threadIdx.x * 2; i < n * BLOCK; i += ROW_THREADS * 2) {
        float v[2];
        decode(Format<FORMAT>(), v, block + i / BLOCK * BYTES, i % BLOCK);
        store_n<2>(to + i, v);
    }
}

template <typename T> static void launch(void *dst, const void *src, Quant format, size_t blocks, cudaStream_t stream)
{
    switch (format) {
#define QUANT(name, lower, ggml, block, bytes)                                                                         \
    case QUANT_##name:                                                                                                 \
        LAUNCH((dequantize<T, QUANT_##name, block, bytes>), (unsigned)((blocks * block + CHUNK - 1) / CHUNK),          \
               ROW_THREADS, 0, stream, (T *)dst, (const uint8_t *)src, blocks);                                        \
        break;
#include "quant.def"
#undef QUANT
    default: break;
    }
}

void cuda_dequantize(void *dst, DType dst_t, const void *src, Quant format, size_t blocks, cudaStream_t stream)
{
    if (blocks) BY_TYPE(dst_t, launch, dst, src, format, blocks, stream);
}
