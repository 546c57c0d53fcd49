// tokenizer_open: finds a model's tokenizer on disk, and which of its tokens begin, end and pad.
#include "text/tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

enum { TOKENIZER_BYTES_MAX = 256 << 20, CONFIG_BYTES_MAX = 64 << 20 };

static json_t *read_object(const char *dir,
                           const char *name) // NULL when it is not there or no JSON; these files are optional
{
    char *path = xasprintf("%s/%s", dir, name), *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    if (path_exists(path) && file_read(path, CONFIG_BYTES_MAX, &text, &bytes) == OK) {
        json_error_t e;
        root = json_loadb(text, bytes, JSON_ALLOW_NUL, &e);
        if (!root) log_warn("%s:%d: not valid JSON (%s); ignored", path, e.line, e.text);
    }
    error_clear();
    free(text);
    free(path);
    return root;
}

// "bos_token": "<s>" or {"content": "<s>", ...}
static int id_by_text(const Tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    return json_is_string(v) ? tokenizer_id(t, json_string_value(v)) : -1;
}

// "bos_token_id": 1 or [1, 5]: the first
static int id_by_number(const Tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id < tokenizer_vocab_size(t) ? (int)id : -1;
}

static void find_special_ids(Tokenizer *t, const char *dir)
{
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                                        "config.json"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        json_t *config = read_object(dir, files[i]);
        if (!config) continue;
        struct {
            int *id;
            const char *text, *number;
        } wanted[] = {{&t->bos, "bos_token", "bos_token_id"},
                      {&t->eos, "eos_token", "eos_token_id"},
                      {&t->pad, "pad_token", "pad_token_id"}};
        for (size_t k = 0; k < COUNT_OF(wanted); k++) {
            if (*wanted[k].id < 0) *wanted[k].id = id_by_text(t, config, wanted[k].text);
            if (*wanted[k].id < 0) *wanted[k].id = id_by_number(t, config, wanted[k].number);
        }
        json_decref(config);
    }
}

static int open_dir(Tokenizer **out, const char *dir)
{
    char *path = xasprintf("%s/tokenizer.json", dir), *text = NULL;
    size_t bytes = 0;
    int status = OK;
    if (!path_exists(path)) {
        status =
            fail(E_INPUT, dir,
                 "save one with AutoTokenizer.from_pretrained(...).save_pretrained(DIR), or give rows of {\"tokens\"}",
                 "no tokenizer.json");
        goto done;
    }
    TRY_DONE(file_read(path, TOKENIZER_BYTES_MAX, &text, &bytes));
    TRY_DONE(tokenizer_open_json(out, text, bytes, path));
    find_special_ids(*out, dir);
done:
    free(text);
    free(path);
    return status;
}

int tokenizer_open(Tokenizer **out, const char *path)
{
    *out = NULL;
    if (path_is_dir(path)) return open_dir(out, path);
    if (!path_exists(path)) return fail(E_INPUT, path, NULL, "no such file or directory");
    Weights *w = NULL;
    TRY(weights_open(&w, path));
    int status = weights_is_gguf(w)
                     ? tokenizer_open_gguf(out, w, path)
                     : fail(E_INPUT, path, "give the model's directory", "a weights file carries no tokenizer");
    weights_close(w);
    return status;
}
