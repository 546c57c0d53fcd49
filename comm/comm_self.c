// comm_self: a world of one rank, which has no collectives to make. No MPI is initialised, so the program starts
// at once and runs where there is no MPI.
#include "comm_impl.h"

static int self_open(Comm *c, const CommConfig *config)
{
    (void)config;
    c->size = c->local_size = 1;
    return OK;
}

static int self_split(Comm *c, const Comm *parent, int color, int key)
{
    (void)parent, (void)color, (void)key;
    return self_open(c, NULL);
}

static void self_close(Comm *c)
{
    (void)c;
}

const CommOps comm_self = {
    .name = "self",
    .open = self_open,
    .split = self_split,
    .close = self_close,
};
