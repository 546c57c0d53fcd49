// load: what the files that fill a Model share (load.c, trainable.c, zero.c) and the passes do not see.
#pragma once
#include "model/model.h"

// Device memory so many elements behind base. NULL, a measuring arena's, stays NULL.
static inline void *offset(void *base, size_t elements, DType t)
{
    return base ? (char *)base + elements * dtype_size(t) : NULL;
}

unsigned param_id_flags(ParamId id); // PF_*
// rows of K elements, ld apart in host memory, to device memory where they lie side by side; rounds when src is F32 and dst BF16
int upload_rows(Device *d, void *dst, DType t, const void *src, DType src_t, int64_t ld, int rows, int K);

// Gives a weight with a bordered adapter, [W B; A ·], its place; at: param_bytes of device memory, or NULL in a measuring arena.
void place_bordered(Packed *w, Adapter *ad, char *at);
size_t param_bytes(const Model *m, const Param *p); // of the packed weight, with its border

// trainable.c
bool param_cut_columns(const Param *p);                                // over the tensor ranks
int trainable_setup(Model *m, const TrainSpec *spec);                  // fills trained and allocates
int trainable_init(Model *m, const TrainSpec *spec, Weights *adapter); // first values of adapters

// ---- dora.c ----
void dora_open(Model *m, Param *p); // the vectors of p's adapter
void dora_changed(Model *m);        // A, B and magnitudes have new values
int dora_ready(
    Model *m,
    int layer); // gains of a layer whose weights are at hand, if they are out of date; collective over tensor ranks

// ---- zero.c: parameters over the data ranks ----
int zero_parts(const Model *m); // data ranks that share a tensor's optimizer state; 1: no ZeRO
int zero_part(const Model *m);  // this rank's
// After trainable_setup: buffers of the exchange; with stage 3, the slots of the layers' weights.
int zero_open(Model *m);
void zero_close(Model *m);
