// fuzz: libs=runtime_data
// Any bytes as a data file. What is accepted keeps the promises of data.h, on one thread and on two.
#define _GNU_SOURCE
#include "data/data.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// Bytes a to z, one merge, and the special tokens of the template: enough to reach every branch of the masks.
static const char tokenizer_json[] =
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"u\": 3, \"s\": 4, \"ab\": 5, "
    "\"\\u010a\": 6},"
    " \"merges\": [[\"a\", \"b\"]]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
    " \"decoder\": {\"type\": \"ByteLevel\"},"
    " \"added_tokens\": [{\"id\": 7, \"content\": \"<|s|>\", \"special\": true}, {\"id\": 8, \"content\": \"<|e|>\", "
    "\"special\": true}]}";
static const char template[] = "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content | trim }}{% for c in "
                               "m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
                               "<|e|>\n{% endfor %}{% if add_generation_prompt %}<|s|>assistant\n{% endif %}";

static void check(const Dataset *d)
{
    RowStats s = dataset_stats(d);
    int64_t tokens = 0, trained = 0, untrained = 0;
    bool ready_ids = !strcmp(dataset_format(d), "tokens");
    ASSERT(s.rows > 0 && s.rows == dataset_rows(d) && s.trained_tokens > 0);
    for (int64_t i = 0; i < s.rows; i++) {
        const Row *r = dataset_row(d, i);
        ASSERT(r->n > 0 && r->n <= 64 && !r->train[0] && r->prompt > 0);
        if (r->trained)
            ASSERT(r->prompt < r->n && r->train[r->prompt]);
        else
            ASSERT(ready_ids && r->n == 1 && r->prompt == 1);
        untrained += !r->trained;
        for (int t = 0; t < r->n; t++) {
            ASSERT(r->ids[t] >= 0);
            trained += r->train[t];
        }
        tokens += r->n;
        const int32_t *ids;
        const char *reference;
        int n;
        if (dataset_prompt(d, i, &ids, &n, &reference) < 0) error_clear();
    }
    ASSERT(tokens == s.tokens && trained == s.trained_tokens && untrained == s.untrained);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static Tokenizer *tok;
    if (!tok) ASSERT(tokenizer_open_json(&tok, tokenizer_json, strlen(tokenizer_json), "tokenizer.json") == OK);
    int fd = memfd_create("lines", MFD_CLOEXEC);
    ASSERT(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    uint64_t digest[2] = {0};
    for (int i = 0; i < 2; i++) {
        DataConfig c = {.path = tmpf("/proc/self/fd/%d", fd),
                        .overlong = "cut",
                        .max_tokens = 64,
                        .vocab = 9,
                        .template_source = template,
                        .threads = 1 + i};
        Dataset *d = NULL;
        error_clear();
        if (dataset_open(&d, &c, tok) == OK) {
            check(d);
            digest[i] = dataset_digest(d);
        }
        dataset_close(d);
    }
    ASSERT(digest[0] == digest[1]);
    close(fd);
    return 0;
}
