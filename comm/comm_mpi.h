// comm_mpi: what the files comm_mpi*.c share. mpi.h is included here and in runtime/io/checkpoint.c (parallel HDF5 asks for
// it) only.
#pragma once
#include "comm_impl.h"
#include "shm.h"
#include <mpi.h>

typedef struct MpiComm {
    MPI_Comm comm;
    bool owns_mpi; // the world: it initialised MPI and will finalise it
    bool crowded;  // this machine has more ranks than hardware threads for them
    // comm_mpi_nodes.c: set at the group's first collective. No window: all ranks exchange messages, and nothing else is set.
    bool looked;
    Shm *window;      // of the ranks of this node
    MPI_Comm node;    // over several nodes: the ranks of this one,
    MPI_Comm leaders; // the first rank of each (MPI_COMM_NULL on the others),
    int *speaker;     // (size) the rank in leaders that speaks for each rank,
    int *neighbour;   // (local_size) and the rank in comm of each member of this node
    ShmSpan *span;    // (local_size) room for what the members of this node hold of a payload
} MpiComm;

int mpi_check(int rc, const char *what); // MPI's error as ours
void mpi_abort(Comm *c, int exit_code);
void mpi_end_within(int seconds, int exit_code); // ends this process if nothing else has until then

// ---- comm_mpi_watch.c ----
int watch_read_environment(void);   // ATTUNE_COMM_TIMEOUT
int watch_start(const Comm *world); // collective
void watch_end(void);               // collective, after the last collective of the world

// ---- comm_mpi_nodes.c ----
// Finds out once, all ranks together, whether the ranks of a node can share a window.
int find_neighbours(const Comm *c);
void leave_neighbours(MpiComm *m);

// ---- comm_mpi_messages.c: collectives by messages, of all ranks of c or of the nodes' leaders ----
extern MPI_Op mpi_sum_bf16; // made by the world, used by all its parts
int message_all_reduce(const Comm *c, void *x, size_t count, DType t, ReduceOp op);
int message_broadcast(const Comm *c, void *x, size_t bytes, int root);
int message_all_gather(const Comm *c, void *x, const size_t *start, DType t);
// A part's sum goes to who speaks for the part's rank.
int message_reduce_scatter(const Comm *c, void *x, const size_t *start, DType t);
int message_exchange(const Comm *c, const CommBlock *out, const CommBlock *in, DType t); // of all ranks in any case
int message_barrier(const Comm *c);
