// Llama 1-3, SmolLM, TinyLlama and kin: RMSNorm, rotary pairs (i, i+D/2), grouped queries, SwiGLU. Fields as in transformers'
// LlamaConfig, before and after version 5 (rope_theta and rope_scaling, or rope_parameters).
#include "model/family.h"

static int llama_configure(ModelConfig *c, const json_t *config, const char *place)
{
    const char *act = json_string_value(json_object_get(config, "hidden_act"));
    if (act && !streq(act, "silu"))
        return fail(E_INPUT, place, "Llama models use \"silu\"", "hidden_act is \"%s\"", act);
    TRY(config_sizes(c, config, place));
    TRY(config_rope(c, config, place));
    c->attn_bias = json_is_true(json_object_get(config, "attention_bias"));
    c->mlp_bias = json_is_true(json_object_get(config, "mlp_bias"));
    return OK;
}

const Family family_llama = {"llama", "LlamaForCausalLM", "llama", llama_configure};
