// comm_staged: memory of a device exchanged through the host's, for devices that have no wire of their own between the ranks: fetched,
// exchanged by the group's own collectives, and put back. Slower than any wire, but it goes anywhere MPI does.
#include "comm_impl.h"
#include <stdlib.h>

typedef struct Staged {
    const Comm *c;
    Device *d;
    char *host; // grows to the largest payload
    size_t bytes;
} Staged;

static int staged_open(void **out, Comm *c, Device *d)
{
    Staged *s = xcalloc(1, sizeof *s);
    *s = (Staged){.c = c, .d = d};
    *out = s;
    return OK;
}

static void staged_close(void *impl)
{
    Staged *s = impl;
    free(s->host);
    free(s);
}

static char *room(Staged *s, size_t bytes)
{
    if (bytes > s->bytes) {
        free(s->host);
        s->host = xmalloc(s->bytes = bytes);
    }
    return s->host;
}

static int staged_all_reduce(void *impl, void *x, size_t count, DType t, ReduceOp op)
{
    Staged *s = impl;
    const size_t bytes = count * dtype_size(t);
    char *host = room(s, bytes);
    TRY(s->d->download(s->d, host, x, bytes));
    TRY(s->c->ops->all_reduce((Comm *)s->c, host, count, t, op));
    return s->d->upload(s->d, x, host, bytes);
}

// host stands for all of x from start[0] on; elements before that are no concern of the call.
static int staged_all_gather(void *impl, void *x, const size_t *start, DType t)
{
    Staged *s = impl;
    const size_t size = dtype_size(t), base = start[0] * size, bytes = start[s->c->size] * size - base;
    const size_t own = start[s->c->rank] * size, own_bytes = start[s->c->rank + 1] * size - own;
    char *host = room(s, bytes) - base;
    if (own_bytes) TRY(s->d->download(s->d, host + own, (char *)x + own, own_bytes));
    TRY(s->c->ops->all_gather_parts((Comm *)s->c, host, start, t));
    return s->d->upload(s->d, (char *)x + base, host + base, bytes);
}

static int staged_reduce_scatter(void *impl, void *x, const size_t *start, DType t)
{
    Staged *s = impl;
    const size_t size = dtype_size(t), base = start[0] * size, bytes = start[s->c->size] * size - base;
    const size_t own = start[s->c->rank] * size, own_bytes = start[s->c->rank + 1] * size - own;
    char *host = room(s, bytes) - base;
    TRY(s->d->download(s->d, host + base, (char *)x + base, bytes));
    TRY(s->c->ops->reduce_scatter_parts((Comm *)s->c, host, start, t));
    return own_bytes ? s->d->upload(s->d, (char *)x + own, host + own, own_bytes) : OK;
}

static int staged_broadcast(void *impl, void *x, size_t bytes, int root)
{
    Staged *s = impl;
    char *host = room(s, bytes);
    if (s->c->rank == root) TRY(s->d->download(s->d, host, x, bytes));
    TRY(s->c->ops->broadcast((Comm *)s->c, host, bytes, root));
    return s->c->rank == root ? OK : s->d->upload(s->d, x, host, bytes);
}

const CommWire wire_staged = {
    .open = staged_open,
    .close = staged_close,
    .all_reduce = staged_all_reduce,
    .all_gather_parts = staged_all_gather,
    .reduce_scatter_parts = staged_reduce_scatter,
    .broadcast = staged_broadcast,
};
