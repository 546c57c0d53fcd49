// runtime/data/tokenize.c: texts and conversations to ids and back, errors by line, nothing written when a line is bad.
#include "data_test.h"
#include <unistd.h>

static const char *const out_path = "/tmp/attune-tokenize-out.jsonl";

static char *model_dir(void) // the golden tokenizer with a template as a model's own
{
    char *dir = xstrdup("/tmp/attune-model-XXXXXX"), *text;
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    size_t bytes;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        assert_int_equal(file_read(test_golden(files[i]), 1 << 20, &text, &bytes), OK);
        assert_int_equal(file_write_atomic(tmpf("%s/%s", dir, files[i]), text, bytes), OK);
        free(text);
    }
    text = test_template("chatml.jinja");
    assert_int_equal(file_write_atomic(tmpf("%s/chat_template.jinja", dir), text, strlen(text)), OK);
    free(text);
    return dir;
}

static void remove_model(char *dir)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < COUNT_OF(files); i++) unlink(tmpf("%s/%s", dir, files[i]));
    rmdir(dir);
    free(dir);
}

static void there_and_back(void **state)
{
    (void)state;
    char *dir = model_dir(), *ids, *text;
    assert_int_equal(
        tokenize_file(
            test_tokenizer(), dir,
            test_file("{\"text\": \"Gr\\u00fc\\u00dfe \\ud83c\\udf0d \\\"x\\\"\\n<|im_end|>\"}\n\n{\"text\": \"\"}\n"
                      "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"),
            out_path, false, false),
        OK);
    assert_int_equal(file_read(out_path, 1 << 20, &ids, NULL), OK);
    assert_int_equal(tokenize_file(test_tokenizer(), dir, test_file(ids), out_path, true, false), OK);
    assert_int_equal(file_read(out_path, 1 << 20, &text, NULL), OK);
    assert_string_equal(
        text, "{\"text\": \"Grüße 🌍 \\\"x\\\"\\n<|im_end|>\"}\n{\"text\": \"\"}\n{\"text\": \"<|im_start|>system\\nYou "
              "are a helpful assistant<|im_end|>\\n<|im_start|>user\\nhi<|im_end|>\\n\"}\n");
    free(ids);
    free(text);
    unlink(out_path);
    remove_model(dir);
}

static void bad_lines(void **state)
{
    (void)state;
    static const struct {
        const char *lines;
        bool decode;
        int line;
        const char *what;
    } cases[] = {
        {"{\"text\": \"a\"}\n{\"txt\": \"b\"}", false, 2, "neither a \"text\" nor \"messages\""},
        {"{\"text\": 3}", false, 1, "neither"},
        {"{\"messages\": []}", false, 1, "empty"},
        {"{", false, 1, "not JSON"},
        {"{\"ids\": 3}", true, 1, "no list \"ids\""},
        {"{\"ids\": [1, 100000]}", true, 1, "token 1 is not an id"},
        {"{\"ids\": [1, -1]}", true, 1, "token 1 is not an id"},
        {"{\"ids\": [1, 2.5]}", true, 1, "token 1 is not an id"},
    };
    char *dir = model_dir();
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *path = test_file(cases[i].lines);
        assert_int_equal(tokenize_file(test_tokenizer(), dir, path, out_path, cases[i].decode, false), E_INPUT);
        assert_string_equal(error_last()->place, tmpf("%s:%d", path, cases[i].line));
        assert_non_null(strstr(error_last()->what, cases[i].what));
        assert_false(path_exists(out_path));
        error_clear();
    }
    remove_model(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_and_back), cmocka_unit_test(bad_lines)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
