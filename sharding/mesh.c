// mesh: the ranks as a grid, data × tensor.
#include "sharding.h"
#include <string.h>

// Ranks that are only pretended to be there (plans) have nobody to wait for: jobs run at once.
static int open_background(Mesh *m, int tensor)
{
    TRY(comm_split_grid(&m->tensor_bg, m->world, tensor, true));
    TRY(comm_split_grid(&m->data_bg, m->world, tensor, false));
    return comm_queue_open(&m->queue, comm_mpi_handle(m->world) != NULL);
}

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
    if (status == OK && size > 1) status = open_background(m, tensor);
    if (status < 0) mesh_close(m);
    return status;
}

// The world is the caller's.
void mesh_close(Mesh *m)
{
    comm_queue_close(m->queue);
    comm_close(m->data_bg);
    comm_close(m->tensor_bg);
    comm_close(m->data);
    comm_close(m->tensor);
    memset(m, 0, sizeof *m);
}
