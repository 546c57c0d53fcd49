// config.c reads what a model is: config.json, or a GGUF file's keys brought into config.json's form, so that a family has one
// reader. Numbers come from foreign files: each has a range, and sizes must fit together.
#include "model/family.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const Family *const families[] = {
#define FAMILY(name) &family_##name,
#include "model/families.def"
#undef FAMILY
};

// ---- fields ---------------------------------------------------------------------------------------------------------
int config_float(const json_t *config, const char *key, double min, double max, bool required, double *out,
                 const char *place)
{
    const json_t *v = json_object_get(config, key);
    if (!v || json_is_null(v)) return required ? fail(E_INPUT, place, NULL, "%s is missing", key) : OK;
    if (!json_is_number(v)) return fail(E_INPUT, place, NULL, "%s is not a number", key);
    double x = json_number_value(v);
    if (!(x >= min && x <= max)) return fail(E_INPUT, place, NULL, "%s is %g, allowed are %g to %g", key, x, min, max);
    *out = x;
    return OK;
}

int config_int(const json_t *config, const char *key, int min, int max, bool required, int *out, const char *place)
{
    double x = *out;
    TRY(config_float(config, key, min, max, required, &x, place));
    if (x != floor(x)) return fail(E_INPUT, place, NULL, "%s is %g, a whole number is needed", key, x);
    *out = (int)x;
    return OK;
}

static void read_ids(const json_t *v, int *ids, int *n, int max)
{
    *n = 0;
    size_t count = json_is_array(v) ? json_array_size(v) : 1;
    for (size_t i = 0; v && i < count && *n < max; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        if (json_is_integer(e) && json_integer_value(e) >= 0 && json_integer_value(e) < INT32_MAX)
            ids[(*n)++] = (int)json_integer_value(e);
    }
}

int config_sizes(ModelConfig *c, const json_t *config, const char *place)
{
    double eps = 1e-6;
    TRY(config_int(config, "hidden_size", 1, 1 << 17, true, &c->C, place));
    TRY(config_int(config, "num_hidden_layers", 1, 1024, true, &c->L, place));
    TRY(config_int(config, "num_attention_heads", 1, 1 << 12, true, &c->NH, place));
    c->KV = c->NH;
    TRY(config_int(config, "num_key_value_heads", 1, 1 << 12, false, &c->KV, place));
    if (c->NH % c->KV)
        return fail(E_INPUT, place, NULL, "num_attention_heads (%d) is not a multiple of num_key_value_heads (%d)",
                    c->NH, c->KV);
    c->D = c->C / c->NH;
    TRY(config_int(config, "head_dim", 2, 512, false, &c->D, place));
    if (c->D < 2 || c->D > 512 || c->D % 2)
        return fail(E_INPUT, place, NULL, "head_dim is %d, even numbers from 2 to 512 are supported", c->D);
    TRY(config_int(config, "intermediate_size", 1, 1 << 20, true, &c->F, place));
    TRY(config_int(config, "vocab_size", 1, 1 << 23, true, &c->V, place));
    TRY(config_int(config, "max_position_embeddings", 1, 1 << 30, false, &c->max_positions, place));
    TRY(config_float(config, "rms_norm_eps", 1e-12, 1, false, &eps, place));
    c->norm_eps = (float)eps;
    c->rot = c->D;
    c->embed_scale = 1;
    c->attn_scale = 1 / sqrtf((float)c->D);
    c->tied = json_is_true(json_object_get(config, "tie_word_embeddings"));
    c->bos = c->pad = -1;
    TRY(config_int(config, "bos_token_id", 0, INT32_MAX - 1, false, &c->bos, place));
    TRY(config_int(config, "pad_token_id", -1, INT32_MAX - 1, false, &c->pad, place));
    read_ids(json_object_get(config, "eos_token_id"), c->eos, &c->n_eos, (int)COUNT_OF(c->eos));
    return OK;
}

int config_rope(ModelConfig *c, const json_t *config, const char *place)
{
    c->rope_theta = 10000;
    TRY(config_float(config, "rope_theta", 1, 1e12, false, &c->rope_theta, place));
    const json_t *scaling = json_object_get(config, "rope_parameters"); // transformers 5; holds the base too
    if (!json_is_object(scaling)) scaling = json_object_get(config, "rope_scaling");
    if (!json_is_object(scaling)) return OK;
    TRY(config_float(scaling, "rope_theta", 1, 1e12, false, &c->rope_theta, place));
    const char *kind = json_string_value(json_object_get(scaling, "rope_type"));
    if (!kind) kind = json_string_value(json_object_get(scaling, "type"));
    if (!kind || streq(kind, "default")) return OK;
    if (streq(kind, "linear")) {
        c->rope_kind = ROPE_LINEAR;
        return config_float(scaling, "factor", 1e-3, 1e6, true, &c->rope_factor, place);
    }
    if (!streq(kind, "llama3"))
        return fail(E_INPUT, place, "supported: default, linear, llama3", "rotary scaling of type \"%s\"", kind);
    c->rope_kind = ROPE_LLAMA3;
    TRY(config_float(scaling, "factor", 1e-3, 1e6, true, &c->rope_factor, place));
    TRY(config_float(scaling, "low_freq_factor", 1e-3, 1e6, true, &c->rope_low_freq, place));
    TRY(config_float(scaling, "high_freq_factor", 1e-3, 1e6, true, &c->rope_high_freq, place));
    if (c->rope_high_freq == c->rope_low_freq)
        return fail(E_INPUT, place, NULL, "high_freq_factor equals low_freq_factor (%g)", c->rope_low_freq);
    c->rope_original_positions = c->max_positions;
    return config_int(scaling, "original_max_position_embeddings", 1, 1 << 30, false, &c->rope_original_positions,
                      place);
}

// ---- GGUF keys -> config.json ---------------------------------------------------------------------------------------
static json_t *gguf_value(const Weights *w, const char *key)
{
    char *text = weights_meta_json(w, key);
    json_t *v = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    free(text);
    return v;
}

// config.json key <- ARCH.key
static const char *const gguf_fields[][2] = {
    {"hidden_size", "embedding_length"},
    {"num_hidden_layers", "block_count"},
    {"intermediate_size", "feed_forward_length"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"max_position_embeddings", "context_length"},
    {"rope_theta", "rope.freq_base"},
    {"vocab_size", "vocab_size"},
};

// Llama 3's scaling is stored as the divisors of the inverse frequencies (rope_freqs.weight), not as its parameters. The published
// parameters are recovered by matching: a file that matches none is refused rather than read wrongly.
static int gguf_llama3_scaling(json_t *config, const Weights *w, const char *path)
{
    if (weights_find(w, "rope_freqs.weight") < 0) return OK;
    for (double factor = 8; factor <= 32; factor *= 4) {
        json_t *s = json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", factor, "low_freq_factor",
                              1.0, "high_freq_factor", 4.0, "original_max_position_embeddings", 8192);
        int i = weights_find(w, "rope_freqs.weight");
        int64_t n = weights_info(w, i)->shape[0];
        float last = 0;
        int status = n > 0 ? weights_read((Weights *)w, i, n - 1, 1, DT_F32, &last) : E_INPUT;
        if (status == OK && fabs(last - factor) < 1e-3) {
            json_object_set_new(config, "rope_scaling", s);
            return OK;
        }
        json_decref(s);
    }
    return fail(E_INPUT, path, "convert the Hugging Face directory instead",
                "rope_freqs.weight follows no known Llama 3 scaling");
}

static json_t *gguf_config(const char *path, const Weights *w)
{
    json_t *arch = gguf_value(w, "general.architecture"), *config = json_object();
    const char *name = json_string_value(arch);
    if (!name) {
        fail(E_INPUT, path, NULL, "general.architecture is missing");
        goto failed;
    }
    json_object_set(config, "model_type", arch);
    for (size_t i = 0; i < COUNT_OF(gguf_fields); i++) {
        json_t *v = gguf_value(w, tmpf("%s.%s", name, gguf_fields[i][1]));
        if (v) json_object_set_new(config, gguf_fields[i][0], v);
    }
    int embed = weights_find(w, "model.embed_tokens.weight");
    if (embed >= 0) json_object_set_new(config, "vocab_size", json_integer(weights_info(w, embed)->shape[0]));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(weights_find(w, "lm_head.weight") < 0));
    json_object_set_new(config, "attention_bias",
                        json_boolean(weights_find(w, "model.layers.0.self_attn.q_proj.bias") >= 0));
    json_object_set_new(config, "mlp_bias", json_boolean(weights_find(w, "model.layers.0.mlp.gate_proj.bias") >= 0));
    json_object_set_new(config, "hidden_act", json_string("silu"));
    static const char *const ids[][2] = {{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                         {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                         {"pad_token_id", "tokenizer.ggml.padding_token_id"}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        json_t *v = gguf_value(w, ids[i][1]);
        if (v) json_object_set_new(config, ids[i][0], v);
    }
    for (size_t i = 0; i < COUNT_OF(families); i++)
        if (streq(families[i]->model_type, name))
            json_object_set_new(config, "architectures", json_pack("[s]", families[i]->architecture));
    if (gguf_llama3_scaling(config, w, path) < 0) goto failed;
    json_decref(arch);
    return config;
failed:
    json_decref(arch);
    json_decref(config);
    return NULL;
}

static bool is_gguf(const Weights *w)
{
    return w && weights_is_gguf(w);
}

json_t *model_config_json(const char *path, const Weights *w)
{
    if (is_gguf(w)) return gguf_config(path, w);
    const char *file = tmpf("%s/config.json", path);
    char *text;
    size_t bytes;
    if (file_read(file, 1 << 22, &text, &bytes) < 0) return NULL;
    json_error_t e;
    json_t *config = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &e);
    free(text);
    if (!json_is_object(config)) {
        fail(E_INPUT, tmpf("%s:%d", file, e.line), NULL, "not a JSON object: %s", e.text);
        json_decref(config);
        return NULL;
    }
    return config;
}

static const Family *family_find(const json_t *config)
{
    const char *arch = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const char *type = json_string_value(json_object_get(config, "model_type"));
    for (size_t i = 0; i < COUNT_OF(families); i++)
        if (arch ? streq(families[i]->architecture, arch) : type && streq(families[i]->model_type, type))
            return families[i];
    return NULL;
}

// generation_config.json may name more end-of-text tokens than config.json (Llama 3's <|eot_id|>).
static void generation_ids(ModelConfig *c, const char *path)
{
    char *text;
    size_t bytes;
    const char *file = tmpf("%s/generation_config.json", path);
    if (!path_exists(file) || file_read(file, 1 << 20, &text, &bytes) < 0) return;
    json_t *g = json_loadb(text, bytes, 0, NULL);
    if (json_object_get(g, "eos_token_id"))
        read_ids(json_object_get(g, "eos_token_id"), c->eos, &c->n_eos, (int)COUNT_OF(c->eos));
    json_decref(g);
    free(text);
}

int model_config_read(ModelConfig *out, const char *path, const Weights *w)
{
    memset(out, 0, sizeof *out);
    json_t *config = model_config_json(path, w);
    if (!config) return error_last()->code ? error_last()->code : fail(E_INPUT, path, NULL, "no configuration");
    const char *place = is_gguf(w) ? path : tmpf("%s/config.json", path);
    const Family *f = family_find(config);
    int status;
    if (!f) {
        const char *arch = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
        if (!arch) arch = json_string_value(json_object_get(config, "model_type"));
        status =
            fail(E_INPUT, place, "supported: LlamaForCausalLM", "unknown architecture \"%s\"", arch ? arch : "(none)");
    } else {
        snprintf(out->family, sizeof out->family, "%s", f->name);
        status = f->configure(out, config, place);
        if (status == OK && !is_gguf(w)) generation_ids(out, path);
    }
    json_decref(config);
    return status;
}
