// mesh: the ranks as a grid, data × tensor.
#include "sharding.h"
#include <string.h>

int mesh_open(Mesh *m, Comm *world, int tensor)
{
    int size = comm_size(world), rank = comm_rank(world);
    memset(m, 0, sizeof *m);
    if (tensor < 1 || size % tensor)
        return fail(E_INPUT, "parallel.tensor", "start a multiple of parallel.tensor ranks",
                    "%d ranks cannot be divided into groups of %d", size, tensor);
    m->world = world;
    m->data_rank = rank / tensor;
    m->data_size = size / tensor;
    m->tensor_rank = rank % tensor;
    m->tensor_size = tensor;
    int status = comm_split_grid(&m->tensor, world, tensor, true);
    if (status == OK) status = comm_split_grid(&m->data, world, tensor, false);
    if (status < 0) mesh_close(m);
    return status;
}

// The world is the caller's.
void mesh_close(Mesh *m)
{
    comm_close(m->data);
    comm_close(m->tensor);
    memset(m, 0, sizeof *m);
}
