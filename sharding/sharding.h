// sharding: what each rank holds. Today: the mesh (data × tensor), and gradients summed over micro-batches and ranks in a way
// that does not depend on order (grad.c).
#pragma once
#include "comm.h"

// Rank r of the world is data index r / tensor, tensor index r % tensor (neighbours share a layer's tensors).
typedef struct Mesh {
    Comm *world, *data, *tensor; // data: ranks with the same tensor index; tensor: with the same data index
    int data_rank, data_size, tensor_rank, tensor_size;
} Mesh;
int mesh_open(Mesh *m, Comm *world, int tensor); // E_INPUT when the world is not a multiple of tensor
void mesh_close(Mesh *m);

// ---- gradients of one optimizer step ----
// A set of n tensors. Each micro-batch adds its gradient of a tensor with grad_add (at most once per tensor and
// micro-batch); grad_reduce sums over the data-parallel group; grad_get then gives f32.
//   order-free (deterministic): int64 fixed point, GRAD_FIX_BITS fractional bits. Integer sums are associative, so the result
//     does not depend on which rank did which micro-batch. Resolution 2^-44 = 5.7e-14, against AdamW's eps of 1e-8; range
//     ±5.2e5; a value outside, or not finite, makes grad_reduce fail with E_FAILED (the caller names the rows).
//   else: plain f32 sums.
typedef struct GradSet GradSet;
int grad_open(GradSet **out, Device *d, Arena *run, const size_t *sizes, int n, bool order_free);
void grad_close(GradSet *g);
size_t grad_bytes(const GradSet *g);
void grad_zero(GradSet *g);
// Where the f32 gradient of tensor i may be accumulated by the kernels directly (not order-free), or NULL when it must be
// computed into the caller's buffer and handed to grad_add.
float *grad_direct(GradSet *g, int i);
void grad_add(GradSet *g, int i, const float *dw);
int grad_reduce(GradSet *g, Comm *data);  // after the last micro-batch
const float *grad_get(GradSet *g, int i); // f32 (valid until the next grad_get; order-free sums are converted)
double grad_norm(GradSet *g);             // L2 over all tensors; same bits on every rank
bool grad_overflowed(const GradSet *g);   // a value that was added did not fit or was not finite (this rank)
