// peft: reads and writes adapter_config.json, and applies its patterns. Keys and their meaning: PEFT's LoraConfig. The adapter's
// numbers (adapter_model.safetensors) are read and written with weights.h.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/peft.h"
#include <jansson.h>
#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_MAX_BYTES = 1 << 20, RANK_MAX = 1 << 16, LIST_MAX = 4096, STRING_MAX = 1024 };

// ---- what a key may be ----------------------------------------------------------------------------------------------
// Keys that this file reads, and keys that say nothing about what a saved adapter computes.
static const char *const known_keys[] = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out",
    "base_model_name_or_path", "task_type", "target_modules", "rank_pattern", "alpha_pattern", "modules_to_save",
    "bias", "init_lora_weights",
    // no bearing on the result
    "auto_mapping", "inference_mode", "peft_version", "revision", "megatron_core", "megatron_config", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "layers_pattern"};

// Features that change what an adapter computes: accepted only when off (null, false or empty).
static const char *const unsupported_keys[] = {"layers_to_transform",
                                               "exclude_modules",
                                               "layer_replication",
                                               "target_parameters",
                                               "trainable_token_indices",
                                               "lora_bias",
                                               "ensure_weight_tying",
                                               "alora_invocation_tokens",
                                               "use_qalora",
                                               "use_bdlora",
                                               "arrow_config",
                                               "kasa_config",
                                               "velora_config",
                                               "monteclora_config"};

// Initialisations that leave the base weights alone; of the others (pissa, olora, corda, loftq, ...) a saved adapter belongs to a
// base that PEFT changes while it loads.
static const char *const plain_inits[] = {"gaussian", "eva", "orthogonal", "mica"};

static bool listed(const char *const *list, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (streq(list[i], key)) return true;
    return false;
}

static bool is_off(const json_t *v)
{
    return json_is_null(v) || json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0);
}

static int bad_key(const char *place, const char *key, const char *what)
{
    return fail(E_INPUT, place, NULL, "%s %s", key, what);
}

static int check_init(const json_t *v, const char *place)
{
    const char *name = json_string_value(v);
    if (!v || json_is_boolean(v) || json_is_null(v) || (name && listed(plain_inits, COUNT_OF(plain_inits), name)))
        return OK;
    return fail(E_INPUT, place,
                "convert it with PEFT first: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
                "init_lora_weights \"%.64s\": the adapter belongs to base weights that this initialisation changed",
                name ? name : "?");
}

static int check_keys(json_t *config, const char *place)
{
    const char *key, *type = json_string_value(json_object_get(config, "peft_type"));
    json_t *value;
    if (!type) return bad_key(place, "peft_type", "is missing");
    if (!streq(type, "LORA")) return fail(E_INPUT, place, "LORA adapters are read", "peft_type is \"%.64s\"", type);
    const char *bias = json_string_value(json_object_get(config, "bias"));
    if (bias && !streq(bias, "none"))
        return fail(E_INPUT, place, NULL, "bias is \"%.32s\": adapters with trained biases are not supported", bias);
    TRY(check_init(json_object_get(config, "init_lora_weights"), place));
    json_object_foreach(config, key, value)
    {
        if (listed(known_keys, COUNT_OF(known_keys), key) || is_off(value)) continue;
        if (listed(unsupported_keys, COUNT_OF(unsupported_keys), key))
            return bad_key(place, key, "is set, and is not supported");
        log_warn("%s: %.64s is not known here and ignored", place, key);
    }
    return OK;
}

// ---- values ---------------------------------------------------------------------------------------------------------
static int read_number(const json_t *config, const char *key, double min, double max, double *out, const char *place)
{
    const json_t *v = json_object_get(config, key);
    if (!v || json_is_null(v)) return OK;
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(d >= min && d <= max)) return fail(E_INPUT, place, NULL, "%s is not a number from %g to %g", key, min, max);
    *out = d;
    return OK;
}

static int read_bool(const json_t *config, const char *key, bool *out, const char *place)
{
    const json_t *v = json_object_get(config, key);
    if (!v || json_is_null(v)) return OK;
    if (!json_is_boolean(v)) return bad_key(place, key, "is neither true nor false");
    *out = json_is_true(v);
    return OK;
}

static bool text_ok(const json_t *v)
{
    return json_is_string(v) && json_string_length(v) > 0 && json_string_length(v) <= STRING_MAX;
}

static int read_string(const json_t *config, const char *key, const char **out, const char *place)
{
    const json_t *v = json_object_get(config, key);
    if (!v || json_is_null(v)) return OK;
    if (!json_is_string(v)) return bad_key(place, key, "is not a string");
    *out = xstrdup(json_string_value(v));
    return OK;
}

// A list of names; one that is there twice counts once.
static int read_names(const json_t *list, const char *key, char ***out, const char *place)
{
    size_t n = json_array_size(list), unique = 0;
    if (!json_is_array(list) || n > LIST_MAX) return bad_key(place, key, "is not a list of names");
    char **names = *out = xcalloc(n + 1, sizeof *names);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!text_ok(v)) return bad_key(place, key, "holds something that is not a name");
        if (!listed((const char *const *)names, unique, json_string_value(v)))
            names[unique++] = xstrdup(json_string_value(v));
    }
    return OK;
}

static int read_targets(PeftConfig *c, const json_t *config, const char *place)
{
    const json_t *v = json_object_get(config, "target_modules");
    if (!v || json_is_null(v)) return bad_key(place, "target_modules", "is missing");
    if (json_is_string(v)) {
        if (!text_ok(v)) return bad_key(place, "target_modules", "is empty or too long");
        if (!streq(json_string_value(v), "all-linear")) {
            c->targets_regex = xstrdup(json_string_value(v));
            return OK;
        }
        c->targets = xcalloc(2, sizeof *c->targets);
        c->targets[0] = xstrdup("all-linear");
        return OK;
    }
    TRY(read_names(v, "target_modules", &c->targets, place));
    return c->targets[0] ? OK : bad_key(place, "target_modules", "is empty");
}

// ---- patterns -------------------------------------------------------------------------------------------------------
static pcre2_code *pattern_compile(const char *pattern)
{
    int error;
    PCRE2_SIZE at;
    char *whole = xasprintf("(.*\\.)?(%s)$", pattern);
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &error, &at, NULL);
    free(whole);
    return re;
}

static bool pattern_matches(const char *pattern, const char *module)
{
    pcre2_code *re = pattern_compile(pattern);
    if (!re) return false;
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(re, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_set_match_limit(limits, 100000); // a pattern that needs more tries is no pattern of module names
    int found = pcre2_match(re, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, match, limits);
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return found >= 0;
}

static int read_pattern_entry(PeftConfig *c, const char *key, const char *pattern, const json_t *value,
                              const char *place)
{
    bool is_rank = streq(key, "rank_pattern");
    double number = json_is_number(value) ? json_number_value(value) : NAN;
    bool ok = is_rank ? json_is_integer(value) && number >= 1 && number <= RANK_MAX : fabs(number) <= 1e6;
    if (!ok) return fail(E_INPUT, place, NULL, "%s: the value of \"%.128s\" is out of range", key, pattern);
    pcre2_code *re = *pattern && strlen(pattern) <= STRING_MAX ? pattern_compile(pattern) : NULL;
    if (!re) return fail(E_INPUT, place, NULL, "%s: \"%.128s\" is no module name or regular expression", key, pattern);
    pcre2_code_free(re);
    int i = c->n_pattern++;
    c->pattern[i] = xstrdup(pattern);
    c->pattern_rank[i] = is_rank ? (int)number : 0;
    c->pattern_alpha[i] = is_rank ? NAN : number;
    return OK;
}

static int read_patterns(PeftConfig *c, const json_t *config, const char *place)
{
    static const char *const keys[] = {"rank_pattern", "alpha_pattern"};
    json_t *table[2];
    size_t n = 0;
    for (int k = 0; k < 2; k++) {
        table[k] = json_object_get(config, keys[k]);
        if (table[k] && !json_is_null(table[k]) && !json_is_object(table[k]))
            return bad_key(place, keys[k], "is not an object");
        n += json_object_size(table[k]);
    }
    if (n > LIST_MAX) return bad_key(place, "rank_pattern", "and alpha_pattern have too many entries");
    c->pattern = xcalloc(n + 1, sizeof *c->pattern);
    c->pattern_rank = xcalloc(n + 1, sizeof *c->pattern_rank);
    c->pattern_alpha = xcalloc(n + 1, sizeof *c->pattern_alpha);
    for (int k = 0; k < 2; k++) {
        const char *pattern;
        json_t *value;
        json_object_foreach(table[k], pattern, value) TRY(read_pattern_entry(c, keys[k], pattern, value, place));
    }
    return OK;
}

void peft_module_rank(const PeftConfig *c, const char *module, int *rank, double *alpha)
{
    bool have_rank = false, have_alpha = false;
    *rank = c->rank;
    *alpha = c->alpha;
    for (int i = 0; i < c->n_pattern && !(have_rank && have_alpha); i++) {
        bool for_rank = c->pattern_rank[i] > 0 && !have_rank, for_alpha = !isnan(c->pattern_alpha[i]) && !have_alpha;
        if ((!for_rank && !for_alpha) || !pattern_matches(c->pattern[i], module)) continue;
        if (for_rank) *rank = c->pattern_rank[i];
        if (for_alpha) *alpha = c->pattern_alpha[i];
        have_rank |= for_rank;
        have_alpha |= for_alpha;
    }
}

// ---- reading --------------------------------------------------------------------------------------------------------
static int read_config(PeftConfig *c, json_t *config, const char *place)
{
    double rank = 8; // PEFT's defaults
    *c = (PeftConfig){.alpha = 8};
    if (!json_is_object(config)) return fail(E_INPUT, place, NULL, "not a JSON object");
    TRY(check_keys(config, place));
    TRY(read_number(config, "r", 1, RANK_MAX, &rank, place));
    if (rank != floor(rank)) return bad_key(place, "r", "is not a whole number");
    c->rank = (int)rank;
    TRY(read_number(config, "lora_alpha", -1e6, 1e6, &c->alpha, place));
    TRY(read_number(config, "lora_dropout", 0, 1, &c->dropout, place));
    TRY(read_bool(config, "use_rslora", &c->use_rslora, place));
    TRY(read_bool(config, "use_dora", &c->use_dora, place));
    TRY(read_bool(config, "fan_in_fan_out", &c->fan_in_fan_out, place));
    TRY(read_string(config, "base_model_name_or_path", &c->base_model, place));
    TRY(read_string(config, "task_type", &c->task_type, place));
    TRY(read_targets(c, config, place));
    const json_t *save = json_object_get(config, "modules_to_save");
    if (save && !json_is_null(save)) TRY(read_names(save, "modules_to_save", &c->modules_to_save, place));
    return read_patterns(c, config, place);
}

int peft_config_parse(PeftConfig *out, const char *json, size_t bytes, const char *place)
{
    json_error_t error;
    json_t *config = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!config) return fail(E_INPUT, tmpf("%s:%d", place, error.line), NULL, "no JSON: %s", error.text);
    int status = read_config(out, config, place);
    json_decref(config);
    if (status < 0) peft_config_free(out);
    return status;
}

int peft_config_read(PeftConfig *out, const char *dir)
{
    char *path = xasprintf("%s/adapter_config.json", dir), *text = NULL;
    size_t bytes = 0;
    int status =
        path_exists(path)
            ? file_read(path, CONFIG_MAX_BYTES, &text, &bytes)
            : fail(E_INPUT, dir, "a PEFT adapter is a directory with adapter_config.json and adapter_model.safetensors",
                   "no adapter_config.json in it");
    if (status == OK) status = peft_config_parse(out, text, bytes, path);
    free(text);
    free(path);
    return status;
}

static void free_names(char **names)
{
    for (char **s = names; s && *s; s++) free(*s);
    free(names);
}

void peft_config_free(PeftConfig *c)
{
    if (!c) return;
    free((char *)c->base_model);
    free((char *)c->task_type);
    free(c->targets_regex);
    free_names(c->targets);
    free_names(c->modules_to_save);
    for (int i = 0; i < c->n_pattern; i++) free(c->pattern[i]);
    free(c->pattern);
    free(c->pattern_rank);
    free(c->pattern_alpha);
    *c = (PeftConfig){0};
}

// ---- writing --------------------------------------------------------------------------------------------------------
static json_t *number(double v)
{
    return v == floor(v) && fabs(v) < 1e9 ? json_integer((json_int_t)v) : json_real(v);
}

static json_t *names_json(char *const *names)
{
    if (!names || !*names) return json_null();
    json_t *list = json_array();
    for (; *names; names++) json_array_append_new(list, json_string(*names));
    return list;
}

static json_t *patterns_json(const PeftConfig *c, bool of_rank)
{
    json_t *table = json_object();
    for (int i = 0; i < c->n_pattern; i++)
        if (of_rank ? c->pattern_rank[i] > 0 : !isnan(c->pattern_alpha[i]))
            json_object_set_new(table, c->pattern[i],
                                of_rank ? json_integer(c->pattern_rank[i]) : number(c->pattern_alpha[i]));
    return table;
}

static json_t *targets_json(const PeftConfig *c)
{
    if (c->targets_regex) return json_string(c->targets_regex);
    bool all = c->targets && c->targets[0] && !c->targets[1] && streq(c->targets[0], "all-linear");
    return all ? json_string("all-linear") : names_json(c->targets);
}

// The keys of PEFT 0.10: older readers refuse keys they do not know, newer ones have defaults for theirs.
static json_t *config_json(const PeftConfig *c)
{
    json_t *j = json_object();
    static const char *const off[] = {"auto_mapping",   "revision",          "layers_to_transform",
                                      "layers_pattern", "layer_replication", "megatron_config"};
    for (size_t i = 0; i < COUNT_OF(off); i++) json_object_set_new(j, off[i], json_null());
    json_object_set_new(j, "peft_type", json_string("LORA"));
    json_object_set_new(j, "task_type", json_string(c->task_type ? c->task_type : "CAUSAL_LM"));
    json_object_set_new(j, "base_model_name_or_path", c->base_model ? json_string(c->base_model) : json_null());
    json_object_set_new(j, "inference_mode", json_true());
    json_object_set_new(j, "r", json_integer(c->rank));
    json_object_set_new(j, "lora_alpha", number(c->alpha));
    json_object_set_new(j, "lora_dropout", json_real(c->dropout));
    json_object_set_new(j, "use_rslora", json_boolean(c->use_rslora));
    json_object_set_new(j, "use_dora", json_boolean(c->use_dora));
    json_object_set_new(j, "fan_in_fan_out", json_boolean(c->fan_in_fan_out));
    json_object_set_new(j, "bias", json_string("none"));
    json_object_set_new(j, "init_lora_weights", json_true());
    json_object_set_new(j, "target_modules", targets_json(c));
    json_object_set_new(j, "modules_to_save", names_json(c->modules_to_save));
    json_object_set_new(j, "rank_pattern", patterns_json(c, true));
    json_object_set_new(j, "alpha_pattern", patterns_json(c, false));
    json_object_set_new(j, "loftq_config", json_object());
    json_object_set_new(j, "megatron_core", json_string("megatron.core"));
    return j;
}

int peft_config_write(const PeftConfig *c, const char *dir)
{
    json_t *config = config_json(c);
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    char *path = xasprintf("%s/adapter_config.json", dir);
    int status =
        text ? file_write_atomic(path, text, strlen(text)) : fail(E_FAILED, path, NULL, "cannot be written as JSON");
    free(path);
    free(text);
    json_decref(config);
    return status;
}
