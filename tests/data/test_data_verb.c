// runtime/data_verb.c: what `attune data` prints and when it refuses; `attune tokenize` through a model directory.
#include "data_test.h"
#include "runtime.h"
#include <unistd.h>

static char
    dir[64]; // a model without weights worth the name, its tokenizer and template; recipes and data go there too

static const char *in_dir(const char *name)
{
    return tmpf("%s/%s", dir, name);
}

static void put(const char *name, const char *text, size_t bytes)
{
    assert_int_equal(file_write_atomic(in_dir(name), text, bytes), OK);
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

static void copy(const char *name)
{
    char *text;
    size_t bytes;
    assert_int_equal(file_read(test_golden(name), 1 << 20, &text, &bytes), OK);
    put(name, text, bytes);
    free(text);
}

static const char *const files[] = {
    "config.json",         "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "data.jsonl",        "recipe.yaml",    "out",
    "more.jsonl"};

static int set_up(void **state)
{
    (void)state;
    static const char header[] = "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    char weights[8 + sizeof header - 1 + 4] = {(char)(sizeof header - 1)};
    memcpy(weights + 8, header, sizeof header - 1);
    strcpy(dir, "/tmp/attune-verb-XXXXXX");
    assert_non_null(mkdtemp(dir));
    put("model.safetensors", weights, sizeof weights);
    put_text("config.json",
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 400,"
             " \"hidden_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
             " \"num_key_value_heads\": 2, \"intermediate_size\": 128, \"rms_norm_eps\": 1e-5,"
             " \"max_position_embeddings\": 512, \"hidden_act\": \"silu\"}");
    copy("tokenizer.json");
    copy("tokenizer_config.json");
    char *template = test_template("chatml.jinja");
    put_text("chat_template.jinja", template);
    free(template);
    put_text("recipe.yaml",
             tmpf("model: %s\ndata: {train: %s/data.jsonl, max_tokens: 80}\ntrain: {batch: 2}\n", dir, dir));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(files); i++) unlink(in_dir(files[i]));
    rmdir(dir);
    return 0;
}

// Runs the verb with stdout in a file; its text is *out, to be freed.
static int run(char *const *overrides, int n, int show, char **out)
{
    fflush(stdout);
    int terminal = dup(STDOUT_FILENO);
    FILE *f = fopen(in_dir("out"), "we");
    assert_non_null(f);
    dup2(fileno(f), STDOUT_FILENO);
    fclose(f);
    char recipe[128];
    snprintf(recipe, sizeof recipe, "%s", in_dir("recipe.yaml"));
    int status = run_data(&(TrainArgs){.recipe = recipe, .overrides = overrides, .n_overrides = n}, show);
    fflush(stdout);
    dup2(terminal, STDOUT_FILENO);
    close(terminal);
    assert_int_equal(file_read(in_dir("out"), 1 << 20, out, NULL), OK);
    return status;
}

static void check_says(const char *text, const char *what)
{
    if (!strstr(text, what)) fail_msg("no \"%s\" in\n%s", what, text);
}

#define CHAT(question, answer)                                                                                         \
    "{\"messages\": [{\"role\": \"user\", \"content\": \"" question                                                    \
    "\"}, {\"role\": \"assistant\", \"content\": \"" answer "\"}]}\n"

static void counts_and_samples(void **state)
{
    (void)state;
    static const char lines[] = CHAT("one?", "1\\u001b[31m") CHAT("two?", "2") CHAT("two?", "2")
        CHAT("a question a question a question a question a question a question a question a question", "long");
    char *out;
    put("data.jsonl", lines, sizeof lines - 1);
    assert_int_equal(run(NULL, 0, 1, &out), OK);
    check_says(out, "data.jsonl (messages, loss on completion)");
    check_says(out, "rows         3 (2 steps of 2 an epoch)");
    check_says(out, "dropped      1 longer than 80 tokens (the first: line 4)");
    check_says(out, "duplicates   1 equal to an earlier row, kept (the first: line 3)");
    check_says(out, "trained      min 2 ");
    check_says(out, "line 1: ");
    check_says(out, "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n[[1\\x1b[31m<|im_end|>]]\n");
    assert_null(strstr(out, "line 2: "));
    free(out);
}

static void several_files(void **state)
{
    (void)state;
    char *out, *overrides[] = {xasprintf("data.test=%s", in_dir("more.jsonl")), (char *)"data.loss_on=all"};
    put_text("data.jsonl", CHAT("one?", "1"));
    put_text("more.jsonl", "{\"tokens\": [1, 2, 3]}\n");
    assert_int_equal(run(overrides, 2, 0, &out), OK);
    check_says(out, "data.train: ");
    check_says(out, "data.test: ");
    check_says(out, "(tokens, loss on all)");
    free(out);
    free(overrides[0]);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *lines, *override, *place, *what;
    } cases[] = {
        {CHAT("one?", ""), NULL, "data.jsonl:1", "empty content"},
        {CHAT("one?", "1") "{}\n", NULL, "data.jsonl:2", "no \"messages\""},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"<s><s>a\", \"completion\": \"b\"}\n", NULL,
         "data.jsonl:2", "two bos tokens"},
        {CHAT("one?", "1"), "data.template=TEMPLATES/no-end-of-turn.jinja", "data.jsonl:1", "never learn to stop"},
        {CHAT("one?", "1"), "data.template=TEMPLATES/nowhere.jinja", "nowhere.jinja", "cannot open"},
        {CHAT("one?", "1"), "data.train=", "recipe.yaml", "no data.train"},
        {CHAT("one?", "1"), "model=", "", "model"},
        {CHAT("one?", "1"), "model=/nonexistent", "/nonexistent", ""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *out = NULL, *override = cases[i].override ? xstrdup(cases[i].override) : NULL;
        char *templates = override ? strstr(override, "TEMPLATES") : NULL;
        if (templates) {
            char *whole =
                xasprintf("%.*s%s%s", (int)(templates - override), override, test_golden("templates"), templates + 9);
            free(override);
            override = whole;
        }
        put_text("data.jsonl", cases[i].lines);
        int status = run(&override, override ? 1 : 0, 0, &out);
        const ErrorRecord *e = error_last();
        if (status != E_INPUT || !strstr(e->place, cases[i].place) || !strstr(e->what, cases[i].what))
            fail_msg("case %zu: status %d, %s: %s", i, status, e->place, e->what);
        error_clear();
        free(out);
        free(override);
    }
}

static void tokenize(void **state)
{
    (void)state;
    char *out, model[64], data[96], to[96];
    snprintf(model, sizeof model, "%s", dir);
    snprintf(data, sizeof data, "%s", in_dir("data.jsonl"));
    snprintf(to, sizeof to, "%s", in_dir("out"));
    put_text("data.jsonl", "{\"text\": \"<s>a</s>\"}\n");
    assert_int_equal(run_tokenize(model, data, to, false, false), OK);
    assert_int_equal(file_read(to, 1 << 20, &out, NULL), OK);
    assert_string_equal(out, tmpf("{\"ids\": [0, %d, 1]}\n", tokenizer_id(test_tokenizer(), "a")));
    free(out);
    assert_int_equal(run_tokenize("/nonexistent", data, to, false, false), E_INPUT);
    error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts_and_samples), cmocka_unit_test(several_files),
                                       cmocka_unit_test(refusals), cmocka_unit_test(tokenize)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
