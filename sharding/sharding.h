// sharding: what each rank holds and how the parts come together. The mesh (data × tensor); how a decoder is cut over the tensor
// ranks (tp.c); how tensors are cut by rows over the data ranks and exchanged in units (units.c); gradients summed over micro-batches
// and ranks in a way that does not depend on order (grad.c, exact_sum.c).
#pragma once
#include "comm.h"

// ---- mesh -----------------------------------------------------------------------------------------------------------
// Rank r of the world is data index r / tensor, tensor index r % tensor (neighbours share a layer's tensors).
typedef struct Mesh {
    Comm *world, *data, *tensor; // data: ranks with the same tensor index; tensor: with the same data index
    int data_rank, data_size, tensor_rank, tensor_size;
    // What runs beside the computation: jobs on the queue's thread, and the same two groups for it alone.
    CommQueue *queue;
    Comm *data_bg, *tensor_bg;
} Mesh;
int mesh_open(Mesh *m, Comm *world, int tensor); // E_INPUT when the world is not a multiple of tensor
void mesh_close(Mesh *m);
// Lets the four groups (not the world) carry memory of d, one per rank, and the queue's jobs run beside its ops. E_INPUT when the ranks
// have devices of different kinds, or share one, unless ATTUNE_SHARE_GPUS is set. Collective; once.
int mesh_use_device(Mesh *m, Device *d);

// What this rank has exchanged so far in each of its groups, along with what ran beside the computation. Groups of one rank do not count.
typedef struct Traffic {
    CommStats tensor, data, world;
    double wait_ms;        // the calling thread's, in collectives and for jobs of the queue
    double beside_ms;      // of the queue's jobs, which run beside the computation
    double beside_wait_ms; // of these, what the calling thread waited for: 1 - beside_wait_ms / beside_ms is hidden
} Traffic;
Traffic mesh_traffic(const Mesh *m);
CommStats stats_sum(CommStats a, CommStats b);
Traffic traffic_since(Traffic now, const Traffic *before);
uint64_t traffic_bytes(const Traffic *t); // handed in, all groups together
size_t mesh_footprint(const Mesh *m);     // comm_footprint of all groups

// ---- tensor parallelism (tp.c) --------------------------------------------------------------------------------------
// How a tensor of the decoder is cut over the tensor ranks (Shoeybi et al. 2019, Megatron-LM): by rows, by columns, or not at all;
// in step with the query heads, the key/value heads, the feed-forward width or the vocabulary.
typedef enum TpKind { TP_WHOLE, TP_ROWS_Q, TP_ROWS_KV, TP_ROWS_F, TP_ROWS_V, TP_COLS_Q, TP_COLS_F } TpKind;

// What one tensor rank holds: query heads [q0, q0+NH), key/value heads [kv0, kv0+KV), feed-forward columns [f0, f0+F), vocabulary
// rows [v0, v0+V). Heads that do not divide are dealt unevenly, whole key/value groups to a rank; with more ranks than key/value
// heads, the kv_ranks ranks from kv_first on share one key/value head, each with some of its query heads.
typedef struct TpCut {
    int q0, NH, kv0, KV, f0, F, v0, V;
    int kv_first, kv_ranks;
} TpCut;
// E_INPUT when there are more ranks than query heads, feed-forward columns or vocabulary rows
int tp_cut(TpCut *out, int rank, int size, int NH, int KV, int F, int V);

// The part of an (N,K) tensor that this rank holds: rows [row0, row0+rows), columns [col0, col0+cols).
typedef struct TpSlab {
    int row0, rows, col0, cols;
} TpSlab;
TpSlab tp_slab(const TpCut *c, TpKind kind, int D, int N, int K);

// ---- parts and units (units.c) --------------------------------------------------------------------------------------
// ZeRO (Rajbhandari et al. 2020) deals each tensor's rows out to the data ranks: part k of N rows is [N*k/parts, N*(k+1)/parts).
typedef struct Rows {
    int row0, rows;
} Rows;
Rows part_rows(int N, int part, int parts);

// Over which tensor ranks a gradient has to be summed, besides the data ranks: none (each rank has all of it, or its own cut), those
// that share a key/value head, or all.
typedef enum GradSum { SUM_DATA, SUM_KV, SUM_TENSOR, SUM_COUNT } GradSum;

typedef struct ShardTensor {
    int N, K; // of this tensor rank's slab
    int unit;
    GradSum sum;
    bool counted; // in the gradient norm: one of the ranks that hold the same values counts it
} ShardTensor;

// Tensors that are exchanged together: a layer's, usually. In a unit's buffer part 0 of every tensor comes first, then part 1, so that
// what a rank owns is contiguous; within a part tensors are ordered by GradSum. A unit of one tensor larger than UNIT_ELEMENTS is
// exchanged in chunks: chunk j has the j-th stretch of rows of every part.
enum { UNIT_ELEMENTS = 4 << 20 };
typedef struct Piece {
    int tensor, row0, rows;
    size_t at; // elements from the beginning of the (chunk's) buffer
} Piece;
typedef struct Units {
    int parts, n_units, n, most; // most: tensors of the largest unit
    const ShardTensor *t;        // (n), the caller's
    int *order, *first;          // (n), (n_units + 1): tensors of unit u are order[first[u]] ... order[first[u+1]-1]
} Units;
void units_open(Units *u, const ShardTensor *t, int n, int n_units, int parts);
void units_close(Units *u);
size_t unit_elements(const Units *u, int unit);
int unit_chunks(const Units *u, int unit);
size_t units_largest(const Units *u); // elements of the largest chunk of any unit
// pieces (parts * tensors of the unit, part by part) and start (parts + 1) of a chunk; whole: of the unit as one
void unit_chunk(const Units *u, int unit, int chunk, Piece *piece, size_t *start);
void unit_whole(const Units *u, int unit, Piece *piece, size_t *start);

// ---- gradients of one optimizer step (grad.c) -----------------------------------------------------------------------
// Each micro-batch adds its gradient of a tensor with grad_add (at most once per tensor and micro-batch) and says with
// grad_unit_done when nothing more comes for a unit; grad_finish ends the step; grad_get then gives f32.
//   order-free (deterministic): int64 fixed point, GRAD_FIX_BITS fractional bits. Integer sums are associative, so the result
//     does not depend on which rank did which micro-batch. Resolution 2^-44 = 5.7e-14, against AdamW's eps of 1e-8; a sum that
//     could leave ±5.2e5 over all ranks, or is not finite, makes grad_finish fail with E_FAILED (the caller names the rows).
//   else: plain f32 sums.
// ZeRO 0: every data rank has all sums. 1: all are kept, each rank gets the sums of its part. 2, 3: each micro-batch's units are
// reduced and only the part is kept; then every data rank must go through the same units in each of the step's rounds.
// Reductions run on the mesh's queue while backward goes on.
typedef struct GradSet GradSet;
typedef struct GradConfig {
    Device *device;
    const Mesh *mesh; // NULL: one rank
    const ShardTensor *t;
    int n, units; // units are done in this order; the last may gather gradients all through backward (vectors)
    int zero;
    bool order_free;
    int kv_first,
        kv_ranks; // tensor ranks [kv_first, kv_first + kv_ranks) share a key/value head with this; 0: none share any
} GradConfig;
int grad_open(GradSet **out, Arena *run, const GradConfig *c);
void grad_close(GradSet *g);
size_t grad_bytes(const GradSet *g);
// Of the group that shares key/value heads, a part of the tensor ranks.
CommStats grad_traffic(const GradSet *g);
size_t grad_footprint(const GradSet *g);
int grad_rounds(const GradSet *g, int own, int most); // micro-batches to go through, when data ranks have up to `most`
void grad_zero(GradSet *g, int rounds);               // a step of so many micro-batches begins
void grad_round(GradSet *g, bool last);               // a micro-batch begins; last: of this rank and step
// Where the f32 gradient of tensor i may be accumulated by the kernels directly (ZeRO 0, not order-free), or NULL when it must be
// computed into the caller's buffer and handed to grad_add.
float *grad_direct(GradSet *g, int i);
int grad_add(GradSet *g, int i, const float *dw);
int grad_unit_done(GradSet *g, int unit);
int grad_finish(GradSet *g);
Rows grad_rows(const GradSet *g, int i);  // the rows of tensor i whose sums this rank has
const float *grad_get(GradSet *g, int i); // (rows, K) f32, valid until the next grad_get
// L2 over all tensors, each counted once; same bits on every rank, for any number of data ranks and any ZeRO stage. Collective.
int grad_norm(GradSet *g, double *out);
bool grad_overflowed(const GradSet *g); // a value that was added did not fit or was not finite (this rank)

// ---- exact sums (exact_sum.c) ---------------------------------------------------------------------------------------
// A sum of non-negative doubles that does not depend on their order: a fixed-point number of 512 bits around 1 (Kulisch & Miranker
// 1986), kept as limbs of 32 bits in int64, so that up to 2^31 values and then ranks can be added without carries. Bits below 2^-256
// are cut off; a value of 2^256 or more, or not finite, makes the sum infinite.
enum { EXACT_LIMBS = 17 };
typedef struct ExactSum {
    int64_t limb[EXACT_LIMBS + 1]; // the last counts values that do not fit
} ExactSum;
void exact_add(ExactSum *s, double x);
int exact_reduce(ExactSum *s, Comm *c);
double exact_value(const ExactSum *s);
