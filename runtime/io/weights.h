// weights: foreign model files read as named tensors, whatever the container. Names are Hugging Face checkpoint names
// ("model.layers.0.self_attn.q_proj.weight"), also for GGUF, whose tensors are renamed and whose rotary permutation of q and k
// is undone, so that nobody above knows which file it was.
#pragma once
#include "kernels.h"

typedef struct TensorInfo {
    const char *name; // owned by the Weights
    int ndim;
    int64_t shape[8];   // row-major, outermost first
    const char *stored; // "F32", "BF16", "F16", "Q4_1", ... as the file says
    uint64_t bytes;     // in the file
} TensorInfo;

typedef struct Weights Weights;
// A directory (model.safetensors, or model.safetensors.index.json with its shards), one .safetensors file, or a .gguf file.
// Everything is validated here: offsets, shapes, overlaps, counts, truncation. E_INPUT names the file and the tensor.
int weights_open(Weights **out, const char *path);
void weights_close(Weights *w);
// A model on paper: a directory with a config.json and no weights.
bool weights_on_paper(const char *path);
int weights_count(const Weights *w);
const TensorInfo *weights_info(const Weights *w, int i);
int weights_find(const Weights *w, const char *hf_name); // index or -1
// Rows [row0, row0+rows) (a 1-D tensor counts as one row per element) converted to dst_t (F32 or BF16), dequantised exactly
// as the `gguf` Python package does; what is no f32 in the file (F64 too) goes through f32 and is rounded to bf16 once. Nothing of
// the file stays resident. Several threads may read from one Weights at the same time. E_INPUT: no weight type, or a file cut short.
int weights_read(Weights *w, int i, int64_t row0, int64_t rows, DType dst_t, void *dst);
// Whether rows of tensor i are whole blocks of quantised numbers, to be had as they lie in the file: *format is theirs.
bool weights_blocks(const Weights *w, int i, Quant *format);
int weights_read_blocks(Weights *w, int i, int64_t row0, int64_t rows, void *dst);
// The file's own metadata: for GGUF the value of a key as malloc'ed JSON text (arrays included), for safetensors a string of
// __metadata__ (of the first shard that has one).
char *weights_meta_json(const Weights *w,
                        const char *key); // NULL when absent, or (with an error recorded) no longer readable
bool weights_is_gguf(const Weights *w);
uint64_t weights_total_bytes(const Weights *w); // of all tensors, as stored

// ---- writing safetensors ----
typedef struct TensorOut {
    const char *name;
    DType t;
    int ndim;
    int64_t shape[4];
    // fills rows [row0, row0+rows) in dtype t, row-major; called in order, in slices of at most a few MiB
    int (*read)(void *ctx, int64_t row0, int64_t rows, void *dst);
    void *ctx;
} TensorOut;
// One file, atomically (beside, fsync, rename); header {"__metadata__":{"format":"pt"}}, tensors in the library's order: byte for
// byte what Hugging Face writes. On an error nothing is left behind, and a file that was there before is untouched.
int safetensors_write(const char *path, const TensorOut *tensors, int n);
uint64_t safetensors_bytes(const TensorOut *tensors, int n); // of that file
