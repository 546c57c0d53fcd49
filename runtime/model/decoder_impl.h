// decoder_impl: what the files of the two passes share (activations.c, linear.c, decoder.c, decode.c).
#pragma once
#include "data/data.h"
#include "model/load.h"

// What a layer leaves for its backward pass. h1, h2 (normed inputs) and the SwiGLU product are computed again there: cheaper to
// redo than to keep.
typedef struct LayerActs {
    void *x;          // (T,C) the layer's input; of x, x_mid and the rstds this rank's rows of the stream
    float *rstd1;     // (T)
    void *q;          // (T,NH*D) rotated
    void *kv;         // (T,2*KV*D): k rotated, v
    void *o;          // (T,NH*D) attention's output, with room
    float *lse;       // (NH,T)
    void *x_mid;      // (T,C) after attention and its residual
    float *rstd2;     // (T)
    void *gu;         // (T,2F), with room behind gate and up
    void *s[P_COUNT]; // (T,R) of each adapted linear, indexed by ParamId; NULL where it lies in o's room
} LayerActs;

struct Activations {
    Model *m;
    int T_max, S_max, M_max;
    bool train, recompute;
    // Elements behind the rows of what linears read, forward and backward, for the s or ds of adapters that are bordered: of h and dx,
    // and of everything else that is said to have room. Such a row's stride is its width and the room.
    int stream_room, room;

    LayerActs *layer; // (L) kept for backward when training; one shared set otherwise
    void *x_out;      // (T,C) output of the last layer
    void *hg, *hn;    // (M,C) gathered trained rows, and normed
    float *rstd_f;    // (M)

    // scratch of one layer
    void *h;          // (T,C) normed input, with stream_room
    void *a;          // (T,F) SwiGLU product, with room
    void *drop;       // (T, widest K) dropped-out adapter input
    void *ds;         // (T, largest R), where dy has no room
    void *u;          // (T, widest N) DoRA: x·W'ᵀ again, then its gradient; with room
    void *dx;         // (T,C) the gradient on its way down, this rank's rows of the stream; with stream_room
    void *full;       // (T,C) sequence parallel: all rows of what ranks hold in parts
    void *dh;         // (T,C)
    void *da;         // (T,F)
    void *dq, *dkv;   // as q, kv, with room behind dq, dk and dv
    void *dout;       // as o
    void *dhead;      // (M,C)
    float *dw;        // largest trained tensor: a gradient on its way to the GradSet
    float *dembed;    // (V,C) when the embedding is trained and its gradient cannot go to the GradSet directly
    float *dembed_at; // where this micro-batch's embedding gradient is being summed

    size_t *row_start;                   // host (tensor ranks + 1)
    float *shares;                       // host: what tensor ranks exchange about the head's rows, (1 + ranks) x 3 x M
    int32_t *local_token, *local_target; // host (T), (M): ids counted from this rank's first row of the vocabulary

    // the micro-batch
    int T, S, M;
    bool idle; // there is none
    bool dropping;
    int32_t *tokens, *pos, *head_row, *target; // device
    uint64_t *row_key;
    float *logp, *lse_head, *weight, *entropy; // (M) device
    int32_t *seq_start, *seq_len;              // (S) host
    AttnShape shape;
};

// ---- linear.c: base weight, bias and adapter behind one call ---------------------------------------------------------
// A matrix (T, width): ld elements from row to row, of which `room` behind the width are nobody else's.
typedef struct Columns {
    void *at;
    int64_t ld;
    int room;
} Columns;
typedef struct LinearIn {
    const Param *p;
    const Param *bias; // or NULL
    Columns x;         // (T,K)
    void *s;           // (T,R) keeps the adapter's inner activation for backward; NULL: x's room does
} LinearIn;
// residual may be y, but not of a linear with DoRA
void linear_forward(Activations *a, const LinearIn *in, void *y, int64_t ldy, const void *residual);
// dx NULL: nothing below needs it
int linear_backward(Activations *a, const LinearIn *in, void *dx, int64_t lddx, bool accumulate, Columns dy,
                    GradSet *g);
// Where a tensor's gradient is to be written: into the GradSet itself (then it adds up), or into a->dw, to be handed over with
// grad_done before the next one begins.
float *grad_begin(Activations *a, GradSet *g, int slot, bool *accumulate);
int grad_done(Activations *a, GradSet *g, int slot);
bool linear_trained(const Param *p, const Param *bias);

size_t act_bytes(const Activations *a, int64_t rows, int64_t cols); // in the compute type
int64_t attention_ld(const Activations *a);                         // of o and dout
// ---- decoder.c: what comes before anything of layer l, on all ranks: its weights and gains, and asking for layer `next` (-1: none)
int layer_begin(Model *m, int l, int next);
// the embedding, and a layer in three pieces, so that decode.c can put its cache between them
int embed_tokens(Activations *a, const int32_t *tokens); // host (T) -> layer 0's input
int layer_qkv(Activations *a, int l, LayerActs *k);
int layer_mlp(Activations *a, int l, LayerActs *k, void *x_next);
AttnShape attention_shape(const Model *m, int S, const int32_t *q_start, const int32_t *q_len, const int32_t *k_start,
                          const int32_t *k_len);
int norm_gradient(Activations *a, GradSet *g, const Param *p, void *dx, int64_t lddx, const void *dy, const void *x,
                  const float *rstd, bool accumulate_dx, int rows);
// ---- tensor.c: the residual stream, whole or in parts, into and out of the blocks
bool tensor_first(const Activations *a);              // of the tensor ranks
Rows stream_rows(const Activations *a);               // the rows of the stream that this rank has: all, or its part
int stream_rows_max(const Model *m, int T);           // for micro-batches of up to T tokens
void *row_of(const Activations *a, void *x, int row); // row `row` of x (..,C)
// x (rows,C), of which each tensor rank has a share -> the sum, on each
int tensor_sum(Activations *a, void *x, int rows);
int stream_sum(Activations *a, void *full);      // full (T,C): shares -> the sum, of this rank's rows
int stream_complete(Activations *a, void *full); // full (T,C): this rank's rows -> all
int stream_gather(Activations *a, void *x,
                  void **full);              // x, this rank's rows -> *full (T,C): x itself when it has all, or scratch
void *stream_whole(Activations *a, void *x); // where (T,C) can be put that is to become x: x itself, or scratch
int stream_scatter(Activations *a, void *x, const void *full); // and this rank's rows of it -> x
// A linear cut by columns (o, down) that ends a block: y, this rank's rows = residual + bias + the sum of the ranks' shares.
int block_output(Activations *a, const LinearIn *in, void *y, const void *residual);
// ---- head.c
int head_rows(Activations *a); // the trained rows of the last layer's output through the final norm
// The logits of those rows: this rank's columns, (M, its V) on the device; and the whole vocabulary's, (M,V) on the host
void shard_logits(Activations *a, float *shard);
int join_logits(Activations *a, const float *shard, float *logits);
// A token from each; draw, id: (M) host, as decoder_sample's
typedef struct SampleMemory { // device, (M) each
    uint64_t *draw;
    int32_t *id;
} SampleMemory;
int sample_logits(Activations *a, const float *shard, const SamplerConfig *s, const SampleMemory *memory,
                  const uint64_t *draw, int32_t *id);
// ---- zero.c: with ZeRO 3, the weights of a layer: asked for early, needed now. Ranks ask in the same order.
int zero_ask(Model *m, int layer);
int zero_need(Model *m, int layer);
