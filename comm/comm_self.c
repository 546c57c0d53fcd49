// comm_self: a world of one rank. No MPI is initialised, so the program starts at once and runs where there
// is no MPI.
#include "comm_impl.h"
#include <string.h>

static int self_open(Comm *c, const CommConfig *config)
{
    (void)config;
    c->size = c->local_size = 1;
    return OK;
}

static int self_split(Comm *c, const Comm *parent, int color, int key, int size)
{
    (void)parent, (void)color, (void)key, (void)size;
    return self_open(c, NULL);
}

static void self_close(Comm *c)
{
    (void)c;
}

static int self_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    (void)c, (void)x, (void)count, (void)t, (void)op;
    return OK;
}

static int self_reduce_scatter(Comm *c, const void *x_all, void *out_mine, size_t count_each, DType t)
{
    (void)c;
    memmove(out_mine, x_all, count_each * dtype_size(t));
    return OK;
}

static int self_all_gather(Comm *c, const void *mine, void *all, size_t bytes_each)
{
    (void)c;
    memmove(all, mine, bytes_each);
    return OK;
}

static int self_broadcast(Comm *c, void *x, size_t bytes, int root)
{
    (void)c, (void)x, (void)bytes, (void)root;
    return OK;
}

static int self_barrier(Comm *c)
{
    (void)c;
    return OK;
}

const CommOps comm_self = {
    .name = "self",
    .open = self_open,
    .split = self_split,
    .close = self_close,
    .all_reduce = self_all_reduce,
    .reduce_scatter = self_reduce_scatter,
    .all_gather = self_all_gather,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
};
