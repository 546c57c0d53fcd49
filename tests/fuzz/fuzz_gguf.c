// fuzz: libs=runtime_io
// Any bytes after the magic of a GGUF file: no crash; of what is accepted every tensor's ends can be read, and every key the
// model and the tokenizer ask for is JSON.
#define _GNU_SOURCE
#include "io/weights.h"
#include <jansson.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *file_with(const uint8_t *data, size_t bytes)
{
    static int fd = -1;
    if (fd < 0) fd = memfd_create("input", 0);
    ASSERT(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, "GGUF", 4, 0) == 4);
    ASSERT(pwrite(fd, data, bytes, 4) == (ssize_t)bytes);
    return tmpf("/proc/self/fd/%d", fd);
}

static void read_ends(Weights *w, int i)
{
    const TensorInfo *t = weights_info(w, i);
    int64_t rows = t->ndim ? t->shape[0] : 1;
    float *row = malloc(t->bytes * 16 + 1); // Q2_K: 256 elements in 84 bytes, Q1_0: 128 in 18
    if (weights_read(w, i, 0, 1, DT_F32, row) == OK) weights_read(w, i, rows - 1, 1, DT_BF16, row);
    free(row);
}

static void read_key(const Weights *w, const char *key)
{
    char *text = weights_meta_json(w, key);
    json_t *value = text ? json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
    json_decref(value);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const keys[] = {"general.architecture",
                                       "tokenizer.ggml.tokens",
                                       "tokenizer.ggml.scores",
                                       "tokenizer.ggml.token_type",
                                       "t.bools",
                                       "t.string",
                                       "t.f64",
                                       "t.i64"};
    Weights *w;
    error_clear();
    if (weights_open(&w, file_with(data, bytes)) < 0) {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0]);
        return 0;
    }
    for (int i = 0; i < weights_count(w); i++) {
        ASSERT(weights_find(w, weights_info(w, i)->name) == i);
        read_ends(w, i);
    }
    for (size_t k = 0; k < COUNT_OF(keys); k++) read_key(w, keys[k]);
    weights_close(w);
    return 0;
}
