#include "data_test.h"
#include <unistd.h>

static Tokenizer *tokenizer;

const char *test_no_model(void)
{
    return GOLDEN_DIR "/templates";
}

const char *test_golden(const char *name)
{
    return tmpf("%s/%s", GOLDEN_DIR, name);
}

const Tokenizer *test_tokenizer(void)
{
    if (!tokenizer) assert_int_equal(tokenizer_open(&tokenizer, GOLDEN_DIR), OK);
    return tokenizer;
}

static __attribute__((destructor)) void close_tokenizer(void)
{
    tokenizer_free(tokenizer);
}

char *test_template(const char *name)
{
    char *text = NULL;
    assert_int_equal(file_read(test_golden(tmpf("templates/%s", name)), 1 << 20, &text, NULL), OK);
    return text;
}

static char path[64];

static __attribute__((destructor)) void remove_file(void)
{
    if (*path) unlink(path);
}

const char *test_file_bytes(const char *text, size_t bytes)
{
    if (!*path) {
        strcpy(path, "/tmp/attune-data-XXXXXX");
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
    }
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
    return path;
}

const char *test_file(const char *text)
{
    return test_file_bytes(text, strlen(text));
}

Dataset *test_dataset(const char *lines, const DataConfig *c)
{
    DataConfig config = *c;
    Dataset *d = NULL;
    config.path = test_file(lines);
    if (!config.model_path) config.model_path = test_no_model();
    if (dataset_open(&d, &config, test_tokenizer()) < 0) fail_msg("%s: %s", error_last()->place, error_last()->what);
    return d;
}

Dataset *test_rows(const int *lengths, int n)
{
    Buf lines = {0};
    for (int i = 0; i < n; i++) {
        buf_printf(&lines, "{\"tokens\": [%d", i);
        for (int t = 1; t < lengths[i]; t++) buf_printf(&lines, ", %d", t - 1);
        buf_puts(&lines, "]}\n");
    }
    DataConfig c = {.path = test_file(lines.data), .format = "tokens", .max_tokens = 100000};
    Dataset *d = NULL;
    assert_int_equal(dataset_open(&d, &c, NULL), OK);
    buf_free(&lines);
    return d;
}

char *test_text(const Row *r, bool trained_only)
{
    Buf text = {0};
    buf_puts(&text, "");
    for (int t = 0, end; t < r->n; t = end) {
        for (end = t + 1; end < r->n && r->train[end] == r->train[t]; end++) continue;
        if (trained_only && !r->train[t]) continue;
        assert_int_equal(tokenizer_decode(test_tokenizer(), r->ids + t, end - t, false, &text), OK);
        if (trained_only) buf_puts(&text, "|");
    }
    return text.data;
}
