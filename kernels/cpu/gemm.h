// The matrix products of the CPU device: layout of packed weights, and the walk over tiles behind linear, lora and head.
// gemm.c walks; gemm_kernels.h and gemm_{avx512,avx2,dnnl}.c hold what an instruction set does inside a block.
//
// Layout. Everything is moved in words of 32 bits: an f32 element, or a pair of bf16 elements that follow each other
// along the sum (the unit of the dot-product instruction). A panel holds 32 columns of B for the whole length of the sum:
//     panel[word][column], 32 words = 128 bytes = two cache lines a step.
// A packed weight W (N,K) is the row of its forward panels (32 rows of W each, the sum along K); short panels and odd K
// are padded with zeros. The backward pass needs panels of 32 columns of W with the sum along N; they are turned out of
// the forward panels on the way, 32x32 at a time, so that one copy serves both.
//
// Bits. An element of a product is summed by one accumulator from the first word to the last, whatever the other rows and
// columns of its tile are: it depends on its own row, its own column and the length of the sum alone.
#pragma once
#include "cpu.h"

enum { PANEL = 32 }; // columns of a panel

static inline int panel_count(int n)
{
    return (n + PANEL - 1) / PANEL;
}
static inline int64_t words_along(DType t, int k)
{
    return t == DT_BF16 ? (k + 1) / 2 : k;
} // of a sum of k elements
static inline int64_t panel_words(DType t, int k)
{
    return words_along(t, k) * PANEL;
}
static inline size_t panel_bytes(DType t, int k)
{
    return (size_t)panel_words(t, k) * sizeof(uint32_t);
}
static inline size_t packed_bytes(DType t, int N, int K)
{
    return (size_t)panel_count(N) * panel_bytes(t, K);
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

// ---- what an instruction set offers ---------------------------------------------------------------------
// One sum of a block: `rows` rows of A against a panel. Word `w` of row i lies at a + i*row + w*step, in bytes.
typedef struct GemmSum {
    const void *a;
    int64_t row, step;
    const uint32_t *panel;
    int K; // elements of the sum
} GemmSum;

// What becomes of a sum: y = scale * sum [+ bias] [+ add], rounded once.
typedef struct GemmOut {
    void *y;
    DType t;
    int64_t ld;
    float scale;
    const float *bias; // (columns), or NULL
    const void *add;   // laid out like y, may be y itself, or NULL
} GemmOut;

// One row's softmax over the columns seen so far. The target's own term stays out of `sum` (head.c says why).
typedef struct SoftmaxRow {
    float top;     // largest logit
    float sum;     // Σ exp(z - top)
    float sum_z;   // Σ exp(z - top) · (z - top), for the entropy
    float at;      // logit of the target, once seen
    float rescale; // what the last call multiplied older sums with
} SoftmaxRow;

// `words` is the type operands have inside a block: F32, or BF16 where the instruction set multiplies pairs.
typedef struct GemmKernels {
    int tile_rows;
    DType bf16_words; // what bf16 operands become
    // y rows [0, rows) x columns [0, columns) of one panel: the sums one after the other in the same accumulators
    void (*block)(DType words, const GemmSum *sums, int sum_count, int rows, const GemmOut *out, int columns);
    // n elements as f32
    void (*to_f32)(float *to, const void *from, DType t, int n);
    // a bf16 panel, k elements long, as an f32 panel
    void (*widen)(float *to, const uint32_t *from, int k);
    // the backward panel of columns [32p, 32p+32) of W, its sum along the rows in forward panels [n0, n1)
    void (*turn)(uint32_t *to, DType words, const Packed *w, int p, int n0, int n1);
    // a panel out of x (T, columns <= 32), its sum along T; missing columns and the odd row are zeros
    void (*columns)(uint32_t *to, DType words, const void *x, DType t, int64_t ld, int T, int columns);
    // a whole forward panel of type t out of 32 rows of src (32, K)
    void (*pack)(uint32_t *to, DType t, const void *src, DType src_t, int64_t ld, int K);
    // n logits of a row, read and written in whole groups of 16: caps them (cap > 0) in place, adds them to s, and writes
    // p = exp(z - top) · slope of the cap, 0 at the target, unless p is NULL. target < 0: not among these columns
    void (*softmax)(float *z, void *p, DType words, int n, int target, float cap, SoftmaxRow *s);
    // caps z and writes dz = weight · ([v = target] - exp(z - lse)) · slope of the cap
    void (*softmax_dz)(float *z, void *dz, DType words, int n, int target, float cap, float weight, float lse);
} GemmKernels;

extern const GemmKernels gemm_avx512, gemm_avx2, gemm_dnnl;
const GemmKernels *gemm_kernels(const Device *d);

// ---- products -------------------------------------------------------------------------------------------
// y (T, columns) = Σ over terms of x · Wᵀ (or x · W when back), see GemmOut for the rest.
typedef struct GemmTerm {
    const void *x;
    int64_t ldx;
    const Packed *w;
} GemmTerm;

typedef struct GemmProduct {
    DType t; // of x
    bool back;
    int T, columns, terms;
    GemmTerm term[2];
    GemmOut out;
} GemmProduct;
void gemm_product(Device *d, const GemmProduct *g);

// The type operands get inside a block when x is of type t and the weight of type w_t.
static inline DType gemm_words(const GemmKernels *k, DType t, DType w_t)
{
    return t == DT_BF16 && w_t == DT_BF16 ? k->bf16_words : DT_F32;
}

static inline GemmSum gemm_rows(DType words, const void *x, int64_t ldx, const uint32_t *panel, int K) // A as it lies
{
    return (GemmSum){x, ldx * (words == DT_BF16 ? 2 : 4), sizeof(uint32_t), panel, K};
}
// Rows that must be copied before a block reads them: into (rows, gemm_staged_ld(words, K)) elements of type `words`.
bool gemm_must_stage(DType words, DType t, int64_t ldx, int rows);
int64_t gemm_staged_ld(DType words, int K);
GemmSum gemm_stage(const GemmKernels *k, DType words, void *to, const void *x, DType t, int64_t ldx, int rows, int K);

static inline GemmSum gemm_turned(const uint32_t *a_panel, const uint32_t *panel, int K) // A is a panel: up to 32 rows
{
    return (GemmSum){a_panel, sizeof(uint32_t), PANEL * sizeof(uint32_t), panel, K};
}
