// Which ranks of a group are neighbours on one node, and the window of shared memory that they then use.
#include "comm_mpi.h"
#include <stdlib.h>

// The first rank of the node makes the window and tells its name; a window that one node cannot have is used by none.
static int open_window(const Comm *c, MPI_Comm node, bool *all_have)
{
    MpiComm *m = c->impl;
    const bool first = c->local_rank == 0;
    ShmName name = {0};
    if (first) m->window = shm_make_window(&name, c->local_size, c->room, m->crowded);
    TRY(mpi_check(MPI_Bcast(&name, sizeof name, MPI_BYTE, 0, node), "MPI_Bcast"));
    if (!first) m->window = shm_join_window(&name, c->local_rank, c->local_size, c->room, m->crowded);
    int32_t have = m->window != NULL;
    TRY(mpi_check(MPI_Allreduce(MPI_IN_PLACE, &have, 1, MPI_INT32_T, MPI_MIN, m->comm), "MPI_Allreduce"));
    if (m->window) shm_close_door(m->window);
    *all_have = have;
    return OK;
}

static int find_speakers(const Comm *c)
{
    MpiComm *m = c->impl;
    int node = 0;
    TRY(mpi_check(MPI_Comm_split(m->comm, c->local_rank == 0 ? 0 : MPI_UNDEFINED, c->rank, &m->leaders),
                  "MPI_Comm_split"));
    if (m->leaders != MPI_COMM_NULL) TRY(mpi_check(MPI_Comm_rank(m->leaders, &node), "MPI_Comm_rank"));
    TRY(mpi_check(MPI_Bcast(&node, 1, MPI_INT, 0, m->node), "MPI_Bcast"));
    m->speaker = xcalloc((size_t)c->size, sizeof *m->speaker);
    m->neighbour = xcalloc((size_t)c->local_size, sizeof *m->neighbour);
    TRY(mpi_check(MPI_Allgather(&node, 1, MPI_INT, m->speaker, 1, MPI_INT, m->comm), "MPI_Allgather"));
    return mpi_check(MPI_Allgather(&c->rank, 1, MPI_INT, m->neighbour, 1, MPI_INT, m->node), "MPI_Allgather");
}

int find_neighbours(const Comm *c)
{
    MpiComm *m = c->impl;
    if (m->looked) return OK;
    m->looked = true;
    int32_t most[] = {getenv("ATTUNE_COMM") != NULL, c->local_size}; // of any rank
    TRY(mpi_check(MPI_Allreduce(MPI_IN_PLACE, most, 2, MPI_INT32_T, MPI_MAX, m->comm), "MPI_Allreduce"));
    if (most[0] || most[1] == 1) return OK;
    const bool several_nodes = c->local_size < c->size;
    bool all_have;
    if (several_nodes)
        TRY(mpi_check(MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &m->node),
                      "MPI_Comm_split_type"));
    TRY(open_window(c, several_nodes ? m->node : m->comm, &all_have));
    if (!all_have) {
        log_debug("no shared memory for the ranks of a node: they exchange messages");
        leave_neighbours(m);
        return OK;
    }
    m->span = xcalloc((size_t)c->local_size, sizeof *m->span);
    return several_nodes ? find_speakers(c) : OK;
}

static void free_comm(MPI_Comm *comm)
{
    if (*comm != MPI_COMM_NULL) MPI_Comm_free(comm);
}

void leave_neighbours(MpiComm *m)
{
    shm_close(m->window);
    m->window = NULL;
    free_comm(&m->node);
    free_comm(&m->leaders);
    free(m->speaker);
    free(m->neighbour);
    free(m->span);
    m->speaker = m->neighbour = NULL;
    m->span = NULL;
}
