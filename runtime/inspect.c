// inspect.c: `attune inspect PATH`. A table of kinds says how each is recognised and described; a description
// is a JSON object, which --json prints as it is and facts.c for people. Nothing is loaded: tensors are
// listed, and read only to verify checksums.
#include "config/recipe.h"
#include "data/describe.h"
#include "facts.h"
#include "io/checkpoint.h"
#include "model/model.h"
#include "runtime.h"
#include "tensor_table.h"
#include "text/template.h"
#include "text/tokenizer.h"
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// ---- facts ------------------------------------------------------------------------------------------------
static void set_string(json_t *facts, const char *key, const char *value)
{
    if (value && *value) json_object_set_new(facts, key, json_string(value));
}

static void set_integer(json_t *facts, const char *key, uint64_t value)
{
    json_object_set_new(facts, key, json_integer((json_int_t)value));
}

// For a part that may be missing or broken without the whole being so: what is wrong becomes a fact.
static void set_fault(json_t *facts, const char *key, const char *prefix)
{
    set_string(facts, key, tmpf("%s%s", prefix, error_last()->what));
    error_clear();
}

static void set_tensors(json_t *facts, const TensorTable *t)
{
    set_integer(facts, "parameters", tensor_table_elements(t));
    set_integer(facts, "weight_bytes", tensor_table_bytes(t));
    json_object_set_new(facts, "types", tensor_table_types(t));
    json_object_set_new(facts, "tensors", tensor_table_json(t));
}

static void set_weights(json_t *facts, const Weights *w)
{
    TensorTable *t = tensor_table_open();
    for (int i = 0; i < weights_count(w); i++) {
        const TensorInfo *info = weights_info(w, i);
        tensor_table_add(t, info->name, info->stored, info->shape, info->ndim, info->bytes);
    }
    set_tensors(facts, t);
    tensor_table_free(t);
}

// ---- models -----------------------------------------------------------------------------------------------
static bool has(const char *dir, const char *name)
{
    return path_exists(tmpf("%s/%s", dir, name));
}

static bool ends_in(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && streq(path + n - m, suffix);
}

static bool is_model_dir(const char *path)
{
    return path_is_dir(path) &&
           (has(path, "config.json") || has(path, "model.safetensors") || has(path, "model.safetensors.index.json"));
}

static bool begins_with(const char *path, const char *magic, size_t bytes)
{
    char head[16] = {0};
    FILE *f = path_is_dir(path) ? NULL : fopen(path, "rb");
    bool same = f && bytes <= sizeof head && fread(head, 1, bytes, f) == bytes && !memcmp(head, magic, bytes);
    if (f) fclose(f);
    return same;
}

static bool is_gguf(const char *path)
{
    return begins_with(path, "GGUF", 4);
}
static bool is_safetensors(const char *path)
{
    return !path_is_dir(path) && ends_in(path, ".safetensors");
}

static void set_config(json_t *facts, const char *path, const Weights *w)
{
    static const char *const highlights[] = {
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "dtype",
    };
    ModelConfig ours;
    if (model_config_read(&ours, path, w) < 0)
        set_fault(facts, "attune", "cannot train it: ");
    else
        set_string(facts, "attune", tmpf("can train it (family %s)", ours.family));
    json_t *config = model_config_json(path, w), *shown = json_object();
    error_clear();
    for (size_t i = 0; config && i < COUNT_OF(highlights); i++) {
        json_t *v = json_object_get(config, highlights[i]);
        if (v && !json_is_null(v)) json_object_set(shown, highlights[i], v);
    }
    if (json_object_size(shown)) json_object_set(facts, "config", shown);
    json_decref(shown);
    json_decref(config);
}

static void set_tokenizer(json_t *facts, const char *path)
{
    Tokenizer *t = NULL;
    if (tokenizer_open(&t, path) < 0) {
        set_fault(facts, "tokenizer", "none: ");
        return;
    }
    const char *eos = tokenizer_eos(t) < 0 ? NULL : tokenizer_token(t, tokenizer_eos(t));
    set_string(facts, "tokenizer", tmpf("%d ids, eos %s", tokenizer_vocab_size(t), eos ? eos : "none"));
    tokenizer_free(t);
}

static void set_template(json_t *facts, const char *path)
{
    char *source = NULL, *place = NULL;
    if (template_find(path, &source, &place) < 0)
        set_fault(facts, "chat_template", "");
    else
        set_string(facts, "chat_template", source ? tmpf("%zu bytes, %s", strlen(source), place) : "none");
    free(source);
    free(place);
}

static int describe_model(json_t *facts, const char *path)
{
    Weights *w;
    TRY(weights_open(&w, path));
    set_string(facts, "container", weights_is_gguf(w) ? "GGUF" : "safetensors");
    set_config(facts, path, w);
    set_tokenizer(facts, path);
    set_template(facts, path);
    set_weights(facts, w);
    weights_close(w);
    return OK;
}

static int describe_safetensors(json_t *facts, const char *path)
{
    Weights *w;
    TRY(weights_open(&w, path));
    set_weights(facts, w);
    weights_close(w);
    return OK;
}

// ---- adapters ---------------------------------------------------------------------------------------------
static bool is_adapter(const char *path)
{
    return path_is_dir(path) && has(path, "adapter_config.json");
}

static void set_peft(json_t *facts, const PeftConfig *c)
{
    json_t *targets = json_array();
    for (char **t = c->targets; t && *t; t++) json_array_append_new(targets, json_string(*t));
    set_string(facts, "base_model", c->base_model);
    set_string(facts, "variant", c->use_dora ? "dora" : c->use_rslora ? "rslora" : "lora");
    set_integer(facts, "rank", (uint64_t)c->rank);
    json_object_set_new(facts, "alpha", json_real(c->alpha));
    json_object_set_new(facts, "scale", json_real(c->alpha / (c->use_rslora ? sqrt(c->rank) : c->rank)));
    json_object_set_new(facts, "dropout", json_real(c->dropout));
    if (json_array_size(targets)) json_object_set(facts, "targets", targets);
    set_string(facts, "targets_regex", c->targets_regex);
    json_decref(targets);
}

static int describe_adapter(json_t *facts, const char *path)
{
    PeftConfig c;
    TRY(peft_config_read(&c, path));
    set_peft(facts, &c);
    peft_config_free(&c);
    return describe_safetensors(facts, tmpf("%s/adapter_model.safetensors", path));
}

// ---- checkpoints ------------------------------------------------------------------------------------------
static bool is_checkpoint(const char *path)
{
    return path_is_dir(path) && has(path, "state.h5");
}
static bool is_state_file(const char *path)
{
    return begins_with(path, "\x89HDF\r\n\x1a\n", 8);
}

static int add_tensor(void *ctx, const CkptTensor *t)
{
    uint64_t bytes = (uint64_t)t->shape[0] * (uint64_t)t->shape[1] * dtype_size(t->t);
    tensor_table_add(ctx, t->name, dtype_name(t->t), t->shape, t->shape[1] == 1 ? 1 : 2, bytes);
    return OK;
}

// The parts of the meta JSON that say something at a glance; the recipe it holds is a page of its own
static void set_meta(json_t *facts, const char *json)
{
    static const char *const shown[] = {"method", "objective", "base", "total_steps", "seed"};
    json_t *meta = json_loads(json, 0, NULL);
    for (size_t i = 0; i < COUNT_OF(shown); i++) {
        json_t *v = json_object_get(meta, shown[i]);
        if (v) json_object_set(facts, shown[i], v);
    }
    json_object_update_missing(facts, json_object_get(meta, "provenance"));
    json_decref(meta);
}

static int describe_meta(json_t *facts, const char *dir)
{
    CkptReader *reader;
    CkptMeta meta = {0};
    TRY(checkpoint_open(&reader, dir));
    int status = checkpoint_read_meta(reader, &meta);
    if (status == OK) {
        json_object_set_new(facts, "step", json_integer(meta.step));
        set_meta(facts, meta.json);
    }
    checkpoint_meta_free(&meta);
    checkpoint_close(reader);
    return status;
}

static int describe_checkpoint(json_t *facts, const char *path)
{
    TRY(checkpoint_verify(path));
    set_string(facts, "verified", "every checksum matches");
    TRY(describe_meta(facts, path));
    TensorTable *t = tensor_table_open();
    int status = checkpoint_list(path, add_tensor, t);
    if (status == OK) set_tensors(facts, t);
    tensor_table_free(t);
    return status;
}

static int describe_state_file(json_t *facts, const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? xstrndup(path, (size_t)(slash - path)) : xstrdup(".");
    int status = is_checkpoint(dir) ? describe_checkpoint(facts, dir)
                                    : fail(E_INPUT, path, "a checkpoint is a directory with state.h5 and MANIFEST",
                                           "an HDF5 file that is not a checkpoint's state.h5");
    free(dir);
    return status;
}

// ---- run directories --------------------------------------------------------------------------------------
static bool is_run(const char *path)
{
    return path_is_dir(path) && (has(path, "status.json") || has(path, "metrics.jsonl") || has(path, "checkpoints"));
}

static void set_status(json_t *facts, const char *path)
{
    static const char *const shown[] = {"state", "step", "code", "reason"};
    json_t *status = json_load_file(tmpf("%s/status.json", path), 0, NULL);
    for (size_t i = 0; i < COUNT_OF(shown); i++) {
        json_t *v = json_object_get(status, shown[i]);
        if (v && !(json_is_string(v) && !json_string_length(v))) json_object_set(facts, shown[i], v);
    }
    json_decref(status);
}

static void set_recipe(json_t *facts, const char *path)
{
    const char *file = tmpf("%s/recipe.yaml", path);
    Recipe r = {0};
    if (!path_exists(file)) return;
    if (recipe_load(&r, file, NULL, 0) < 0) {
        set_fault(facts, "recipe", "cannot be read: ");
        return;
    }
    set_string(facts, "model", r.model);
    set_string(facts, "method", r.method);
    set_string(facts, "objective", r.objective);
    set_string(facts, "data", r.data.train);
    recipe_free(&r);
}

// The last whole line of metrics.jsonl that has a loss
static void set_last_metrics(json_t *facts, const char *path)
{
    FILE *f = fopen(tmpf("%s/metrics.jsonl", path), "r");
    char *text = NULL;
    size_t cap = 0;
    json_t *last = NULL;
    for (ssize_t n; f && (n = getline(&text, &cap, f)) > 0;) {
        json_t *line = json_loadb(text, (size_t)n, 0, NULL);
        if (!json_object_get(line, "loss")) {
            json_decref(line);
            continue;
        }
        json_decref(last);
        last = line;
    }
    if (last) json_object_set(facts, "last_metrics", last);
    json_decref(last);
    free(text);
    if (f) fclose(f);
}

static int is_step_dir(const struct dirent *e)
{
    return !strncmp(e->d_name, "step-", 5);
}

static uint64_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

// One row per checkpoint. The first damaged one is the status, but all are looked at.
static int set_checkpoints(json_t *facts, const char *path)
{
    struct dirent **found = NULL;
    json_t *rows = json_array();
    ErrorRecord first = {0};
    int n = scandir(tmpf("%s/checkpoints", path), &found, is_step_dir, alphasort);
    for (int i = 0; i < n; i++) {
        char *dir = xasprintf("%s/checkpoints/%s", path, found[i]->d_name);
        int status = checkpoint_verify(dir);
        json_array_append_new(rows, json_pack("{s:s, s:I, s:s}", "name", found[i]->d_name, "bytes",
                                              (json_int_t)file_bytes(tmpf("%s/state.h5", dir)), "checksums",
                                              status < 0 ? error_last()->what : "match"));
        if (status < 0 && !first.code) first = *error_last();
        error_clear();
        free(dir);
        free(found[i]);
    }
    free(found);
    if (json_array_size(rows)) json_object_set(facts, "checkpoints", rows);
    json_decref(rows);
    if (first.code) error_adopt(&first);
    return first.code;
}

static int describe_run(json_t *facts, const char *path)
{
    static const char *const results[] = {"adapter", "model", "eval.json", "report.html"};
    json_t *there = json_array();
    set_status(facts, path);
    set_recipe(facts, path);
    set_last_metrics(facts, path);
    for (size_t i = 0; i < COUNT_OF(results); i++)
        if (has(path, results[i])) json_array_append_new(there, json_string(results[i]));
    if (json_array_size(there)) json_object_set(facts, "results", there);
    json_decref(there);
    return set_checkpoints(facts, path);
}

// ---- datasets ---------------------------------------------------------------------------------------------
static bool is_dataset(const char *path)
{
    return !path_is_dir(path) && (ends_in(path, ".jsonl") || begins_with(path, "{", 1));
}

static int describe_dataset(json_t *facts, const char *path)
{
    return dataset_describe(path, facts);
}

// ---- the verb ---------------------------------------------------------------------------------------------
static const struct {
    const char *kind;
    bool (*is)(const char *path);
    int (*describe)(json_t *facts, const char *path);
} kinds[] = {
    // in the order in which they are tried
    {"adapter", is_adapter, describe_adapter},
    {"model", is_model_dir, describe_model},
    {"checkpoint", is_checkpoint, describe_checkpoint},
    {"run", is_run, describe_run},
    {"model", is_gguf, describe_model},
    {"tensors", is_safetensors, describe_safetensors},
    {"checkpoint", is_state_file, describe_state_file},
    {"dataset", is_dataset, describe_dataset},
};

static int unknown(const char *path)
{
    if (!path_exists(path)) return fail(E_INPUT, path, NULL, "no such file or directory");
    const char *hint =
        ends_in(path, ".yaml") || ends_in(path, ".yml")
            ? "for a recipe: attune plan RECIPE, or attune data RECIPE"
            : "known: a model (Hugging Face directory, .gguf), a PEFT adapter directory, a .safetensors file, a "
              "checkpoint or run directory, a .jsonl dataset";
    return fail(E_INPUT, path, hint, "not something that attune knows");
}

int run_inspect(const char *path, bool json)
{
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        if (!kinds[i].is(path)) continue;
        json_t *facts = json_pack("{s:s, s:s}", "kind", kinds[i].kind, "path", path);
        if (!facts) return fail(E_INPUT, NULL, NULL, "the path is not UTF-8");
        int status = kinds[i].describe(facts, path);
        bool complete =
            status == OK || json_object_get(facts, "checkpoints"); // a damaged checkpoint does not hide the run
        if (complete && json)
            json_dumpf(facts, stdout, JSON_INDENT(1));
        else if (complete)
            facts_print(facts, stdout);
        if (complete && json) printf("\n");
        json_decref(facts);
        return status;
    }
    return unknown(path);
}
