// peft: Hugging Face PEFT adapter directories (adapter_config.json, adapter_model.safetensors).
#pragma once
#include "io/weights.h"

typedef struct PeftConfig {
    int rank;
    double alpha, dropout;
    bool use_rslora, use_dora, fan_in_fan_out;
    const char *base_model;    // base_model_name_or_path
    char **targets;            // module names as written ("q_proj"); NULL-terminated
    char *targets_regex;       // when target_modules is a string other than "all-linear"
    // rank_pattern and alpha_pattern: module name or dotted tail -> value; parallel arrays of n_pattern entries (rank or alpha
    // 0 / NaN where that table does not name it)
    int n_pattern;
    char **pattern;
    int *pattern_rank;
    double *pattern_alpha;
    char **modules_to_save; // NULL-terminated, may be NULL
} PeftConfig;
int peft_config_read(PeftConfig *out, const char *dir);  // E_INPUT: unknown peft_type, bad values, with the key's name
int peft_config_write(const PeftConfig *c, const char *dir);
void peft_config_free(PeftConfig *c);
// rank and alpha of one module ("model.layers.0.self_attn.q_proj"), patterns applied as PEFT does
void peft_module_rank(const PeftConfig *c, const char *module, int *rank, double *alpha);
