// Launchers of primitives.cu. Pointers are device memory.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum { PRIMITIVE_SHUFFLES = 12, PRIMITIVE_REDUCTIONS = 7, PRIMITIVE_THREADS = 128 };

#ifdef __cplusplus
extern "C" {
#endif
void primitive_mma(const uint32_t *a, const uint32_t *b, float *c); // fragments: (32,4), (32,2), (32,4); c is added to
void primitive_ldmatrix(int matrices, bool trans, const uint16_t *in, uint32_t *out); // (4,8,8) -> (32,matrices)
void primitive_copy(int bytes, const unsigned char *in, unsigned char *out); // (32,bytes): lane l reads min(l, bytes)
void primitive_shuffles(int *out);                                           // (32,PRIMITIVE_SHUFFLES)
void primitive_reductions(const float *in,
                          float *out); // (PRIMITIVE_THREADS) -> (PRIMITIVE_THREADS,PRIMITIVE_REDUCTIONS)
void primitive_named_barriers(const float *in, float *out, int tiles);        // (tiles,64): each tile backwards
void primitive_philox(uint64_t key, uint64_t hi, uint64_t lo, uint32_t *out); // (32,4): counters lo, lo + 1, ...
void primitive_exp2(const float *in, float *out);                             // (32)
void primitive_arrivals(unsigned *ticket, unsigned *out);                     // 3 blocks of 64
#ifdef __cplusplus
}
#endif
