// safetensors_write: one .safetensors file, byte for byte as the safetensors library writes the same tensors: by dtype (wide
// integers and floats first, so that every tensor is aligned), then by name; header padded with spaces to 8 bytes.
// Reading: safetensors.c.
#include "io/weights.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SLICE_BYTES = 1 << 20 };

static const struct {
    const char *name;
    int rank; // the library's order of dtypes
} dtypes[DT_COUNT] = {[DT_F32] = {"F32", 5}, [DT_BF16] = {"BF16", 3}, [DT_F16] = {"F16", 2},
                      [DT_I64] = {"I64", 6}, [DT_I32] = {"I32", 4},   [DT_U8] = {"U8", 1}};

static int compare_tensors(const void *a, const void *b)
{
    const TensorOut *x = *(const TensorOut *const *)a, *y = *(const TensorOut *const *)b;
    if (dtypes[x->t].rank != dtypes[y->t].rank) return dtypes[y->t].rank - dtypes[x->t].rank;
    return strcmp(x->name, y->name);
}

static size_t row_bytes(const TensorOut *t)
{
    size_t n = dtype_size(t->t);
    for (int d = 1; d < t->ndim; d++) n *= (size_t)t->shape[d];
    return n;
}

static int64_t row_count(const TensorOut *t)
{
    return t->ndim ? t->shape[0] : 1;
}

// Length, JSON and padding.
static void put_header(Buf *b, const TensorOut *const *order, int n)
{
    uint64_t at = 0;
    buf_put(b, "\0\0\0\0\0\0\0\0", 8);
    buf_puts(b, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n; i++) {
        const TensorOut *t = order[i];
        uint64_t end = at + row_bytes(t) * (uint64_t)row_count(t);
        buf_puts(b, ",");
        buf_json_string(b, t->name, strlen(t->name));
        buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[t->t].name);
        for (int d = 0; d < t->ndim; d++) buf_printf(b, d ? ",%lld" : "%lld", (long long)t->shape[d]);
        buf_printf(b, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)end);
        at = end;
    }
    buf_puts(b, "}");
    while (b->len % 8) buf_puts(b, " ");
    for (int i = 0; i < 8; i++) b->data[i] = (char)((uint64_t)(b->len - 8) >> (8 * i));
}

static int write_bytes(int fd, const char *path, const void *data, size_t bytes)
{
    return file_write_all(fd, data, bytes) < 0 ? fail_errno(path, "cannot write") : OK;
}

static int write_tensor(int fd, const char *path, const TensorOut *t, void **slice, size_t *slice_cap)
{
    size_t row = row_bytes(t);
    int64_t rows = row_count(t), at_once = (int64_t)MAX(1, SLICE_BYTES / MAX(row, 1));
    if (row == 0) return OK;
    if (*slice_cap < row * (size_t)MIN(at_once, rows)) {
        *slice_cap = row * (size_t)at_once;
        *slice = xrealloc(*slice, *slice_cap);
    }
    for (int64_t row0 = 0; row0 < rows; row0 += at_once) {
        int64_t k = MIN(at_once, rows - row0);
        TRY(t->read(t->ctx, row0, k, *slice));
        TRY(write_bytes(fd, path, *slice, row * (size_t)k));
    }
    return OK;
}

static int write_file(int fd, const char *path, const TensorOut *const *order, int n)
{
    Buf header = {0};
    void *slice = NULL;
    size_t slice_cap = 0;
    int status = OK;
    put_header(&header, order, n);
    TRY_DONE(write_bytes(fd, path, header.data, header.len));
    for (int i = 0; i < n; i++) TRY_DONE(write_tensor(fd, path, order[i], &slice, &slice_cap));
    if (fsync(fd) < 0) status = fail_errno(path, "cannot flush to the disk");
done:
    free(slice);
    buf_free(&header);
    return status;
}

static const TensorOut **in_order(const TensorOut *tensors, int n)
{
    const TensorOut **order = xmalloc(sizeof *order * (size_t)MAX(n, 1));
    for (int i = 0; i < n; i++) order[i] = &tensors[i];
    if (n) qsort(order, (size_t)n, sizeof *order, compare_tensors);
    return order;
}

uint64_t safetensors_bytes(const TensorOut *tensors, int n)
{
    const TensorOut **order = in_order(tensors, n);
    Buf header = {0};
    put_header(&header, order, n);
    uint64_t bytes = header.len;
    for (int i = 0; i < n; i++) bytes += row_bytes(order[i]) * (uint64_t)row_count(order[i]);
    buf_free(&header);
    free(order);
    return bytes;
}

int safetensors_write(const char *path, const TensorOut *tensors, int n)
{
    const TensorOut **order = in_order(tensors, n);
    char *beside = xasprintf("%s.tmp-%ld", path, (long)getpid());
    int status, fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    status = fd < 0 ? fail_errno(path, "cannot create") : write_file(fd, path, order, n);
    if (fd >= 0 && close(fd) < 0 && status == OK) status = fail_errno(path, "cannot close");
    if (status == OK && rename(beside, path) < 0) status = fail_errno(path, "cannot rename into place");
    if (status == OK && file_sync_parent(path) < 0) status = fail_errno(path, "cannot flush the directory to the disk");
    if (status < 0 && fd >= 0) unlink(beside);
    free(beside);
    free(order);
    return status;
}
