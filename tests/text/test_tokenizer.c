// Tokenizer against goldens of the `tokenizers` package: ids, decoded text and what the post-processor adds, for twenty
// configurations; random strings by digest; offsets; long runs; threads.
#include "text_test.h"
#include <pthread.h>
#include <xxhash.h>

enum { BLOCK = 100 }; // random strings per digest line

static Tokenizer *open_golden(const char *name)
{
    char *file = xasprintf("tokenizer/%s.json", name);
    size_t bytes;
    char *json = read_golden(file, &bytes);
    Tokenizer *t = NULL;
    if (tokenizer_open_json(&t, json, bytes, file) != OK) fail_msg("%s: %s", error_last()->place, error_last()->what);
    free(json);
    free(file);
    return t;
}

// ---- goldens --------------------------------------------------------------------------------------------------------
static void check_decoded(const Tokenizer *t, const Ids *ids, bool skip_special, const char *want, size_t bytes,
                          const char *what)
{
    Buf got = {0};
    assert_int_equal(tokenizer_decode(t, ids->id, ids->n, skip_special, &got), OK);
    if (got.len != bytes || (bytes && memcmp(got.data, want, bytes) != 0))
        fail_msg("%s: decoded \"%.*s\", expected \"%.*s\"", what, (int)got.len, got.data ? got.data : "", (int)bytes,
                 want);
    buf_free(&got);
}

static void check_offsets(const Ids *ids, size_t bytes, const char *what)
{
    for (int i = 0; i < ids->n; i++) {
        bool in_order = i == 0 || ids->start[i] >= ids->start[i - 1];
        if (ids->start[i] < 0 || (size_t)ids->start[i] > bytes || !in_order)
            fail_msg("%s: offset %d of token %d", what, ids->start[i], i);
    }
}

// row: [ids, how many the post-processor adds, decoded or 0 for the text itself, the same without special tokens or 0 for
// the same]
static void check_row(const Tokenizer *t, const char *name, const json_t *text_json, const json_t *row, bool ordered)
{
    const char *text = json_string_value(text_json);
    size_t bytes = json_string_length(text_json);
    const json_t *want = json_array_get(row, 0), *all = json_array_get(row, 2), *plain = json_array_get(row, 3);
    char *what = xasprintf("%s: \"%s\"", name, text);
    Ids ids = {0}, special = {0};
    assert_int_equal(tokenizer_encode(t, text, bytes, false, true, &ids), OK);
    assert_int_equal(tokenizer_encode(t, text, bytes, true, false, &special), OK);
    bool same = (size_t)ids.n == json_array_size(want);
    for (int i = 0; same && i < ids.n; i++) same = ids.id[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (!same) fail_msg("%s: ids differ", what);
    assert_int_equal(special.n - ids.n, json_integer_value(json_array_get(row, 1)));
    if (ordered) check_offsets(&ids, bytes, what);
    if (!json_is_string(all)) all = text_json;
    if (!json_is_string(plain)) plain = all;
    check_decoded(t, &ids, false, json_string_value(all), json_string_length(all), what);
    check_decoded(t, &ids, true, json_string_value(plain), json_string_length(plain), what);
    ids_free(&ids);
    ids_free(&special);
    free(what);
}

static void check_random(const Tokenizer *t, const char *name, const json_t *rows, size_t first)
{
    RandomText r = {.state = 1};
    XXH64_state_t *h = XXH64_createState();
    for (size_t row = first; row < json_array_size(rows); row++) {
        XXH64_reset(h, 0);
        for (int i = 0; i < BLOCK; i++) {
            Ids ids = {0};
            random_next(&r);
            assert_int_equal(tokenizer_encode(t, r.text.data, r.text.len, false, false, &ids), OK);
            XXH64_update(h, &ids.n, sizeof ids.n);
            XXH64_update(h, ids.id, (size_t)ids.n * sizeof *ids.id);
            ids_free(&ids);
        }
        char digest[20];
        snprintf(digest, sizeof digest, "%016llx", (unsigned long long)XXH64_digest(h));
        const char *want = json_string_value(json_array_get(rows, row));
        if (!streq(digest, want))
            fail_msg("%s: random strings, block %zu: digest %s, expected %s", name, row - first, digest, want);
    }
    XXH64_freeState(h);
    buf_free(&r.text);
}

static void check_golden(const Tokenizer *t, const char *name)
{
    char *file = xasprintf("tokenizer/%s.golden", name);
    json_t *rows = read_lines(file), *texts = read_lines("tokenizer/texts.jsonl");
    size_t n = json_array_size(texts);
    assert_true(json_array_size(rows) > n);
    for (size_t i = 0; i < n; i++) {
        // a token that strips blanks to its right may find a second token among them: they overlap
        check_row(t, name, json_array_get(texts, i), json_array_get(rows, i), !streq(name, "added"));
    }
    check_random(t, name, rows, n);
    json_decref(rows);
    json_decref(texts);
    free(file);
}

static void golden(void **state)
{
    Tokenizer *t = open_golden(*state);
    check_golden(t, *state);
    tokenizer_free(t);
}

static void full_model(void **state)
{
    (void)state;
    const char *path = TEST_DIR "/../../models/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
    Tokenizer *t;
    if (!path_exists(path)) skip();
    assert_int_equal(tokenizer_open(&t, path), OK);
    assert_int_equal(tokenizer_vocab_size(t), 49152);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_int_equal(tokenizer_pad(t), 2);
    assert_false(tokenizer_adds_bos(t));
    check_golden(t, "smollm2-full");
    tokenizer_free(t);
}

// ---- offsets --------------------------------------------------------------------------------------------------------
static void check_starts(const char *name, const char *text, const int32_t *want, int n, bool add_special)
{
    Tokenizer *t = open_golden(name);
    Ids ids = {0};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), add_special, true, &ids), OK);
    assert_int_equal(ids.n, n);
    for (int i = 0; i < n; i++)
        if (ids.start[i] != want[i])
            fail_msg("%s: \"%s\": token %d starts at %d, expected %d", name, text, i, ids.start[i], want[i]);
    ids_free(&ids);
    tokenizer_free(t);
}

static void offsets(void **state)
{
    (void)state;
    // bytes of one character are separate tokens; a special token is one
    check_starts("gpt2", "x\u4e2d<|im_end|>y", (int32_t[]){0, 1, 2, 3, 4, 14}, 6, false);
    // NFC: e + U+0301 becomes one character of two bytes, both from the e
    check_starts("qwen2", "1e\u0301!", (int32_t[]){0, 1, 4}, 3, false);
    // the prefix blank stems from the first byte, bos and eos from the ends
    check_starts("roberta", "zq", (int32_t[]){0, 0, 0, 1, 2}, 5, true);
    check_starts("llama2", "zq<s>z", (int32_t[]){0, 0, 0, 1, 2, 5, 5, 6}, 8, true);
}

// ---- behaviour ------------------------------------------------------------------------------------------------------
static void appends(void **state)
{
    (void)state;
    Tokenizer *t = open_golden("gpt2");
    Ids ids = {0};
    assert_int_equal(tokenizer_encode(t, "ab", 2, false, false, &ids), OK);
    int n = ids.n;
    assert_int_equal(tokenizer_encode(t, "\xff", 1, false, false, &ids), E_INPUT);
    assert_non_null(strstr(error_last()->what, "not UTF-8 at byte 0"));
    error_clear();
    assert_int_equal(ids.n, n); // a failed call leaves nothing behind
    assert_int_equal(tokenizer_encode(t, "", 0, true, true, &ids), OK);
    assert_int_equal(ids.n, n);
    assert_int_equal(tokenizer_encode(t, "ab", 2, false, false, &ids), OK);
    assert_int_equal(ids.n, 2 * n);
    assert_memory_equal(ids.id, ids.id + n, (size_t)n * sizeof *ids.id);
    ids_free(&ids);
    tokenizer_free(t);
}

static void tokens_by_name(void **state)
{
    (void)state;
    Tokenizer *t = open_golden("gpt2");
    assert_int_equal(tokenizer_id(t, "<|im_end|>"), 2);
    assert_string_equal(tokenizer_token(t, 2), "<|im_end|>");
    assert_true(tokenizer_is_special(t, 2));
    int a = tokenizer_id(t, "a");
    assert_true(a > 2 && !tokenizer_is_special(t, a));
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    assert_null(tokenizer_token(t, -1));
    assert_null(tokenizer_token(t, tokenizer_vocab_size(t)));
    assert_false(tokenizer_is_special(t, 1 << 30));
    Buf out = {0};
    assert_int_equal(tokenizer_decode(t, (int32_t[]){-5, a, 1 << 30, 2, a}, 5, true, &out),
                     OK); // unknown ids say nothing
    assert_int_equal(out.len, 2);
    assert_memory_equal(out.data, "aa", 2);
    buf_free(&out);
    tokenizer_free(t);
}

static void incomplete_utf8(void **state)
{
    (void)state;
    Tokenizer *t = open_golden("gpt2");
    Ids ids = {0};
    Buf out = {0};
    assert_int_equal(tokenizer_encode(t, "\u4e2d", 3, false, false, &ids), OK);
    assert_int_equal(ids.n, 3);
    assert_int_equal(tokenizer_decode(t, ids.id, 2, true, &out), OK);
    assert_int_equal(out.len, 3);
    assert_memory_equal(out.data, "\xEF\xBF\xBD", 3);
    buf_free(&out);
    ids_free(&ids);
    tokenizer_free(t);
}

static void long_runs(void **state)
{
    (void)state;
    enum { N = 300000 };
    static const char *const names[] = {"smollm2-cut", "llama3", "llama2"};
    char *text = xmalloc(N + 1);
    for (size_t k = 0; k < COUNT_OF(names); k++) {
        Tokenizer *t = open_golden(names[k]);
        for (const char *c = "a =\n"; *c; c++) {
            Ids ids = {0};
            memset(text, *c, N);
            double begin = now_ms();
            assert_int_equal(tokenizer_encode(t, text, N, false, false, &ids), OK);
            if (now_ms() - begin > 10000) fail_msg("%s: a run of %d bytes took %.0f ms", names[k], N, now_ms() - begin);
            text[N] = 0;
            check_decoded(t, &ids, false, text, N, names[k]);
            ids_free(&ids);
        }
        tokenizer_free(t);
    }
    free(text);
}

// ---- threads --------------------------------------------------------------------------------------------------------
typedef struct Job {
    const Tokenizer *t;
    uint64_t digest;
} Job;

static void *encode_all(void *arg)
{
    Job *job = arg;
    RandomText r = {.state = 7};
    for (int i = 0; i < 500; i++) {
        Ids ids = {0};
        random_next(&r);
        if (tokenizer_encode(job->t, r.text.data, r.text.len, true, true, &ids) != OK) break;
        job->digest = hash64(ids.id, (size_t)ids.n * sizeof *ids.id, job->digest);
        ids_free(&ids);
    }
    buf_free(&r.text);
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    Tokenizer *t = open_golden("qwen2");
    Job alone = {t, 1}, jobs[THREADS];
    pthread_t thread[THREADS];
    encode_all(&alone);
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (Job){t, 1};
        assert_int_equal(pthread_create(&thread[i], NULL, encode_all, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        assert_true(jobs[i].digest == alone.digest);
    }
    tokenizer_free(t);
}

#define GOLDEN_TEST(file)                                                                                              \
    {                                                                                                                  \
        "golden " file, golden, NULL, NULL, file                                                                       \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        GOLDEN_TEST("gpt2"),
        GOLDEN_TEST("roberta"),
        GOLDEN_TEST("smollm"),
        GOLDEN_TEST("smollm2-cut"),
        GOLDEN_TEST("llama3"),
        GOLDEN_TEST("qwen2"),
        GOLDEN_TEST("gpt4o"),
        GOLDEN_TEST("deepseek"),
        GOLDEN_TEST("falcon"),
        GOLDEN_TEST("bloom"),
        GOLDEN_TEST("splits"),
        GOLDEN_TEST("added"),
        GOLDEN_TEST("forms"),
        GOLDEN_TEST("nfkc_nfd"),
        GOLDEN_TEST("llama2"),
        GOLDEN_TEST("gemma"),
        GOLDEN_TEST("mistral"),
        GOLDEN_TEST("metaspace"),
        GOLDEN_TEST("whitespace"),
        cmocka_unit_test(full_model),
        cmocka_unit_test(offsets),
        cmocka_unit_test(appends),
        cmocka_unit_test(tokens_by_name),
        cmocka_unit_test(incomplete_utf8),
        cmocka_unit_test(long_runs),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
