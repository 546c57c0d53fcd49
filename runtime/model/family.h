// family: what the family_*.c files share: reading config.json with every field range-checked (config.c).
#pragma once
#include "model/model.h"

// Each returns E_INPUT naming the field. Optional fields keep *out when they are absent or null.
int config_int(const json_t *config, const char *key, int min, int max, bool required, int *out, const char *place);
int config_float(const json_t *config, const char *key, double min, double max, bool required, double *out,
                 const char *place);
// hidden_size, num_hidden_layers, heads, head_dim, intermediate_size, vocab_size, rms_norm_eps, tie_word_embeddings, ids
int config_sizes(ModelConfig *c, const json_t *config, const char *place);
// rope_theta / rope_scaling or rope_parameters
int config_rope(ModelConfig *c, const json_t *config, const char *place);

#define FAMILY(name) extern const Family family_##name;
#include "model/families.def"
#undef FAMILY
