// runtime/data/source.c, formats.c, jsonl.c: every format's tokens, every kind of bad line by its place, long rows, duplicates,
// prompts for generation, and independence of threads.
#include "data_test.h"
#include <unistd.h>

static char *chatml;

static int set_up(void **state)
{
    (void)state;
    chatml = test_template("chatml.jinja");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(chatml);
    return 0;
}

static DataConfig chat_config(void)
{
    return (DataConfig){.template_source = chatml, .max_tokens = 1024};
}

// ---- formats --------------------------------------------------------------------------------------------------------
#define SYSTEM    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
#define ASK(text) "<|im_start|>user\n" text "<|im_end|>\n<|im_start|>assistant\n"

typedef struct FormatCase {
    const char *line, *format;
    bool chat;
    const char *text;    // all tokens
    const char *trained; // runs of trained ones, each followed by |
} FormatCase;

static const FormatCase format_cases[] = {
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho\"}]}",
     "messages", true, SYSTEM ASK("hi") "ho<|im_end|>\n", "ho<|im_end|>|"},
    {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"hi\"}]},"
     " {\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}, {\"role\": \"user\", \"content\": \"u\"},"
     " {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 1}]}",
     NULL, true, NULL, NULL}, // list content: this template cannot add a list to a string
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"a\", "
     "\"weight\": 0},"
     " {\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 1}]}",
     "messages", true, SYSTEM ASK("hi") "a<|im_end|>\n" ASK("u") "b<|im_end|>\n", "b<|im_end|>|"},
    {"{\"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}, {\"from\": \"gpt\", \"value\": \"ho\"},"
     " {\"from\": \"user\", \"value\": \"x\"}, {\"from\": \"assistant\", \"value\": \"y\"}], \"system\": \"S\"}",
     "conversations", true, "<|im_start|>system\nS<|im_end|>\n" ASK("hi") "ho<|im_end|>\n" ASK("x") "y<|im_end|>\n",
     "ho<|im_end|>|y<|im_end|>|"},
    {"{\"prompt\": \"Q: 1+1\\nA:\", \"completion\": \" 2\"}", "completion", true, "Q: 1+1\nA: 2</s>", " 2</s>|"},
    {"{\"prompt\": \"Q: 1+1\\nA:\", \"completion\": \" 2</s>\"}", "completion", false, "Q: 1+1\nA: 2</s>", " 2</s>|"},
    {"{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"},"
     " {\"role\": \"user\", \"content\": \"c\"}], \"completion\": [{\"role\": \"assistant\", \"content\": \"d\"}]}",
     "completion", true, SYSTEM ASK("a") "b<|im_end|>\n" ASK("c") "d<|im_end|>\n", "d<|im_end|>|"},
    {"{\"instruction\": \"Add.\", \"input\": \"1 1\", \"output\": \"2\"}", "instruction", true,
     SYSTEM ASK("Add.\n\n1 1") "2<|im_end|>\n", "2<|im_end|>|"},
    {"{\"instruction\": \"Add.\", \"input\": \"\", \"output\": \"2\", \"system\": \"S\"}", "instruction", true,
     "<|im_start|>system\nS<|im_end|>\n" ASK("Add.") "2<|im_end|>\n", "2<|im_end|>|"},
    {"{\"instruction\": \"Add.\", \"input\": \"1 1\", \"output\": \"2\", \"system\": null}", "instruction", false,
     "Add.\n\n1 1\n\n2</s>", "2</s>|"},
    {"{\"instruction\": \"Add.\", \"output\": \"2\", \"system\": \"S\"}", "instruction", false, "S\n\nAdd.\n\n2</s>",
     "2</s>|"},
    {"{\"text\": \"just text\", \"label\": 3}", "text", true, "just text</s>", "ust text</s>|"},
    {"{\"text\": \"<s>text</s>\"}", "text", true, "<s>text</s>", "text</s>|"},
    {"{\"tokens\": [0, 53, 1]}", "tokens", true, "<s>H</s>", NULL},
};

static void each_format(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(format_cases); i++) {
        const FormatCase *k = &format_cases[i];
        DataConfig c = {.template_source = k->chat ? chatml : NULL, .max_tokens = 1024, .path = test_file(k->line)};
        c.model_path = test_no_model();
        Dataset *d = NULL;
        int status = dataset_open(&d, &c, test_tokenizer());
        if (!k->text) {
            assert_int_equal(status, E_INPUT);
            error_clear();
            continue;
        }
        if (status < 0) fail_msg("%s: %s", k->line, error_last()->what);
        assert_string_equal(dataset_format(d), k->format);
        char *text = test_text(dataset_row(d, 0), false), *trained = test_text(dataset_row(d, 0), true);
        if (streq(k->format, "tokens"))
            assert_int_equal(dataset_stats(d).trained_tokens, 2);
        else
            assert_string_equal(text, k->text);
        if (k->trained && !streq(k->format, "text")) assert_string_equal(trained, k->trained);
        if (streq(k->format, "text")) assert_int_equal(dataset_stats(d).trained_tokens, dataset_row(d, 0)->n - 1);
        free(text);
        free(trained);
        dataset_close(d);
    }
}

static void loss_on_all(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    c.loss_on = "all";
    Dataset *d = test_dataset(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"only asked\"}]}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
        &c);
    for (int64_t i = 0; i < 2; i++) {
        const Row *r = dataset_row(d, i);
        assert_int_equal(r->prompt, 1);
        for (int t = 0; t < r->n; t++) assert_int_equal(r->train[t], t > 0);
    }
    dataset_close(d);
    c.scoring = true; // scoring: nothing is appended
    d = test_dataset("{\"prompt\": \"ab\", \"completion\": \" cd\"}\n", &c);
    char *text = test_text(dataset_row(d, 0), false);
    assert_string_equal(text, "ab cd");
    free(text);
    dataset_close(d);
}

// ---- bad lines ------------------------------------------------------------------------------------------------------
#define TURN(role, content) "{\"role\": " role ", \"content\": " content "}"
#define GOOD                "{\"messages\": [" TURN("\"user\"", "\"u\"") ", " TURN("\"assistant\"", "\"a\"") "]}\n"
#define WITH_ANSWER(turn)   "{\"messages\": [" TURN("\"user\"", "\"u\"") ", " turn "]}"

typedef struct BadCase {
    const char *lines;
    int line; // 0: the file
    const char *what;
} BadCase;

static const BadCase bad_cases[] = {
    {"", 0, "no lines"},
    {"\n  \n\t\r\n", 0, "no lines"},
    {"hello", 1, "not JSON"},
    {GOOD "{\"messages\": [", 2, "not JSON"},
    {GOOD "\n\n" GOOD "{} {}", 5, "not JSON"},
    {GOOD "[1, 2]", 2, "not a JSON object"},
    {GOOD "\"text\"", 2, "not a JSON object"},
    {GOOD "null", 2, "not a JSON object"},
    {"{}", 1, "unknown data format; keys: none"},
    {"{\"question\": \"q\", \"answer\": \"a\"}", 1, "keys: \"question\", \"answer\""},
    {"{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}", 1, "preferences"},
    {GOOD "{\"text\": \"t\"}", 2, "no \"messages\""},
    {GOOD "{\"messages\": [], \"messages\": []}", 2, "not JSON: column 27: duplicate object key"},
    {"{\"text\": \"\\u0000\"}", 1, "not JSON"},
    {"{\"text\": \"\\ud800\"}", 1, "not JSON"},
    {"{\"text\": NaN}", 1, "not JSON"},
    {GOOD "{\"text\": \"\xff\"}", 2, "not UTF-8: byte 0xff at column 11"},
    {"{\"text\": \"\xed\xa0\x80\"}", 1, "not UTF-8"},
    {"{\"text\": \"\xc0\xaf\"}", 1, "not UTF-8"},
    {"{\"messages\": {}}", 1, "not a list of messages"},
    {"{\"messages\": null}", 1, "not a list of messages"},
    {"{\"messages\": []}", 1, "\"messages\" is empty"},
    {"{\"messages\": [3]}", 1, "message 1 of \"messages\" is not an object"},
    {WITH_ANSWER("{\"content\": \"x\"}"), 1, "message 2 of \"messages\" has no \"role\""},
    {WITH_ANSWER(TURN("\"bot\"", "\"x\"")), 1, "unknown role \"bot\""},
    {WITH_ANSWER(TURN("3", "\"x\"")), 1, "unknown role \"(not a string)\""},
    {WITH_ANSWER("{\"role\": \"assistant\"}"), 1, "has no \"content\""},
    {WITH_ANSWER(TURN("\"assistant\"", "null")), 1, "null content"},
    {WITH_ANSWER(TURN("\"assistant\"", "\"\"")), 1, "empty content"},
    {WITH_ANSWER(TURN("\"assistant\"", "\" \\n\"")), 1, "empty content"},
    {WITH_ANSWER(TURN("\"assistant\"", "3")), 1, "content that is not a string"},
    {WITH_ANSWER(TURN("\"assistant\"", "[]")), 1, "empty content"},
    {WITH_ANSWER(TURN("\"assistant\"", "[{\"type\": \"image\"}]")), 1, "not text"},
    {WITH_ANSWER("{\"role\": \"assistant\", \"content\": \"x\", \"weight\": 0.5}"), 1, "neither 0 nor 1"},
    {WITH_ANSWER("{\"role\": \"assistant\", \"content\": \"x\", \"weight\": 0}"), 1, "no assistant turn to train on"},
    {GOOD "{\"messages\": [" TURN("\"user\"", "\"u\"") "]}", 2, "no assistant turn to train on"},
    {"{\"messages\": [" TURN("\"user\"", "\"\"") ", " TURN("\"assistant\"", "\"a\"") "]}", 1,
     "message 1 of \"messages\" has empty"},
    {"{\"conversations\": []}", 1, "not a list of turns"},
    {"{\"conversations\": [{\"value\": \"x\"}]}", 1, "turn 1 has no \"from\""},
    {"{\"conversations\": [{\"from\": \"robot\", \"value\": \"x\"}]}", 1, "unknown role \"robot\""},
    {"{\"conversations\": [{\"from\": \"gpt\", \"value\": null}]}", 1, "turn 1 has a null \"value\""},
    {"{\"conversations\": [{\"from\": \"gpt\", \"value\": \"\"}]}", 1, "turn 1 has an empty \"value\""},
    {"{\"prompt\": \"p\"}", 1, "no \"completion\""},
    {"{\"prompt\": \"p\", \"completion\": \"\"}", 1, "\"completion\" is empty"},
    {"{\"prompt\": \"\", \"completion\": \"c\"}", 1, "\"prompt\" is empty"},
    {"{\"prompt\": 1, \"completion\": \"c\"}", 1, "\"prompt\" is not a string"},
    {"{\"prompt\": [" TURN("\"user\"", "\"u\"") "], \"completion\": [" TURN("\"user\"", "\"u\"") "]}", 1,
     "no assistant turn"},
    {"{\"instruction\": \"i\"}", 1, "no \"output\""},
    {"{\"instruction\": \"i\", \"output\": null}", 1, "\"output\" is not a string"},
    {"{\"instruction\": \"i\", \"output\": \"o\", \"input\": 3}", 1, "\"input\" is not a string"},
    {"{\"instruction\": \"i\", \"output\": \"o\", \"history\": [[\"a\", \"b\"]]}", 1, "\"history\" is not supported"},
    {"{\"text\": \"\"}", 1, "\"text\" is empty"},
    {"{\"text\": 5}", 1, "\"text\" is not a string"},
    {"{\"tokens\": 5}", 1, "not a list of ids"},
    {"{\"tokens\": []}", 1, "no tokens"},
    {"{\"tokens\": [5]}\n{\"tokens\": [6]}", 0, "trains zero tokens"},
    {"{\"tokens\": [1, 2]}\n{\"tokens\": [1, -1]}", 2, "token 1 is -1"},
    {"{\"tokens\": [1, 400]}", 1, "the model has ids 0 to 399"},
    {"{\"tokens\": [1, 2.0]}", 1, "token 1 is not an integer"},
    {"{\"tokens\": [1, \"2\"]}", 1, "token 1 is not an integer"},
    {"{\"tokens\": [1, 99999999999]}", 1, "token 1 is 99999999999"},
};

static void check_refused(const char *path, const DataConfig *config, const Tokenizer *tok, int line, const char *what)
{
    DataConfig c = *config;
    Dataset *d = NULL;
    c.path = path;
    int status = dataset_open(&d, &c, tok);
    const ErrorRecord *e = error_last();
    const char *place = line < 0 ? e->place : line ? tmpf("%s:%d", path, line) : path; // -1: anywhere
    if (status != E_INPUT || !streq(e->place, place) || !strstr(e->what, what))
        fail_msg("status %d, %s: %s, expected %s: %s", status, e->place, e->what, place, what);
    error_clear();
}

static void bad_lines(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    c.vocab = 400;
    for (int threads = 1; threads <= 4; threads += 3) {
        c.threads = threads;
        for (size_t i = 0; i < COUNT_OF(bad_cases); i++)
            check_refused(test_file(bad_cases[i].lines), &c, test_tokenizer(), bad_cases[i].line, bad_cases[i].what);
    }
}

static void bad_files(void **state)
{
    (void)state;
    DataConfig c = chat_config(), bare = {.max_tokens = 100, .model_path = test_no_model()};
    const char nul[] = "{\"text\": \"a\0b\"}";
    check_refused("/nonexistent/file.jsonl", &c, test_tokenizer(), 0, "cannot open");
    check_refused("/tmp", &c, test_tokenizer(), 0, "not a regular file");
    check_refused(test_file_bytes(nul, sizeof nul - 1), &c, test_tokenizer(), 1, "a NUL byte at column 12");
    check_refused(test_file("{\"text\": \"a\"}"), &bare, NULL, 1, "no tokenizer");
    bare.vocab = 20;
    check_refused(test_file("{\"text\": \"a\"}"), &bare, test_tokenizer(), 1, "the model has ids 0 to 19");
    c.template_source = NULL;
    c.model_path = test_no_model();
    check_refused(test_file(GOOD), &c, test_tokenizer(), 1, "no chat template");
    c.template_source = "{% for broken %}";
    check_refused(test_file("{\"instruction\": \"i\", \"output\": \"o\"}"), &c, test_tokenizer(), -1, "");
    dataset_close(test_dataset("{\"text\": \"needs no template\"}", &c));
    c.template_source = "{{ raise_exception('not like this') }}";
    check_refused(test_file(GOOD), &c, test_tokenizer(), 1, "not like this");
    c.template_source = "{% for message in messages %}{{ message.content | upper }}{% endfor %}";
    check_refused(test_file(GOOD), &c, test_tokenizer(), 1, "the assistant turn");
    c.template_source =
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}";
    check_refused(test_file(GOOD), &c, test_tokenizer(), 1, "drops an assistant turn");
}

static void hostile_lines(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    Buf b = {0};
    buf_puts(&b, "{\"text\": \"a\"}\n{\"text\": \"x\", \"deep\": ");
    for (int i = 0; i < 100000; i++) buf_puts(&b, "[");
    check_refused(test_file(b.data), &c, test_tokenizer(), 2, "nested deeper");
    b.len = 0;
    buf_puts(&b, "{\"text\": \"a\"}\n{\"text\": \"");
    char *kib = xmalloc(1024);
    memset(kib, 'a', 1024);
    for (int i = 0; i < 16 * 1024; i++) buf_put(&b, kib, 1024);
    buf_puts(&b, "\"}\n");
    check_refused(test_file(b.data), &c, test_tokenizer(), 2, "longer than 16 MiB");
    b.len -= 3; // without an end, and longer than any block
    for (int i = 0; i < 16 * 1024; i++) buf_put(&b, kib, 1024);
    check_refused(test_file(b.data), &c, test_tokenizer(), 2, "longer than 16 MiB");
    free(kib);
    buf_free(&b);
}

// ---- what is tolerated ----------------------------------------------------------------------------------------------
static void line_endings(void **state)
{
    (void)state;
    static const char *const files[] = {
        "{\"tokens\": [1, 2]}\n{\"tokens\": [1, 3]}\n",
        "\xEF\xBB\xBF{\"tokens\": [1, 2]}\r\n\r\n{\"tokens\": [1, 3]}",
        "\n \n\t{\"tokens\": [1, 2]} \n\n{\"tokens\": [1, 3], \"x\": \"\\\"[[{\"}\n\n\n",
    };
    static const int64_t lines[][2] = {{1, 2}, {1, 3}, {3, 5}};
    uint64_t digest = 0;
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        DataConfig c = {.max_tokens = 10};
        Dataset *d = test_dataset(files[i], &c);
        assert_int_equal(dataset_rows(d), 2);
        for (int64_t r = 0; r < 2; r++) assert_int_equal(dataset_row(d, r)->line, lines[i][r]);
        if (i) assert_true(dataset_digest(d) == digest);
        digest = dataset_digest(d);
        dataset_close(d);
    }
}

static void long_rows(void **state)
{
    (void)state;
    const char *lines = "{\"tokens\": [1, 2, 3, 4, 5, 6]}\n{\"tokens\": [1, 2]}\n{\"tokens\": [1, 2, 3, 4, 5, 7]}\n";
    DataConfig c = {.max_tokens = 4};
    Dataset *d = test_dataset(lines, &c);
    RowStats s = dataset_stats(d);
    assert_true(s.rows == 1 && s.dropped_long == 2 && s.line_dropped == 1 && s.cut_long == 0 && s.longest == 2);
    assert_int_equal(dataset_row(d, 0)->line, 2);
    dataset_close(d);
    c.overlong = "cut";
    d = test_dataset(lines, &c);
    s = dataset_stats(d);
    assert_true(s.rows == 3 && s.dropped_long == 0 && s.cut_long == 2 && s.line_cut == 1 && s.longest == 4);
    assert_true(s.tokens == 10 && s.trained_tokens == 7);
    assert_true(s.duplicates == 1 && s.line_duplicate == 3); // the cut rows are equal now
    dataset_close(d);
    c = chat_config();
    c.max_tokens = 5;
    check_refused(test_file(GOOD), &c, test_tokenizer(), 0, "no rows left: all 1 are longer than 5 tokens");
}

// A row whose answer would be cut off altogether is dropped; one that loses only the end of its answer is cut.
static void long_conversations(void **state)
{
    (void)state;
    static const char *const row = "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}, "
                                   "{\"role\": \"assistant\", \"content\": \"%s\"}]}\n";
    char words[401];
    Buf lines = {0};
    for (int i = 0; i < 400; i++) words[i] = i % 2 ? 'q' : ' ';
    words[400] = 0;
    buf_printf(&lines, row, "u", "a");
    buf_printf(&lines, row, words, "a");
    buf_printf(&lines, row, "u", words);
    DataConfig c = chat_config();
    c.overlong = "cut";
    c.max_tokens = 100;
    Dataset *d = test_dataset(lines.data, &c);
    RowStats s = dataset_stats(d);
    assert_true(s.rows == 2 && s.dropped_long == 1 && s.line_dropped == 2 && s.cut_long == 1 && s.line_cut == 3);
    assert_int_equal(s.endless, 0); // a cut answer is no fault of the template
    assert_int_equal(dataset_row(d, 1)->n, 100);
    dataset_close(d);
    buf_free(&lines);
}

// A lone id is a row that trains nothing: kept, counted, and refused only where no row trains anything.
static void lone_ids(void **state)
{
    (void)state;
    const char *lines = "{\"tokens\": [5]}\n{\"tokens\": [5, 6]}\n{\"tokens\": [7]}\n";
    DataConfig c = {.max_tokens = 8};
    Dataset *d = test_dataset(lines, &c);
    RowStats s = dataset_stats(d);
    assert_true(s.rows == 3 && s.trained_tokens == 1 && s.untrained == 2 && s.line_untrained == 1);
    const Row *r = dataset_row(d, 0);
    assert_true(r->n == 1 && r->prompt == 1 && !r->trained && !r->train[0]);
    dataset_close(d);
    c.scoring = true;
    d = test_dataset("{\"tokens\": [5]}\n", &c);
    assert_int_equal(dataset_stats(d).untrained, 1);
    dataset_close(d);
}

static void findings(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    Dataset *d =
        test_dataset("{\"prompt\": \"<s><s>a\", \"completion\": \" b\"}\n{\"prompt\": \"a\", \"completion\": \" b\"}\n"
                     "{\"prompt\": \"a\", \"completion\": \" b\"}\n{\"prompt\": \"assis\", \"completion\": \"tant\"}\n"
                     "{\"prompt\": \"th\", \"completion\": \"e\"}\n",
                     &c);
    RowStats s = dataset_stats(d);
    assert_true(s.double_bos == 1 && s.line_double_bos == 1 && s.duplicates == 1 && s.line_duplicate == 3 &&
                s.endless == 0);
    assert_true(s.straddling == 1 && s.line_straddling == 4); // "assistant" is one token, and not trained
    char *trained = test_text(dataset_row(d, 3), true);
    assert_string_equal(trained, "</s>|");
    free(trained);
    dataset_close(d);
    char *endless = test_template("no-end-of-turn.jinja");
    c.template_source = endless;
    d = test_dataset(GOOD GOOD, &c);
    s = dataset_stats(d);
    assert_true(s.endless == 2 && s.line_endless == 1);
    dataset_close(d);
    free(endless);
}

// ---- prompts and lines ----------------------------------------------------------------------------------------------
static void check_prompt(const Dataset *d, int64_t i, const char *text, const char *reference)
{
    const int32_t *ids;
    const char *answer;
    int n;
    Buf got = {0};
    assert_int_equal(dataset_prompt(d, i, &ids, &n, &answer), OK);
    assert_int_equal(tokenizer_decode(test_tokenizer(), ids, n, false, &got), OK);
    assert_string_equal(got.data, text);
    if (reference)
        assert_string_equal(answer, reference);
    else
        assert_null(answer);
    buf_free(&got);
}

static void prompts(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    Dataset *d = test_dataset(GOOD "{\"messages\": [" TURN("\"user\"", "\"x\"") ", " TURN(
                                  "\"assistant\"", "\" y \"") ", " TURN("\"user\"", "\"thanks\"") "]}\n",
                              &c);
    check_prompt(d, 0, SYSTEM ASK("u"), "a");
    check_prompt(d, 1, SYSTEM ASK("x"), " y ");
    check_prompt(d, 0, SYSTEM ASK("u"), "a"); // remembered
    dataset_close(d);
    c.allow_prompt_only = true;
    d = test_dataset("{\"messages\": [" TURN("\"user\"", "\"x\"") ", " TURN("\"assistant\"", "\"y\"") ", " TURN(
                         "\"user\"", "\"z\"") "]}\n" GOOD,
                     &c);
    check_prompt(d, 0, SYSTEM ASK("x") "y<|im_end|>\n" ASK("z"), NULL);
    check_prompt(d, 1, SYSTEM ASK("u"), "a");
    assert_int_equal(dataset_row(d, 0)->prompt, dataset_row(d, 0)->n);
    dataset_close(d);
    d = test_dataset("{\"prompt\": \"Once\"}\n{\"prompt\": \"Twice\", \"completion\": \" upon\"}\n", &c);
    check_prompt(d, 0, "Once", NULL);
    check_prompt(d, 1, "Twice", " upon");
    dataset_close(d);
    d = test_dataset(
        "{\"instruction\": \"Do.\"}\n{\"instruction\": \"Do.\", \"input\": \"it\", \"output\": \"Done.\"}\n", &c);
    check_prompt(d, 0, SYSTEM ASK("Do."), NULL);
    check_prompt(d, 1, SYSTEM ASK("Do.\n\nit"), "Done.");
    dataset_close(d);
    d = test_dataset("{\"prompt\": [" TURN("\"user\"", "\"u\"") "]}\n", &c);
    check_prompt(d, 0, SYSTEM ASK("u"), NULL);
    dataset_close(d);
    static const char *const without[] = {"{\"text\": \"t\"}", "{\"tokens\": [1, 2]}"};
    for (size_t i = 0; i < COUNT_OF(without); i++) {
        const int32_t *ids;
        int n;
        d = test_dataset(without[i], &c);
        assert_int_equal(dataset_prompt(d, 0, &ids, &n, NULL), E_INPUT);
        error_clear();
        dataset_close(d);
    }
}

static void lines_read_back(void **state)
{
    (void)state;
    const char *first = "{\"tokens\": [1, 2], \"id\": \"one\"}", *second = "{\"tokens\": [1, 3], \"id\": \"two\"}";
    DataConfig c = {.max_tokens = 10};
    Dataset *d = test_dataset(tmpf("\xEF\xBB\xBF%s\r\n\n%s", first, second), &c);
    size_t bytes;
    assert_string_equal(dataset_line(d, 0, &bytes), first);
    assert_int_equal(bytes, strlen(first));
    test_file("{\"tokens\": [1, 2]}\n"); // rewritten in place
    assert_string_equal(dataset_line(d, 0, &bytes), first);
    assert_null(dataset_line(d, 1, &bytes));
    assert_non_null(strstr(error_last()->what, "has changed"));
    error_clear();
    dataset_close(d);
}

// ---- many rows ------------------------------------------------------------------------------------------------------
static void threads_do_not_matter(void **state)
{
    (void)state;
    Buf lines = {0};
    for (int i = 0; i < 3000; i++)
        buf_printf(
            &lines,
            "{\"messages\": [" TURN("\"user\"", "\"question %d\"") ", " TURN("\"assistant\"", "\"answer %d\"") "]}\n",
            i % 1000, i * i % 1000);
    DataConfig c = chat_config();
    Dataset *d[2];
    for (int i = 0; i < 2; i++) {
        c.threads = 1 + 3 * i;
        d[i] = test_dataset(lines.data, &c);
    }
    RowStats a = dataset_stats(d[0]), b = dataset_stats(d[1]);
    assert_int_equal(a.rows, 3000);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(dataset_digest(d[0]) == dataset_digest(d[1]));
    for (int i = 0; i < 2; i++) dataset_close(d[i]);
    buf_free(&lines);
}

// Lines that lie across blocks, and one that is longer than a block: each is found where it stands.
static void files_of_many_blocks(void **state)
{
    (void)state;
    Buf lines = {0};
    size_t start[64], end[64];
    for (int i = 0; i < 64; i++) {
        start[i] = lines.len;
        buf_printf(&lines, "{\"tokens\": [1, %d], \"rest\": \"", i);
        for (int k = 0; k < (i == 40 ? 400000 : 6000 + 997 * i % 4000); k++) buf_puts(&lines, "0123456789");
        buf_puts(&lines, "\"}");
        end[i] = lines.len;
        buf_puts(&lines, i % 3 ? "\n" : "\r\n\n");
    }
    DataConfig c = {.max_tokens = 10};
    Dataset *d = test_dataset(lines.data, &c);
    assert_int_equal(dataset_rows(d), 64);
    for (int i = 0; i < 64; i++) {
        size_t bytes;
        const char *line = dataset_line(d, i, &bytes);
        assert_int_equal(dataset_row(d, i)->ids[1], i);
        assert_non_null(line);
        assert_int_equal(bytes, end[i] - start[i]);
        assert_memory_equal(line, lines.data + start[i], bytes);
    }
    dataset_close(d);
    buf_free(&lines);
}

static void digest_sees_ids_and_masks(void **state)
{
    (void)state;
    DataConfig c = chat_config();
    uint64_t digest[3];
    for (int i = 0; i < 3; i++) {
        c.loss_on = i == 1 ? "all" : "completion";
        Dataset *d = test_dataset(
            i == 2 ? "{\"prompt\": \"a\", \"completion\": \" c\"}" : "{\"prompt\": \"a\", \"completion\": \" b\"}", &c);
        digest[i] = dataset_digest(d);
        dataset_close(d);
    }
    assert_true(digest[0] != digest[2]);
    c.loss_on = "completion";
    Dataset *d = test_dataset("{\"prompt\": \"a b\", \"completion\": \" c\"}", &c);
    uint64_t completion = dataset_digest(d);
    dataset_close(d);
    c.loss_on = "all";
    d = test_dataset("{\"prompt\": \"a b\", \"completion\": \" c\"}", &c);
    assert_true(dataset_digest(d) != completion);
    dataset_close(d);
}

static void help_names_every_format(void **state)
{
    (void)state;
    static const char *const names[] = {"messages", "conversations", "completion", "instruction", "tokens", "text"};
    Buf help = {0};
    dataset_formats_help(&help);
    for (size_t i = 0; i < COUNT_OF(names); i++) assert_non_null(strstr(help.data, names[i]));
    buf_free(&help);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_format),
        cmocka_unit_test(loss_on_all),
        cmocka_unit_test(bad_lines),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(hostile_lines),
        cmocka_unit_test(line_endings),
        cmocka_unit_test(long_rows),
        cmocka_unit_test(long_conversations),
        cmocka_unit_test(lone_ids),
        cmocka_unit_test(findings),
        cmocka_unit_test(prompts),
        cmocka_unit_test(lines_read_back),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(files_of_many_blocks),
        cmocka_unit_test(digest_sees_ids_and_masks),
        cmocka_unit_test(help_names_every_format),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
