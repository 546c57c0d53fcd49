// tokenizer_export: the tokenizer of a GGUF file as the files that transformers loads: tokenizer.json, tokenizer_config.json (with the
// chat template) and generation_config.json.
#include "text/tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

static json_t *key(const Weights *gguf, const char *name)
{
    char *text = weights_meta_json(gguf, tmpf("tokenizer.%s", name));
    json_t *v = text ? json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
    free(text);
    return v;
}

static json_t *vocabulary(const json_t *tokens)
{
    json_t *vocab = json_object(), *token;
    size_t id;
    json_array_foreach(tokens, id, token)
        json_object_set_new(vocab, json_string_value(token), json_integer((json_int_t)id));
    return vocab;
}

static json_t *added_tokens(const json_t *tokens, const json_t *types)
{
    json_t *list = json_array(), *type;
    size_t id;
    json_array_foreach(types, id, type)
    {
        json_int_t kind = json_integer_value(type);
        if (kind != GGUF_TOKEN_CONTROL && kind != GGUF_TOKEN_USER_DEFINED) continue;
        json_array_append_new(list, json_pack("{s:I, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id, "content",
                                              json_array_get(tokens, id), "single_word", 0, "lstrip", 0, "rstrip", 0,
                                              "normalized", kind == GGUF_TOKEN_USER_DEFINED, "special",
                                              kind == GGUF_TOKEN_CONTROL));
    }
    return list;
}

// What is put around plain text: nothing, or the bos token.
static json_t *post_processor(const Weights *gguf, const json_t *tokens)
{
    json_t *add = key(gguf, "ggml.add_bos_token"), *id = key(gguf, "ggml.bos_token_id"), *p = NULL;
    json_t *bos = json_array_get(tokens, (size_t)json_integer_value(id));
    if (json_is_true(add) && json_is_string(bos))
        p = json_pack(
            "{s:s, s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:{s:{s:O, s:[O], s:[O]}}}",
            "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id", "A",
            "type_id", 0, "pair", "Sequence", "id", "A", "type_id", 0, "Sequence", "id", "B", "type_id", 1,
            "special_tokens", json_string_value(bos), "id", bos, "ids", id, "tokens", bos);
    json_decref(add);
    json_decref(id);
    return p ? p : json_null();
}

static int write_json(json_t *j, size_t flags, const char *path)
{
    char *text = json_dumps(j, flags);
    int status = file_write_atomic(path, text, strlen(text));
    free(text);
    json_decref(j);
    return status;
}

static int write_tokenizer(const Weights *gguf, const json_t *tokens, const char *dir, const char *place)
{
    json_t *types = key(gguf, "ggml.token_type"), *merges = key(gguf, "ggml.merges"), *normalizer, *pre;
    bool ignore_merges;
    int status = gguf_steps_json(gguf, place, &normalizer, &pre, &ignore_merges);
    if (status == OK) {
        json_t *byte_level = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1,
                                       "trim_offsets", 1, "use_regex", 1);
        json_t *model =
            json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:O}", "type", "BPE", "dropout", "unk_token",
                      "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                      "ignore_merges", ignore_merges, "vocab", vocabulary(tokens), "merges", merges);
        json_t *all =
            json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                      "added_tokens", added_tokens(tokens, types), "normalizer", normalizer, "pre_tokenizer", pre,
                      "post_processor", post_processor(gguf, tokens), "decoder", byte_level, "model", model);
        status = write_json(all, JSON_COMPACT, tmpf("%s/tokenizer.json", dir));
    }
    json_decref(types);
    json_decref(merges);
    return status;
}

static int write_configs(const Weights *gguf, const json_t *tokens, const char *dir)
{
    static const struct {
        const char *key, *token, *id;
    } specials[] = {{"ggml.bos_token_id", "bos_token", "bos_token_id"},
                    {"ggml.eos_token_id", "eos_token", "eos_token_id"},
                    {"ggml.padding_token_id", "pad_token", "pad_token_id"},
                    {"ggml.unknown_token_id", "unk_token", NULL}};
    json_t *config =
        json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0);
    json_t *generation = json_object(), *template = key(gguf, "chat_template");
    for (size_t i = 0; i < COUNT_OF(specials); i++) {
        json_t *id = key(gguf, specials[i].key), *token = json_array_get(tokens, (size_t)json_integer_value(id));
        if (json_is_integer(id) && token) {
            json_object_set(config, specials[i].token, token);
            if (specials[i].id) json_object_set(generation, specials[i].id, id);
        }
        json_decref(id);
    }
    if (template) json_object_set_new(config, "chat_template", template);
    int status = write_json(config, JSON_INDENT(2), tmpf("%s/tokenizer_config.json", dir));
    if (status < 0) {
        json_decref(generation);
        return status;
    }
    return write_json(generation, JSON_INDENT(2), tmpf("%s/generation_config.json", dir));
}

int tokenizer_export_gguf(const char *gguf_path, const char *dir)
{
    Weights *w;
    TRY(weights_open(&w, gguf_path));
    json_t *tokens = key(w, "ggml.tokens");
    int status = OK;
    if (!json_is_array(tokens))
        log_warn("%s carries no tokenizer: none is exported", gguf_path);
    else
        status = write_tokenizer(w, tokens, dir, gguf_path);
    if (status == OK && json_is_array(tokens)) status = write_configs(w, tokens, dir);
    json_decref(tokens);
    weights_close(w);
    return status;
}
