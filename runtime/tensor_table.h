// tensor_table: tensors that differ only in numbers of their names ("model.layers.7.") and agree in shape and
// type, as one line. For `attune inspect`.
#pragma once
#include "kernels.h"
#include <jansson.h>

typedef struct TensorTable TensorTable;
TensorTable *tensor_table_open(void);
// stored: "BF16", "Q4_1", ...; bytes: as stored
void tensor_table_add(TensorTable *t, const char *name, const char *stored, const int64_t *shape, int ndim,
                      uint64_t bytes);
uint64_t tensor_table_elements(const TensorTable *t);
uint64_t tensor_table_bytes(const TensorTable *t);
// [{"name": "model.layers.{0..29}.self_attn.q_proj.weight", "shape": [576, 576], "type": "BF16", "count": 30,
// "bytes": ...}] in the order in which each pattern was first added
json_t *tensor_table_json(const TensorTable *t);
// [{"type": "Q4_1", "tensors": 210, "bytes": ...}]
json_t *tensor_table_types(const TensorTable *t);
void tensor_table_free(TensorTable *t);
