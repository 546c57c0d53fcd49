// model: one decoder for all families. What a family is stands in data: ModelConfig (flags and sizes, family_*.c) and the table of
// tensors (params.def). Readers of that table: allocation and loading (load.c), what is trained (trainable.c, adapter.c),
// export (../export.c), checkpoints, weight decay. The forward and backward passes are written out by hand in decoder.c.
#pragma once
#include "io/peft.h"
#include "io/weights.h"
#include "sharding.h"
#include <jansson.h>

// ---- what a family is -----------------------------------------------------------------------------------------------
typedef enum RopeKind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 } RopeKind;

typedef struct ModelConfig {
    char family[24];
    int L, C, NH, KV, D, F, V;
    int rot;                     // rotated part of each head (<= D)
    int max_positions;           // that the model was made for
    float norm_eps, norm_offset; // weight is norm_offset + w
    float embed_scale, attn_scale, attn_softcap, final_softcap;
    int window; // 0: full attention
    bool tied, attn_bias, mlp_bias;
    double rope_theta;
    RopeKind rope_kind;
    double rope_factor, rope_low_freq, rope_high_freq; // ROPE_LINEAR: factor; ROPE_LLAMA3: all
    int rope_original_positions;
    int bos, pad, eos[8], n_eos; // -1 / 0 when the files do not say
} ModelConfig;

// A family: which config.json it answers to and how to read it. families.def lists them.
typedef struct Family {
    const char *name;
    const char *architecture; // config.json: architectures[0]
    const char *model_type;   // config.json: model_type; GGUF: general.architecture
    int (*configure)(ModelConfig *c, const json_t *config, const char *place);
} Family;

// Reads config.json of a directory (w may be NULL), or the keys of a GGUF file brought into config.json's form. Every field is
// range-checked.
int model_config_read(ModelConfig *out, const char *path, const Weights *w);
json_t *model_config_json(const char *path,
                          const Weights *w); // the (equivalent) config.json; new reference, NULL on error

// ---- parameters -----------------------------------------------------------------------------------------------------
typedef enum ParamId {
#define PARAM(id, ...) P_##id,
#include "model/params.def"
#undef PARAM
    P_COUNT
} ParamId;

enum {             // flags of a row of params.def
    PF_LINEAR = 1, // a matrix that multiplies activations: held packed
    PF_LAYER = 2,  // one per layer
    PF_ADAPT = 4,  // LoRA may sit on it
};

typedef struct Adapter {
    int R;
    float scale, dropout;               // scale = alpha / R, or alpha / sqrt(R)
    uint64_t stream;                    // of its dropout mask: hash of the module's name
    Packed A, B;                        // (R,K) and (N,R), what the kernels read
    bool bordered;                      // A and B lie in the borders of the weight (kernels.h: Packed)
    Packed kept_A, kept_B;              // ZeRO 3: their values, while another layer's weight has that place
    int slot_a, slot_b;                 // in Model.trained
    bool dora;                          // its rows have magnitudes (dora.c), each (N) f32:
    float *magnitude;                   // trained
    float *gain, *inv_norm, *gain_less; // magnitude / norm, 1 / norm; with dropout, gain - 1
    int slot_m;
    bool fresh; // the magnitude has no value yet: it becomes the norm when that is first known
} Adapter;

typedef struct Param {
    ParamId id;
    int layer;     // -1 outside layers
    char name[96]; // HF checkpoint name
    // N, K: this rank's slab, which is what kernels see; the whole tensor, and where the slab begins in it
    int N, K, full_N, full_K, row0, col0; // K == 1: a vector
    TpKind cut;
    Packed packed;    // PF_LINEAR
    bool gathered;    // ZeRO 3: packed lies in a slot that zero.c fills when the layer's turn comes
    void *shard;      // gathered and frozen: this rank's rows of the slab (part_rows), in the compute type
    float *vec;       // vectors: f32
    int slot;         // in Model.trained, or -1: frozen
    Adapter *adapter; // or NULL
} Param;

// One f32 tensor that the optimizer moves. Checkpoints, export and clipping read this list.
typedef struct Trainable {
    char name[128]; // "model.layers.0.mlp.up_proj.weight"; of an adapter ".lora_A.weight", ".lora_magnitude_vector"
    Param *param;
    Packed *packed;                       // a matrix, as kernels read it; NULL: a vector, whose values are vec
    float *vec;                           // (N)
    int N, K, full_N, full_K, row0, col0; // as in Param
    bool adapter;
    bool owner; // the first of the tensor ranks that hold this slab: it writes checkpoints
    Rows part;  // rows of the slab whose master and moments this rank has: all of them, or its share under ZeRO
    float *master, *m, *v; // (part.rows, K); a vector's master is vec itself
} Trainable;

typedef struct Layer {
    Param *p[P_COUNT]; // NULL: this family has no such tensor
    bool norms_old;    // DoRA: weights or adapters have changed since gains were computed
} Layer;

typedef struct Model {
    ModelConfig cfg;
    Device *dev;
    DType t;
    Arena *run; // owns everything below
    Param *param;
    int n_param;
    Param *top[P_COUNT]; // those outside layers; the head of a tied model is the embedding
    Layer *layer;        // (L)
    Trainable *trained;
    ShardTensor *shard; // (n_trained) how each is summed and exchanged
    int n_trained;
    int n_units, unit_head, unit_embed, unit_vectors; // units of exchange, in the order in which backward ends them
    const Mesh *mesh;                                 // NULL: one rank
    int zero;                                         // ZeRO stage; 0 when there is one data rank
    bool sequence;                                    // the residual stream is in parts over the tensor ranks
    TpCut cut;                                        // what of each layer this tensor rank has
    struct Zero *z;
    float *rope_cos, *rope_sin; // (positions, rot/2)
    int positions;
    char base[512]; // the path it was read from
} Model;

typedef struct TrainSpec {
    const char *method;              // "none", "lora", "full", "freeze"
    const char *const *freeze_train; // regexes
    int n_freeze_train;
    const PeftConfig *lora;  // method lora: shape of the adapter (from the recipe or from a directory)
    const char *adapter_dir; // where its values come from; NULL: initialised from seed
    uint64_t seed;
    bool optimizer;   // allocate m and v
    bool on_paper;    // the path has a configuration and no weights: for measuring arenas only
    const Mesh *mesh; // the caller's, longer-lived than the model; NULL: one rank
    int zero;         // ZeRO stage over the mesh's data ranks
    bool sequence;    // sequence parallelism over the mesh's tensor ranks
} TrainSpec;

// Opens path (HF directory, GGUF, attune checkpoint), checks every tensor's shape against the configuration, allocates from `run`
// (which may be measuring) and reads the weights. positions: how many the rotary tables must hold.
int model_open(Model **out, Device *d, DType t, Arena *run, const char *path, int positions, const TrainSpec *spec);
void model_close(Model *m); // not the arena
Param *model_head(Model *m);
int64_t model_params(const Model *m);        // of the base
size_t model_exchange_bytes(const Model *m); // ZeRO's buffers, through which updates and the layers' weights pass
int64_t model_trained_params(const Model *m);
int model_tokens_check(const Model *m, int tokenizer_vocab,
                       const char *place); // E_INPUT when ids could exceed the embedding

// Brings what kernels read up to date with the masters, after the optimizer moved them or a checkpoint was read: all masters have
// values then. Collective.
int params_refresh(Model *m);
// Rows of a slab from src (row stride ld) into everything that holds them: packed weights, this rank's shard or master.
int param_store(Model *m, Param *p, int row0, int rows, const void *src, DType src_t, int64_t ld);
int adapter_store(Model *m, int i, const float *src, int64_t ld); // all rows of an adapter's slab
// Reads rows of a parameter's current value, the adapter merged in f32 and rounded once when merge is set. For a model whose
// tensors are whole on this rank.
int param_read(Model *m, const Param *p, bool merge, int64_t row0, int64_t rows, DType dst_t, void *dst);
bool model_whole(const Model *m); // every tensor is whole on this rank
int adapter_config_from_dir(PeftConfig *out, const char *dir);

// ---- the passes (decoder.c) -----------------------------------------------------------------------------------------
struct Batch;

// What forward leaves for backward, carved from the step arena for a micro-batch of at most T tokens.
typedef struct Activations Activations;
size_t activations_bytes(const Model *m, int T, int M, bool train, bool recompute);
int activations_open(Activations **out, Model *m, Arena *step, int T, int S, int M, bool train, bool recompute);
void activations_close(Activations *a);

// Sets the micro-batch (host arrays are uploaded) and runs the decoder; afterwards the hidden states of the trained rows wait
// for the head. b NULL: this rank has none in this round and only takes part in the exchange of parameters (ZeRO 3); the
// backward pass that follows then only takes part in the exchange of gradients. Collective over tensor ranks.
int decoder_forward(Activations *a, const struct Batch *b, bool training);
// log-probabilities (M) of the trained tokens, host. entropy may be NULL.
int decoder_logprobs(Activations *a, float *logp, float *entropy);
// The fused form for losses whose weights are known before: logp (host, M) out, weight (host, M) in; leaves the gradient at the
// top of the decoder for decoder_backward.
int decoder_head(Activations *a, const float *weight, float *logp, GradSet *g);
// The two-pass form: after decoder_logprobs, the weights.
int decoder_head_backward(Activations *a, const float *weight, GradSet *g);
// From the gradient at the top down to the lowest trained tensor; gradients go to g.
int decoder_backward(Activations *a, GradSet *g);

// ---- generation -----------------------------------------------------------------------------------------------------
typedef struct KvCache KvCache; // (L) x (slots x capacity) rows of [k | v]
size_t kvcache_bytes(const Model *m, int slots, int capacity);
int kvcache_open(KvCache **out, Model *m, Arena *run, int slots, int capacity);
void kvcache_close(KvCache *c);
// Appends, for each of n sequences, count[i] tokens to cache slot slot[i] (positions follow on) and gives the logits after
// each sequence's last token: logits (n,V), host; NULL: they stay where they are, for decoder_sample. tokens: concatenated. n = 0: only
// takes part in the exchange of parameters.
int decoder_extend(Activations *a, KvCache *c, const int *slot, const int *count, const int32_t *tokens, int n,
                   float *logits);
// id (n): a token after each sequence of the last extension; -1: its logits are not finite. draw (n): random bits of each, not read without
// a temperature; both host. Collective over tensor ranks, which get the same.
int decoder_sample(Activations *a, KvCache *c, const SamplerConfig *s, const uint64_t *draw, int32_t *id);
int kvcache_length(const KvCache *c, int slot);
void kvcache_clear(KvCache *c, int slot);
