// comm_fake: N ranks answered by one process, which is one of them. The absent ranks are taken to hold what this
// one holds, so a sum is N times the value: sizes, byte counts and memory are those of a real run, on a
// laptop. Where there is no memory to exchange (plans), bytes are counted all the same.
#include "comm_impl.h"
#include <stdlib.h>
#include <string.h>

static int fake_open(Comm *c, const CommConfig *config)
{
    if (config->fake_size < 1) return fail(E_INPUT, NULL, NULL, "a world of %d ranks", config->fake_size);
    ASSERT(config->fake_rank >= 0 && config->fake_rank < config->fake_size);
    c->size = c->local_size = config->fake_size;
    c->rank = c->local_rank = config->fake_rank;
    return OK;
}

// The others' colors are not known; unless the size of the group is, they are taken to be this rank's.
static int fake_split(Comm *c, const Comm *parent, int color, int key)
{
    (void)color, (void)key;
    if (!c->size) {
        c->size = parent->size;
        c->rank = parent->rank;
    }
    c->local_size = c->size;
    c->local_rank = c->rank;
    return OK;
}

static void fake_close(Comm *c)
{
    (void)c;
}

static int fake_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    if (op != REDUCE_SUM || !x) return OK;
    size_t bytes = count * dtype_size(t);
    char *value = xmalloc(bytes);
    memcpy(value, x, bytes);
    for (int i = 1; i < c->size; i++) reduce_into(x, value, count, t, op);
    free(value);
    return OK;
}

static int fake_parts(Comm *c, void *x, const size_t *start, DType t)
{
    (void)c, (void)x, (void)start, (void)t;
    return OK;
}

static int fake_exchange(Comm *c, const CommBlock *out, const CommBlock *in, DType t)
{
    (void)c, (void)out, (void)in, (void)t;
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
    .all_gather_parts = fake_parts,
    .reduce_scatter_parts = fake_parts,
    .exchange = fake_exchange,
    .broadcast = fake_broadcast,
    .barrier = fake_barrier,
};
