// comm: who the ranks are and how they exchange bytes. One Comm per group of ranks; counts are elements, never bytes.
//
// Collectives block, must be called by all ranks of the group in the same order, and return OK or E_FAILED. A rank that
// fails elsewhere must not leave its peers waiting: status values are agreed on with comm_agree, and launch/main.c calls
// comm_abort on the way out of an error that the others do not know of.
#pragma once
#include "kernels.h"

typedef struct Comm Comm;
typedef enum ReduceOp { REDUCE_SUM, REDUCE_MAX, REDUCE_MIN } ReduceOp;

typedef struct CommConfig {
    const char *kind; // "auto" (mpi when started by mpirun/srun, else self), "self", "mpi", "fake", "nccl"
    int fake_size;    // kind "fake": how many ranks to pretend,
    int fake_rank;    // and which of them to be
} CommConfig;

int comm_open(Comm **out, const CommConfig *c); // the world. Refuses a one-rank world inside a multi-task srun step
void comm_close(Comm *c);                       // NULL is fine; a barrier first, so that no rank leaves early
int comm_split(Comm **out, Comm *c, int color, int key); // as MPI_Comm_split
// The same for host memory alone, whatever c is used for; on one node each rank can show the others `room` bytes at once (as far as
// memory allows), for payloads that are large.
int comm_split_host(Comm **out, Comm *c, int color, int key, size_t room);
// The ranks as a grid of `columns` columns, rank r at row r / columns: the group of this rank's row, or of its column.
int comm_split_grid(Comm **out, Comm *c, int columns, bool row);
// The group of ranks [first, first + count), which this rank is one of; the others call it with the range that they are in.
int comm_split_range(Comm **out, Comm *c, int first, int count);
// Memory of d, which must be of the same kind on all ranks, may from now on be handed to the collectives of this group and of groups
// that are split from it. Such a collective takes its turn among what is submitted to the device (by the calling thread): it may
// return before it has run, and what goes wrong is told by the device's next sync. Everything else about collectives is as for host
// memory. direct: the ranks' devices are different ones. Collective.
int comm_use_device(Comm *c, Device *d, bool direct);
int comm_rank(const Comm *c);
int comm_size(const Comm *c);
int comm_local_rank(const Comm *c); // among the ranks of this node
int comm_local_size(const Comm *c);

// Sums of floats have the same bits on every rank, and again in the next run on the same layout: ranks of one node are summed
// in the order of the ranks (bf16 in f32, rounded once), then nodes in MPI's, however large the payload and whoever comes late.
// Kind "fake" only counts bytes where x is NULL.
int comm_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op); // in place
// Both in place, over parts of any sizes: rank r's part of x is [start[r], start[r + 1]), in elements; start has size + 1
// entries, the same on every rank, and need not begin with 0. A gather wants the own part in x and gives all parts; a
// reduce-scatter gives the sum over the ranks in the own part and leaves the rest of x undefined.
int comm_all_gather_parts(Comm *c, void *x, const size_t *start, DType t);
int comm_reduce_scatter_parts(Comm *c, void *x, const size_t *start, DType t);
// `rows` runs of `count` elements each, `stride` elements from the beginning of one to that of the next.
typedef struct CommBlock {
    void *at;
    size_t rows, count, stride;
} CommBlock;
// Each rank has a block for each (size entries each): out[r] goes to rank r, and in[r] is where rank r's comes to: as many elements,
// in runs of whatever length. Host memory; no block of `in` lies over another one, or over one of `out`.
int comm_exchange(Comm *c, const CommBlock *out, const CommBlock *in, DType t);
// The same in two halves, which saves a copy: what this rank has for others it puts to where they take it from. begin tells where
// that is: room[r] (size entries), with `bytes` of it, the same number on all ranks, for what rank r shall have. end: given[r] bytes have
// been put there; those of its own rank are not looked at, nor is in[rank]. No other collective of the group between the two.
int comm_exchange_begin(Comm *c, size_t bytes, void **room);
int comm_exchange_end(Comm *c, void *const *room, const size_t *given, const CommBlock *in, DType t);
int comm_broadcast(Comm *c, void *x, size_t count, DType t, int root); // x must be writable on the root too
int comm_barrier(Comm *c);
// All ranks return the worst status (the most negative but E_PREEMPTED only when nothing is worse). The lowest rank with that
// fault keeps its error record; others get a record that says which rank failed and is not to be printed again (code set,
// empty what). Who goes on after a failure calls error_clear first, on every rank.
int comm_agree(Comm *c, int status);
// Host strings and small structs: the root's bytes to all. *data is malloc'ed on the other ranks, with a NUL after it.
int comm_broadcast_blob(Comm *c, void **data, size_t *bytes, int root);

_Noreturn void comm_abort(Comm *c, int exit_code); // ends every rank now

// The watchdog. In a world of several ranks over MPI, a rank whose process gives no sign of life for 60 s, and one that stays
// away for 1800 s from a collective that others wait in, ends the job with exit code 1 and an error on stderr that names it.
// ATTUNE_COMM_TIMEOUT=SECONDS sets both times, 0 turns the watchdog off.
// fn is called before that, on one rank, by a thread of its own: the culprit's rank, and the error's text. NULL for none.
void comm_on_abort(void (*fn)(void *ctx, int rank, const char *what), void *ctx);
_Noreturn void comm_abort_because(Comm *c, const char *what); // exit code 1; that function is told of this rank before

typedef struct CommStats {
    uint64_t calls, bytes; // payload bytes handed in by this rank
    uint64_t wire_bytes;   // of these exchanges in rings: 2(n-1)/n of an all-reduce, (n-1)/n of what the others move
    double wait_ms;
} CommStats;
CommStats comm_stats(const Comm *c); // from any thread
// Resident bytes that this group has come to take in each of its ranks, if they are all of one node: its window of shared memory,
// and, for the world, what MPI keeps.
size_t comm_footprint(const Comm *c);

// ---- queue.c: collectives beside the computation ----
// One thread that runs posted jobs in the order they were posted. Ranks that post the same jobs in the same order do not
// deadlock, provided that the jobs use communicators that nobody else uses meanwhile. Post and wait from one thread.
typedef struct CommQueue CommQueue;
int comm_queue_open(CommQueue **out, bool threaded); // not threaded: a job runs inside comm_queue_post
void comm_queue_close(CommQueue *q);                 // NULL is fine; runs what is still posted first
void comm_queue_use_device(CommQueue *q,
                           Device *d); // from now on jobs run beside d's ops, behind those before their post
uint64_t comm_queue_post(CommQueue *q, int (*run)(void *ctx),
                         void *ctx); // a ticket; ctx must live until the job is done
// Until that job and all before it are done. After a failure the jobs behind it are skipped; the next wait, for whichever
// ticket, returns the failed job's status, with its error record in this thread, and from then on newly posted jobs run again.
int comm_queue_wait(CommQueue *q, uint64_t ticket);
typedef struct CommQueueStats {
    double busy_ms; // jobs were running
    double
        waited_ms; // the poster stood in comm_queue_wait (or in a post without a thread): 1 - waited / busy was hidden
    uint64_t jobs; // posted
} CommQueueStats;
CommQueueStats comm_queue_stats(const CommQueue *q);

// MPI's communicator of this group, as `MPI_Comm *`, for parallel HDF5 (checkpoint.c) only; NULL when there is none.
void *comm_mpi_handle(const Comm *c);
bool comm_launched_by_mpi(void); // the environment says that a launcher started this process

// ---- topo.c: hwloc ----
typedef struct Topo {
    int cores; // physical cores this process may use
    int pus;   // hardware threads it may use
    int numa_nodes;
    size_t memory_bytes; // of the machine, or the cgroup's limit when lower
    char cpu_model[96];
} Topo;
int topo_read(Topo *out);
// Gives each of the node's ranks its share of the cores this process may use, unless the launcher bound it already or
// ATTUNE_BIND=none; returns the number of cores of the share (for the thread count). bound[] says what was done, for doctor.
int topo_bind_share(int local_rank, int local_size, char *bound, size_t bound_bytes);
