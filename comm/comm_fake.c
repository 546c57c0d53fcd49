// comm_fake: N ranks answered by one process, which is rank 0. The absent ranks are taken to hold what this
// one holds, so a sum is N times the value and a gather N copies: sizes, byte counts and memory are those of
// a real run, on a laptop.
#include "comm_impl.h"
#include <stdlib.h>
#include <string.h>

static int fake_open(Comm *c, const CommConfig *config)
{
    if (config->fake_size < 1) return fail(E_INPUT, NULL, NULL, "a world of %d ranks", config->fake_size);
    c->size = c->local_size = config->fake_size;
    return OK;
}

// The others' colors are not known; unless the size of the group is, they are taken to be this rank's.
static int fake_split(Comm *c, const Comm *parent, int color, int key, int size)
{
    (void)color, (void)key;
    c->size = c->local_size = size ? size : parent->size;
    return OK;
}

static void fake_close(Comm *c)
{
    (void)c;
}

static int fake_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    if (op != REDUCE_SUM || c->size == 1) return OK;
    size_t bytes = count * dtype_size(t);
    char *value = xmalloc(bytes);
    memcpy(value, x, bytes);
    for (int i = 1; i < c->size; i++) reduce_into(x, value, count, t, op);
    free(value);
    return OK;
}

static int fake_reduce_scatter(Comm *c, const void *x_all, void *out_mine, size_t count_each, DType t)
{
    memmove(out_mine, x_all, count_each * dtype_size(t)); // rank 0's part
    return fake_all_reduce(c, out_mine, count_each, t, REDUCE_SUM);
}

static int fake_all_gather(Comm *c, const void *mine, void *all, size_t bytes_each)
{
    for (int r = 0; r < c->size; r++) memmove((char *)all + (size_t)r * bytes_each, mine, bytes_each);
    return OK;
}

static int fake_broadcast(Comm *c, void *x, size_t bytes, int root)
{
    (void)c, (void)x, (void)bytes, (void)root;
    return OK;
}

static int fake_barrier(Comm *c)
{
    (void)c;
    return OK;
}

const CommOps comm_fake = {
    .name = "fake",
    .open = fake_open,
    .split = fake_split,
    .close = fake_close,
    .all_reduce = fake_all_reduce,
    .reduce_scatter = fake_reduce_scatter,
    .all_gather = fake_all_gather,
    .broadcast = fake_broadcast,
    .barrier = fake_barrier,
};
