// The matrix products of the CPU device: layout of packed weights and the tile kernels behind linear, lora
// and head. Owns no memory. Read gemm.c for the walk over tiles, gemm_*.c for the kernels of an instruction
// set.
//
// Layout. Everything is moved in words of 32 bits: an f32 element, or a pair of bf16 elements that follow
// each other along the sum (the unit of the dot-product instruction). A panel holds 32 columns of B for the
// whole length of the sum:
//     panel[word][column], 32 words = 128 bytes = two cache lines a step.
// A packed weight W (N,K) is the row of its forward panels (32 rows of W each, the sum along K); short panels
// and odd K are padded with zeros. The backward pass needs panels of 32 columns of W with the sum along N;
// they are made from the forward panels on the way, 32x32 at a time, so that one copy serves both.
#pragma once
#include "cpu.h"

enum { PANEL = 32 };

static inline int panel_count(int n)
{
    return (n + PANEL - 1) / PANEL;
}
static inline int64_t words_along(DType t, int k)
{
    return t == DT_BF16 ? (k + 1) / 2 : k;
} // words of a sum of k elements
static inline int64_t panel_words(DType t, int k)
{
    return words_along(t, k) * PANEL;
} // 32-bit words of a panel

static inline size_t packed_bytes(DType t, int N, int K)
{
    return (size_t)panel_count(N) * (size_t)panel_words(t, K) * sizeof(uint32_t);
}

static inline uint32_t *packed_panel(const Packed *w, int p)
{
    return (uint32_t *)w->data + p * panel_words(w->t, w->K);
}

// Position of element (n, k) of W, in elements of w->t.
static inline int64_t packed_index(const Packed *w, int n, int k)
{
    int64_t column = (int64_t)(n / PANEL) * panel_words(w->t, w->K) + n % PANEL;
    return w->t == DT_BF16 ? 2 * (column + (int64_t)(k / 2) * PANEL) + k % 2 : column + (int64_t)k * PANEL;
}
