// tokenizer_gguf: a Tokenizer from the keys tokenizer.ggml.* of a GGUF file. A GGUF file names its pre-tokenizer only; the
// table below says what each name stands for in the Hugging Face tokenizer it was converted from (the names are those of
// llama.cpp's converter).
#include "text/json_scan.h"
#include "text/tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

#define BYTE_LEVEL(regex)                                                                                              \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":" #regex "}"
#define SPLIT(regex)                                                                                                   \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define SEQUENCE(list) "{\"type\":\"Sequence\",\"pretokenizers\":[" list "]}"
#define DIGITS         "{\"type\":\"Digits\",\"individual_digits\":true}"
#define CL100K(digits)                                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits                             \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define NFC "{\"type\":\"NFC\"}"

typedef struct GgufPre {
    const char *name, *pre_tokenizer, *normalizer; // JSON as in tokenizer.json
    bool ignore_merges, add_bos;                   // add_bos: what holds when the file does not say
} GgufPre;
static const GgufPre gguf_pres[] = {
    {"gpt-2", BYTE_LEVEL(true), NULL, false, false},
    {"default", BYTE_LEVEL(true), NULL, false, false},
    {"smollm", SEQUENCE(DIGITS "," BYTE_LEVEL(true)), NULL, false, false},
    {"starcoder", SEQUENCE(DIGITS "," BYTE_LEVEL(true)), NULL, false, false},
    {"refact", SEQUENCE(DIGITS "," BYTE_LEVEL(true)), NULL, false, false},
    {"command-r", SEQUENCE(DIGITS "," BYTE_LEVEL(true)), NFC, false, false},
    {"llama-bpe", SEQUENCE(SPLIT(CL100K("{1,3}")) "," BYTE_LEVEL(false)), NULL, true, true},
    {"llama3", SEQUENCE(SPLIT(CL100K("{1,3}")) "," BYTE_LEVEL(false)), NULL, true, true},
    {"llama-v3", SEQUENCE(SPLIT(CL100K("{1,3}")) "," BYTE_LEVEL(false)), NULL, true, true},
    {"dbrx", SEQUENCE(SPLIT(CL100K("{1,3}")) "," BYTE_LEVEL(false)), NULL, false, false},
    {"smaug-bpe", SEQUENCE(SPLIT(CL100K("{1,3}")) "," BYTE_LEVEL(false)), NULL, true, true},
    {"qwen2", SEQUENCE(SPLIT(CL100K("")) "," BYTE_LEVEL(false)), NFC, false, false},
    {"deepseek-r1-qwen", SEQUENCE(SPLIT(CL100K("")) "," BYTE_LEVEL(false)), NFC, false, false},
    {"stablelm2", SEQUENCE(SPLIT(CL100K("")) "," BYTE_LEVEL(false)), NFC, false, false},
    {"olmo", BYTE_LEVEL(true), NFC, false, false},
};

static const GgufPre *find_pre(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(gguf_pres); i++)
        if (streq(gguf_pres[i].name, name)) return &gguf_pres[i];
    return NULL;
}

// ---- reading keys ---------------------------------------------------------------------------------------------------
static json_t *read_key(const Weights *gguf, const char *name) // NULL when absent; the caller decrefs
{
    char key[96];
    snprintf(key, sizeof key, "tokenizer.ggml.%s", name);
    char *text = weights_meta_json(gguf, key);
    json_t *value = text ? json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
    free(text);
    return value;
}

static int read_id(const Weights *gguf, const char *name)
{
    json_t *v = read_key(gguf, name);
    int id = json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < TOKEN_ID_MAX
                 ? (int)json_integer_value(v)
                 : -1;
    json_decref(v);
    return id;
}

static bool read_flag(const Weights *gguf, const char *name, bool missing)
{
    json_t *v = read_key(gguf, name);
    bool flag = json_is_boolean(v) ? json_is_true(v) : missing;
    json_decref(v);
    return flag;
}

// Calls take(ctx, i, text, bytes) for every string of the list under a key; *n: how many there are.
typedef struct Strings {
    Tokenizer *t;
    json_t *types;
    const char *place;
} Strings;
typedef int TakeString(Strings *ctx, int i, const char *text, size_t bytes);

static int each_string(Strings *ctx, const Weights *gguf, const char *key, TakeString *take, int *n)
{
    char *json = weights_meta_json(gguf, key);
    JsonScan s = {.p = json, .end = json ? json + strlen(json) : NULL};
    bool first = true;
    int status = OK;
    *n = 0;
    if (!json) return OK;
    if (!scan_take(&s, '[')) s.bad = true;
    while (scan_more(&s, ']', &first)) {
        const char *text;
        size_t bytes;
        if (scan_string(&s, &text, &bytes)) TRY_DONE(take(ctx, (*n)++, text, bytes));
    }
    if (s.bad) status = fail(E_INPUT, ctx->place, NULL, "%s is no list of strings", key);
done:
    json_scan_free(&s);
    free(json);
    return status;
}

static int take_token(Strings *ctx, int i, const char *text, size_t bytes)
{
    TRY(vocab_put(&ctx->t->bpe.vocab, i, text, bytes, true, ctx->place));
    json_int_t type = json_integer_value(json_array_get(ctx->types, (size_t)i));
    if (bytes == 0 || (type != GGUF_TOKEN_CONTROL && type != GGUF_TOKEN_USER_DEFINED)) return OK;
    AddedToken a = {.id = i, .special = type == GGUF_TOKEN_CONTROL, .normalized = type == GGUF_TOKEN_USER_DEFINED};
    added_put(ctx->t, &a);
    return OK;
}

static int take_merge(Strings *ctx, int i, const char *text, size_t bytes)
{
    const char *space = bytes ? memchr(text + 1, ' ', bytes - 1) : NULL, *right = space ? space + 1 : NULL;
    if (!space) return fail(E_INPUT, ctx->place, NULL, "merge %d is no pair of tokens", i);
    return bpe_put_merge(&ctx->t->bpe, text, (size_t)(space - text), right, (size_t)(text + bytes - right), ctx->place);
}

static int read_lists(Tokenizer *t, const Weights *gguf, const char *place)
{
    Strings ctx = {t, read_key(gguf, "token_type"), place};
    int tokens = 0, merges = 0, status = OK;
    TRY_DONE(each_string(&ctx, gguf, "tokenizer.ggml.tokens", take_token, &tokens));
    TRY_DONE(each_string(&ctx, gguf, "tokenizer.ggml.merges", take_merge, &merges));
    if (tokens == 0) status = fail(E_INPUT, place, NULL, "no tokenizer.ggml.tokens: this file carries no tokenizer");
done:
    json_decref(ctx.types);
    return status;
}

static int read_steps(Steps *out, const char *section, const char *text, const char *place)
{
    if (!text) return OK;
    json_t *spec = json_loads(text, 0, NULL);
    ASSERT(spec); // a constant of ours
    int status = steps_from_json(out, section, spec, place);
    json_decref(spec);
    return status;
}

// ---- the file -------------------------------------------------------------------------------------------------------
static int read_kind(const Weights *gguf, const char *place, const GgufPre **pre)
{
    json_t *model = read_key(gguf, "model"), *name = read_key(gguf, "pre");
    const char *kind = json_string_value(model), *pre_name = json_string_value(name);
    const char *hint = "use the Hugging Face directory of the model (config.json, *.safetensors, tokenizer.json)";
    int status = OK;
    if (!kind || !streq(kind, "gpt2"))
        status = fail(E_INPUT, place, hint, "tokenizer.ggml.model \"%s\" is not supported", kind ? kind : "(none)");
    else if (!(*pre = find_pre(pre_name ? pre_name : "default")))
        status = fail(E_INPUT, place, hint, "tokenizer.ggml.pre \"%s\" is not supported", pre_name);
    json_decref(model);
    json_decref(name);
    return status;
}

int gguf_steps_json(const Weights *gguf, const char *place, json_t **normalizer, json_t **pre_tokenizer,
                    bool *ignore_merges)
{
    const GgufPre *pre = NULL;
    TRY(read_kind(gguf, place, &pre));
    *normalizer = pre->normalizer ? json_loads(pre->normalizer, 0, NULL) : json_null();
    *pre_tokenizer = json_loads(pre->pre_tokenizer, 0, NULL);
    *ignore_merges = pre->ignore_merges;
    return OK;
}

static void put_special(int32_t **list, int *n, int id)
{
    *list = xmalloc(sizeof **list);
    (*list)[(*n)++] = id;
}

static int read_gguf(Tokenizer *t, const Weights *gguf, const char *place)
{
    const GgufPre *pre = NULL;
    TRY(read_kind(gguf, place, &pre));
    TRY(read_lists(t, gguf, place));
    TRY(read_steps(&t->normalizer, "normalizer", pre->normalizer, place));
    TRY(read_steps(&t->pre, "pre_tokenizer", pre->pre_tokenizer, place));
    TRY(read_steps(&t->decoder, "decoder", "{\"type\":\"ByteLevel\"}", place));
    t->has_decoder = true;
    t->bpe.ignore_merges = pre->ignore_merges;
    t->bos = read_id(gguf, "bos_token_id");
    t->eos = read_id(gguf, "eos_token_id");
    t->pad = read_id(gguf, "padding_token_id");
    int *ids[] = {&t->bos, &t->eos, &t->pad};
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        if (*ids[i] >= t->bpe.vocab.n)
            return fail(E_INPUT, place, NULL, "special token id %d is outside the vocabulary", *ids[i]);
    if (t->bos >= 0 && read_flag(gguf, "add_bos_token", pre->add_bos)) put_special(&t->prefix, &t->n_prefix, t->bos);
    if (t->eos >= 0 && read_flag(gguf, "add_eos_token", false)) put_special(&t->suffix, &t->n_suffix, t->eos);
    return tokenizer_finish(t, place);
}

int tokenizer_open_gguf(Tokenizer **out, const Weights *gguf, const char *place)
{
    Tokenizer *t = tokenizer_new();
    int status = read_gguf(t, gguf, place);
    *out = status < 0 ? NULL : t;
    if (status < 0) tokenizer_free(t);
    return status;
}
