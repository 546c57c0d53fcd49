// comm_self: a world of one rank. No MPI is initialised, so the program starts at once and runs where there
// is no MPI.
#include "comm_impl.h"

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

static int self_parts(Comm *c, void *x, const size_t *start, DType t)
{
    (void)c, (void)x, (void)start, (void)t;
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
    .all_gather_parts = self_parts,
    .reduce_scatter_parts = self_parts,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
};
