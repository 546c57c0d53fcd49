// fuzz: libs=runtime_io
// Any bytes as a .safetensors file: no crash, and what is accepted covers the file exactly and can be read to its last row.
#define _GNU_SOURCE
#include "io/weights.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *file_with(const uint8_t *data, size_t bytes)
{
    static int fd = -1;
    if (fd < 0) fd = memfd_create("input", 0);
    ASSERT(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    return tmpf("/proc/self/fd/%d", fd);
}

static void read_last_row(Weights *w, int i)
{
    const TensorInfo *t = weights_info(w, i);
    int64_t rows = t->ndim ? t->shape[0] : 1;
    float *row = malloc(t->bytes * 4 + 1); // no type has more than four bytes of f32 per byte stored
    if (rows && weights_read(w, i, rows - 1, 1, DT_F32, row) == OK) weights_read(w, i, rows - 1, 1, DT_BF16, row);
    free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Weights *w;
    error_clear();
    if (weights_open(&w, file_with(data, bytes)) < 0) {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0]);
        return 0;
    }
    ASSERT(weights_total_bytes(w) <= bytes - 8);
    for (int i = 0; i < weights_count(w); i++) {
        ASSERT(weights_find(w, weights_info(w, i)->name) == i);
        read_last_row(w, i);
    }
    free(weights_meta_json(w, "format"));
    weights_close(w);
    return 0;
}
