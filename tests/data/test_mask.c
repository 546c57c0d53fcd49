// runtime/data/mask.c against transformers: for each template of tests/golden/data, the ids and trained tokens that
// apply_chat_template(return_assistant_tokens_mask=True) gives.
#include "data_test.h"

typedef struct Golden {
    json_t *lines; // of masks.jsonl
    json_t *conversations;
} Golden;

static json_t *read_lines(const char *name)
{
    char *text, *rest = NULL;
    json_t *lines = json_array();
    assert_int_equal(file_read(test_golden(name), 1 << 24, &text, NULL), OK);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        json_array_append_new(lines, row);
    }
    free(text);
    return lines;
}

static const char *marked(const Row *r, char *out)
{
    for (int t = 0; t < r->n; t++) out[t] = r->train[t] ? '1' : '0';
    out[r->n] = 0;
    return out;
}

static void check_row(const json_t *golden, const json_t *conversation, const char *template)
{
    const char *name = json_string_value(json_object_get(golden, "template")),
               *mask = json_string_value(json_object_get(golden, "mask"));
    int line = (int)json_integer_value(json_object_get(golden, "line"));
    char *text = json_dumps(conversation, 0), got[4096];
    DataConfig c = {.template_source = template, .max_tokens = 4000, .path = test_file(text)};
    Dataset *d = NULL;
    int status = dataset_open(&d, &c, test_tokenizer());
    if (json_object_get(golden, "refused")) {
        if (status != E_INPUT) fail_msg("%s line %d: not refused", name, line);
    } else {
        if (status != OK) fail_msg("%s line %d: %s", name, line, error_last()->what);
        const Row *r = dataset_row(d, 0);
        const json_t *ids = json_object_get(golden, "ids");
        assert_int_equal(r->n, json_array_size(ids));
        for (int t = 0; t < r->n; t++) assert_int_equal(r->ids[t], json_integer_value(json_array_get(ids, (size_t)t)));
        if (!streq(marked(r, got), mask)) fail_msg("%s line %d:\n%s, expected\n%s", name, line, got, mask);
        assert_int_equal(r->prompt, (int)strcspn(mask, "1"));
    }
    error_clear();
    dataset_close(d);
    free(text);
}

static void masks_of_transformers(void **state)
{
    (void)state;
    json_t *golden = read_lines("masks.jsonl"), *conversations = read_lines("conversations.jsonl"), *row;
    size_t i;
    assert_int_equal(json_array_size(golden), 10 * json_array_size(conversations));
    json_array_foreach(golden, i, row)
    {
        size_t line = (size_t)json_integer_value(json_object_get(row, "line")) - 1;
        char *template = test_template(json_string_value(json_object_get(row, "template")));
        check_row(row, json_array_get(conversations, line), template);
        free(template);
    }
    json_decref(golden);
    json_decref(conversations);
}

// Truncation keeps the mask of what is left, wherever the cut falls.
static void cut_masks(void **state)
{
    (void)state;
    json_t *conversations = read_lines("conversations.jsonl"), *conversation = json_array_get(conversations, 2);
    char *text = json_dumps(conversation, 0), *template = test_template("chatml.jinja"), whole[4096], part[4096];
    DataConfig c = {.template_source = template, .max_tokens = 4000, .overlong = "cut"};
    Dataset *d = test_dataset(text, &c);
    int n = dataset_row(d, 0)->n, prompt = dataset_row(d, 0)->prompt;
    marked(dataset_row(d, 0), whole);
    dataset_close(d);
    for (c.max_tokens = prompt + 1; c.max_tokens < n; c.max_tokens++) {
        d = test_dataset(text, &c);
        assert_int_equal(dataset_row(d, 0)->n, c.max_tokens);
        marked(dataset_row(d, 0), part);
        assert_memory_equal(part, whole, (size_t)c.max_tokens);
        dataset_close(d);
    }
    free(text);
    free(template);
    json_decref(conversations);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(masks_of_transformers), cmocka_unit_test(cut_masks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
