// weights_file: bounded reading of foreign files, and tables of names. Knows nothing of what is in them.
#include "io/weights_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int source_open(Source *s, const char *path)
{
    *s = (Source){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)}; // a pipe of that name must not block us
    if (s->fd < 0) return fail_errno(path, "cannot open");
    struct stat st;
    if (fstat(s->fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(s->fd);
        s->fd = -1;
        return fail(E_INPUT, path, NULL, "not a regular file");
    }
    s->path = xstrdup(path);
    s->bytes = (uint64_t)st.st_size;
    return OK;
}

void source_close(Source *s)
{
    if (s->fd >= 0) close(s->fd);
    free(s->path);
    *s = (Source){.fd = -1};
}

int source_read(const Source *s, uint64_t at, void *dst, size_t bytes)
{
    char *to = dst;
    while (bytes) {
        ssize_t n = pread(s->fd, to, bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(s->path, "cannot read");
        if (n == 0)
            return fail(E_INPUT, s->path, "fetch or copy the file again", "ends at byte %llu, %zu more are needed",
                        (unsigned long long)at, bytes);
        to += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return OK;
}

static int reader_fill(Reader *r, size_t bytes)
{
    enum { WINDOW = 1 << 16 };
    size_t want = (size_t)MIN(MAX(bytes, (size_t)WINDOW), reader_left(r));
    if (want > r->window_cap) {
        free(r->window); // what it held is read anew: takes are small, or happen once
        r->window = xmalloc(want);
        r->window_cap = want;
    }
    r->window_bytes = 0;
    TRY(source_read(r->source, r->at, r->window, want));
    r->window_at = r->at;
    r->window_bytes = want;
    return OK;
}

int reader_take(Reader *r, uint64_t bytes, const uint8_t **out)
{
    if (bytes > reader_left(r))
        return fail(E_INPUT, r->source->path, "the file is cut short or damaged: fetch or copy it again",
                    "ends at byte %llu, %llu bytes are needed at byte %llu", (unsigned long long)r->source->bytes,
                    (unsigned long long)bytes, (unsigned long long)r->at);
    bool held = r->at >= r->window_at && r->at - r->window_at <= r->window_bytes &&
                bytes <= r->window_bytes - (r->at - r->window_at);
    if (!held) TRY(reader_fill(r, (size_t)bytes));
    *out = r->window + (r->at - r->window_at);
    r->at += bytes;
    return OK;
}

void reader_free(Reader *r)
{
    free(r->window);
    *r = (Reader){0};
}

// ---- names ----------------------------------------------------------------------------------------------------------
static int compare_refs(const void *a, const void *b)
{
    const NameRef *x = a, *y = b;
    return strcmp(x->name, y->name);
}

const char *names_sort(NameTable *t, NameRef *ref, int n)
{
    *t = (NameTable){.ref = ref, .n = n};
    if (n) qsort(ref, (size_t)n, sizeof *ref, compare_refs);
    for (int i = 1; i < n; i++)
        if (streq(ref[i - 1].name, ref[i].name)) return ref[i].name;
    return NULL;
}

int names_find(const NameTable *t, const char *name)
{
    NameRef key = {.name = name};
    const NameRef *found = t->n ? bsearch(&key, t->ref, (size_t)t->n, sizeof key, compare_refs) : NULL;
    return found ? found->i : -1;
}

bool name_ok(const char *name, size_t bytes, size_t limit)
{
    if (bytes == 0 || bytes > limit || !utf8_valid(name, bytes, NULL)) return false;
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    return true;
}
