// Tokenizers on disk: directories with their configuration files, GGUF files, and files that must be refused with a reason.
#include "text_test.h"
#include "text/template.h"
#include <unistd.h>

static char dir[] = "/tmp/attune-text-XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    char *command = xasprintf("rm -rf %s", dir);
    int rc = system(command);
    free(command);
    return rc;
}

static const char *put_file(const char *name, const void *data, size_t bytes)
{
    const char *path = tmpf("%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, data, bytes), OK);
    return path;
}
static void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}
static void drop(const char *name)
{
    unlink(tmpf("%s/%s", dir, name));
}

// ---- directories ----------------------------------------------------------------------------------------------------
static void directory(void **state)
{
    (void)state;
    size_t bytes;
    char *json = read_golden("tokenizer/gpt2.json", &bytes);
    Tokenizer *t;
    put_file("tokenizer.json", json, bytes);
    assert_int_equal(tokenizer_open(&t, dir), OK);
    assert_int_equal(tokenizer_bos(t), -1);
    tokenizer_free(t);
    put_text("tokenizer_config.json",
             "{\"bos_token\": {\"content\": \"<|im_start|>\", \"lstrip\": false}, \"eos_token\": \"<|im_end|>\","
             " \"pad_token\": null}");
    put_text("generation_config.json", "{\"eos_token_id\": [0, 1], \"pad_token_id\": 0, \"bos_token_id\": 99999}");
    assert_int_equal(tokenizer_open(&t, dir), OK);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_int_equal(tokenizer_pad(t), 0);
    tokenizer_free(t);
    drop("tokenizer_config.json");
    put_text("generation_config.json", "{ broken");
    assert_int_equal(tokenizer_open(&t, dir), OK); // optional files never stop a run
    assert_int_equal(tokenizer_eos(t), -1);
    tokenizer_free(t);
    drop("generation_config.json");
    drop("tokenizer.json");
    assert_int_equal(tokenizer_open(&t, dir), E_INPUT);
    assert_non_null(strstr(error_last()->what, "no tokenizer.json"));
    assert_true(error_last()->hint[0]);
    error_clear();
    assert_int_equal(tokenizer_open(&t, "/nonexistent"), E_INPUT);
    error_clear();
    free(json);
}

static void chat_template_places(void **state)
{
    (void)state;
    char *source, *place;
    assert_int_equal(template_find(dir, &source, &place), OK);
    assert_null(source);
    put_text("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": "
                                      "\"default\", \"template\": \"D\"}]}");
    assert_int_equal(template_find(dir, &source, &place), OK);
    assert_string_equal(source, "D");
    assert_non_null(strstr(place, "tokenizer_config.json"));
    free(source);
    free(place);
    put_text("tokenizer_config.json", "{\"chat_template\": \"one \\u00e9\"}");
    assert_int_equal(template_find(dir, &source, &place), OK);
    assert_string_equal(source, "one \u00e9");
    free(source);
    free(place);
    put_text("chat_template.jinja", "file");
    assert_int_equal(template_find(dir, &source, &place), OK);
    assert_string_equal(source, "file");
    free(source);
    free(place);
    drop("chat_template.jinja");
    put_text("tokenizer_config.json", "{");
    assert_int_equal(template_find(dir, &source, &place), E_INPUT);
    error_clear();
    drop("tokenizer_config.json");
}

// ---- GGUF -----------------------------------------------------------------------------------------------------------
enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };

static void put_u32(Buf *b, uint32_t v)
{
    buf_put(b, &v, sizeof v);
}
static void put_u64(Buf *b, uint64_t v)
{
    buf_put(b, &v, sizeof v);
}
static void put_string(Buf *b, const char *s, size_t n)
{
    put_u64(b, n);
    buf_put(b, s, n);
}
static void put_key(Buf *b, const char *key, uint32_t type)
{
    put_string(b, key, strlen(key));
    put_u32(b, type);
}
static void put_string_key(Buf *b, const char *key, const char *value)
{
    put_key(b, key, GGUF_STRING);
    put_string(b, value, strlen(value));
}

static void put_tokens(Buf *b, const json_t *vocab)
{
    size_t n = json_object_size(vocab);
    const char **token = xcalloc(n, sizeof *token), *key;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)vocab, key, id) token[json_integer_value(id)] = key;
    put_key(b, "tokenizer.ggml.tokens", GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, n);
    for (size_t i = 0; i < n; i++) put_string(b, token[i], strlen(token[i]));
    put_key(b, "tokenizer.ggml.token_type", GGUF_ARRAY);
    put_u32(b, GGUF_I32);
    put_u64(b, n);
    for (size_t i = 0; i < n; i++) put_u32(b, i < 3 ? 3 : 1); // the first three are control tokens
    free(token);
}

static void put_merges(Buf *b, const json_t *merges)
{
    put_key(b, "tokenizer.ggml.merges", GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *m = json_array_get(merges, i);
        char *text = json_is_string(m) ? xstrdup(json_string_value(m))
                                       : xasprintf("%s %s", json_string_value(json_array_get(m, 0)),
                                                   json_string_value(json_array_get(m, 1)));
        put_string(b, text, strlen(text));
        free(text);
    }
}

// A GGUF file without weights that carries the vocabulary of a golden tokenizer.json.
static void write_gguf(const char *name, const char *model, const char *pre, bool add_bos)
{
    size_t bytes;
    char *json = read_golden(name, &bytes);
    json_t *root = parse_json(json, bytes);
    const json_t *spec = json_object_get(root, "model");
    Buf b = {0};
    buf_puts(&b, "GGUF");
    put_u32(&b, 3);
    put_u64(&b, 1);  // tensors
    put_u64(&b, 10); // keys
    put_string_key(&b, "general.architecture", "llama");
    put_string_key(&b, "tokenizer.ggml.model", model);
    put_string_key(&b, "tokenizer.ggml.pre", pre);
    put_tokens(&b, json_object_get(spec, "vocab"));
    put_merges(&b, json_object_get(spec, "merges"));
    put_key(&b, "tokenizer.ggml.bos_token_id", GGUF_U32);
    put_u32(&b, 1);
    put_key(&b, "tokenizer.ggml.eos_token_id", GGUF_U32);
    put_u32(&b, 2);
    put_key(&b, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
    buf_put(&b, add_bos ? "\1" : "\0", 1);
    put_string_key(&b, "tokenizer.chat_template", "{{ bos_token }}\u00e9");
    const char tensor[] = "output_norm.weight";
    put_string(&b, tensor, sizeof tensor - 1);
    put_u32(&b, 1); // dimensions
    put_u64(&b, 8); // elements
    put_u32(&b, 0); // F32
    put_u64(&b, 0); // offset
    while (b.len % 32) buf_put(&b, "", 1);
    for (int i = 0; i < 8; i++) put_u32(&b, 0);
    put_file("model.gguf", b.data, b.len);
    buf_free(&b);
    json_decref(root);
    free(json);
}

static void gguf_equals_json(const char *golden, const char *pre)
{
    char *file = xasprintf("tokenizer/%s.json", golden), *path = xasprintf("%s/model.gguf", dir);
    size_t bytes;
    char *json = read_golden(file, &bytes);
    Tokenizer *a, *b;
    write_gguf(file, "gpt2", pre, true);
    assert_int_equal(tokenizer_open_json(&a, json, bytes, file), OK);
    if (tokenizer_open(&b, path) != OK) fail_msg("%s: %s", error_last()->place, error_last()->what);
    assert_int_equal(tokenizer_vocab_size(a), tokenizer_vocab_size(b));
    assert_int_equal(tokenizer_bos(b), 1);
    assert_int_equal(tokenizer_eos(b), 2);
    assert_true(tokenizer_adds_bos(b));
    RandomText r = {.state = 3};
    for (int i = 0; i < 300; i++) {
        Ids x = {0}, y = {0};
        random_next(&r);
        assert_int_equal(tokenizer_encode(a, r.text.data, r.text.len, false, false, &x), OK);
        assert_int_equal(tokenizer_encode(b, r.text.data, r.text.len, true, false, &y), OK);
        assert_int_equal(y.n, x.n + 1);
        assert_int_equal(y.id[0], 1);
        assert_memory_equal(x.id, y.id + 1, (size_t)x.n * sizeof *x.id);
        ids_free(&x);
        ids_free(&y);
    }
    buf_free(&r.text);
    tokenizer_free(a);
    tokenizer_free(b);
    free(json);
    free(path);
    free(file);
}

static void gguf(void **state)
{
    (void)state;
    gguf_equals_json("gpt2", "gpt-2");
    gguf_equals_json("smollm", "smollm");
    gguf_equals_json("qwen2", "qwen2");
    char *path = xasprintf("%s/model.gguf", dir), *source, *place;
    assert_int_equal(template_find(path, &source, &place), OK);
    assert_string_equal(source, "{{ bos_token }}\u00e9");
    free(source);
    free(place);
    Tokenizer *t;
    write_gguf("tokenizer/gpt2.json", "gpt2", "unheard-of", false);
    assert_int_equal(tokenizer_open(&t, path), E_INPUT);
    assert_non_null(strstr(error_last()->what, "unheard-of"));
    error_clear();
    write_gguf("tokenizer/gpt2.json", "llama", "default", false);
    assert_int_equal(tokenizer_open(&t, path), E_INPUT);
    assert_non_null(strstr(error_last()->what, "llama"));
    error_clear();
    free(path);
}

// ---- files that are refused ----------------------------------------------------------------------------------------
#define BPE(vocab, merges, more) "{\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}" more "}"

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *json, *what;
    } rows[] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON"},
        {"[]", "no \"model\""},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "\"Unigram\" is not supported"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "\"WordPiece\" is not supported"},
        {BPE("{}", "[]", ""), "vocabulary is empty"},
        {BPE("[]", "[]", ""), "model.vocab"},
        {BPE("{\"a\":\"b\"}", "[]", ""), "model.vocab"},
        {BPE("{\"a\":0,}", "[]", ""), "model.vocab"},
        {BPE("{\"a\":0}", "{}", ""), "model.merges"},
        {BPE("{\"a\":0}", "[1]", ""), "model.merges"},
        {BPE("{\"a\":0,\"b\":0}", "[]", ""), "given twice"},
        {BPE("{\"a\":-1}", "[]", ""), "outside"},
        {BPE("{\"a\":8388608}", "[]", ""), "outside"},
        {BPE("{\"a\":99999999999999999999}", "[]", ""), "model.vocab"},
        {BPE("{\"a\":0,\"b\":1}", "[\"a b\"]", ""), "names a token that is not in the vocabulary"},
        {BPE("{\"a\":0}", "[\"ab\"]", ""), "no pair"},
        {BPE("{\"a\":0}", "[\"a b c\"]", ""), "no pair"},
        {BPE("{\"a\":0}", "[[\"a\"]]", ""), "model.merges"},
        {BPE("{\"a\xff\":0}", "[]", ""), "not UTF-8"},
        {BPE("{\"a\\ud800\":0}", "[]", ""), "model.vocab"},
        {BPE("{\"a\":0}", "[]", ",\"pre_tokenizer\":{\"type\":\"Nope\"}"), "pre_tokenizer \"Nope\" is not supported"},
        {BPE("{\"a\":0}", "[]", ",\"normalizer\":{\"type\":\"Precompiled\"}"),
         "normalizer \"Precompiled\" is not supported"},
        {BPE("{\"a\":0}", "[]", ",\"decoder\":{\"type\":\"CTC\"}"), "decoder \"CTC\" is not supported"},
        {BPE("{\"a\":0}", "[]", ",\"post_processor\":{\"type\":\"Nope\"}"), "post_processor \"Nope\""},
        {BPE("{\"a\":0}", "[]",
             ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}"),
         "unclosed"},
        {BPE("{\"a\":0}", "[]",
             ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}"),
         "behavior"},
        {BPE("{\"a\":0}", "[]", ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]"), "given twice"},
        {BPE("{\"a\":0}", "[]", ",\"added_tokens\":[{\"content\":\"x\"}]"), "no content or id"},
        {BPE("{\"a\":0}", "[]",
             ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}}],"
             "\"special_tokens\":{\"s\":{\"ids\":[9]}}}"),
         "adds id 9"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Tokenizer *t = (Tokenizer *)&t;
        error_clear();
        if (tokenizer_open_json(&t, rows[i].json, strlen(rows[i].json), "tokenizer.json") != E_INPUT)
            fail_msg("accepted: %s", rows[i].json);
        assert_null(t);
        if (!strstr(error_last()->what, rows[i].what))
            fail_msg("%s: \"%s\" does not say \"%s\"", rows[i].json, error_last()->what, rows[i].what);
        assert_string_equal(error_last()->place, "tokenizer.json");
    }
    error_clear();
}

// A pattern that backtracks without end stops with an error.
static void endless_regex(void **state)
{
    (void)state;
    const char *json =
        BPE("{\"a\":0}", "[]",
            ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+\\\\d\"},\"behavior\":\"Isolated\"}");
    Tokenizer *t;
    Ids ids = {0};
    char text[64];
    memset(text, 'a', sizeof text);
    assert_int_equal(tokenizer_open_json(&t, json, strlen(json), "t"), OK);
    double begin = now_ms();
    assert_int_equal(tokenizer_encode(t, text, sizeof text, false, false, &ids), E_INPUT);
    assert_non_null(strstr(error_last()->what, "gave up"));
    assert_true(now_ms() - begin < 10000);
    error_clear();
    ids_free(&ids);
    tokenizer_free(t);
}

// Spacing, escapes, member order and both forms of merges do not matter.
static void json_forms(void **state)
{
    (void)state;
    const char *json = "\n{ \"x\": [ {\"model\": {\"vocab\": 1}}, \"]}\\\"\" ], \"model\" :\t{ \"merges\" : [ [ "
                       "\"\\u0061\", \"\\\"\" ] , \"a\\\" \\\\\" ] ,"
                       " \"vocab\":{\"a\" : 0 ,\"\\\"\": 1, \"a\\\"\" :2, "
                       "\"\\\\\":3,\"a\\\"\\\\\":4,\"\\ud83d\\ude00\" : 5 } , \"type\" : \"BPE\"} }";
    Tokenizer *t;
    Ids ids = {0};
    if (tokenizer_open_json(&t, json, strlen(json), "t") != OK) fail_msg("%s", error_last()->what);
    assert_int_equal(tokenizer_encode(t, "a\"\\\U0001F600", 7, false, false, &ids), OK);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.id[0], 4);
    assert_int_equal(ids.id[1], 5);
    ids_free(&ids);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directory), cmocka_unit_test(chat_template_places), cmocka_unit_test(gguf),
        cmocka_unit_test(refused),   cmocka_unit_test(endless_regex),        cmocka_unit_test(json_forms),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
