#include "gather.h"
#include <stdlib.h>
#include <string.h>

// This rank's lines, each behind its number: "17 {...}\n".
static void put_mine(char *const *lines, int64_t total, Buf *out)
{
    for (int64_t i = 0; i < total; i++)
        if (lines[i]) buf_printf(out, "%lld %s", (long long)i, lines[i]);
}

// Remembers where each numbered line of a rank's bytes is.
static void index_lines(char *data, size_t bytes, const char **at, size_t *length, int64_t total)
{
    for (char *end = data + bytes; data < end;) {
        char *text;
        int64_t i = strtoll(data, &text, 10);
        char *newline = memchr(text, '\n', (size_t)(end - text));
        ASSERT(newline && i >= 0 && i < total);
        at[i] = text + 1;
        length[i] = (size_t)(newline - text);
        data = newline + 1;
    }
}

int gather_lines(Session *s, char *const *lines, int64_t total, const char *path)
{
    Comm *c = s->mesh.data;
    const int size = comm_size(c);
    void **data = xcalloc((size_t)size, sizeof *data);
    const char **at = xcalloc((size_t)total + 1, sizeof *at);
    size_t *length = xcalloc((size_t)total + 1, sizeof *length);
    int status = OK;
    for (int r = 0; r < size && status == OK; r++) {
        Buf mine = {0};
        if (r == comm_rank(c)) put_mine(lines, total, &mine);
        data[r] = mine.data ? mine.data : xstrdup("");
        size_t bytes = mine.len;
        char *held = data[r];
        status = comm_broadcast_blob(c, &data[r], &bytes, r);
        if (data[r] != held) free(held);
        if (status == OK) index_lines(data[r], bytes, at, length, total);
    }
    if (status == OK && comm_rank(s->mesh.world) == 0) {
        Buf all = {0};
        for (int64_t i = 0; i < total; i++)
            if (at[i]) buf_put(&all, at[i], length[i]);
        status = file_write_atomic(path, all.data ? all.data : "", all.len);
        buf_free(&all);
    }
    for (int r = 0; r < size; r++) free(data[r]);
    free(data);
    free(at);
    free(length);
    return comm_agree(s->mesh.world, status);
}
