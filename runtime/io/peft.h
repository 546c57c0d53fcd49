// peft: Hugging Face PEFT adapter directories (adapter_config.json, adapter_model.safetensors).
#pragma once
#include "io/weights.h"

// Every pointer is malloc'ed and owned by the config: peft_config_free gives all of them back.
typedef struct PeftConfig {
    int rank;
    double alpha, dropout;
    bool use_rslora, use_dora, fan_in_fan_out;
    const char *base_model; // base_model_name_or_path; NULL: not said
    const char *task_type;  // "CAUSAL_LM", "SEQ_CLS", ...; NULL: not said; CAUSAL_LM is written then
    char **targets;         // module names as written ("q_proj"), or the one word "all-linear"; NULL-terminated
    char *targets_regex;    // when target_modules is a string other than "all-linear"; targets is NULL then
    // rank_pattern and alpha_pattern: module name, dotted tail or regular expression -> value; the entries of the first, in its
    // order, then those of the second: parallel arrays of n_pattern entries (rank 0 / alpha NaN: not an entry of that table)
    int n_pattern;
    char **pattern;
    int *pattern_rank;
    double *pattern_alpha;
    char **modules_to_save; // NULL-terminated, may be NULL
} PeftConfig;
// adapter_config.json as PEFT 0.10 and later write it. E_INPUT names the key: another peft_type than LORA, a value out of range,
// or a feature that would change what the adapter computes and that is not supported. Unknown keys are warned about.
int peft_config_read(PeftConfig *out, const char *dir);
int peft_config_parse(PeftConfig *out, const char *json, size_t bytes,
                      const char *place);                    // the same from memory
int peft_config_write(const PeftConfig *c, const char *dir); // readable by PEFT 0.10 and later
void peft_config_free(PeftConfig *c);
// rank and alpha of one module ("model.layers.0.self_attn.q_proj"): the first pattern of each table that matches the name or a
// dotted tail of it, as in PEFT's get_pattern_key; else rank and alpha of the config
void peft_module_rank(const PeftConfig *c, const char *module, int *rank, double *alpha);
