// comm_impl: what the files of comm/ share and nobody else sees. A kind of communicator is one CommOps table,
// listed in comms.def; comm.c owns the Comm struct, the argument checks, the counters and the clock, and
// calls the table.
#pragma once
#include "comm.h"
#include <pthread.h>
#include <stdatomic.h>

typedef struct CommOps {
    const char *name;
    // Fill rank, size, local_rank, local_size and impl; everything else of *c is comm.c's.
    int (*open)(Comm *c, const CommConfig *config);
    // c->size and c->rank are set where they are known before, else size is 0
    int (*split)(Comm *c, const Comm *parent, int color, int key);
    void (*close)(Comm *c); // may be called after an open that failed half-way
    // Never called with count 0, nor in a group of one rank. Sizes have been checked: no product below overflows.
    int (*all_reduce)(Comm *c, void *x, size_t count, DType t, ReduceOp op);
    int (*all_gather_parts)(Comm *c, void *x, const size_t *start, DType t);
    int (*reduce_scatter_parts)(Comm *c, void *x, const size_t *start, DType t);
    int (*exchange)(Comm *c, const CommBlock *out, const CommBlock *in, DType t); // all but the rank's own
    // *lent: room is where the others take it from, and end follows; else the caller has to have room and to exchange. NULL: never
    int (*exchange_begin)(Comm *c, size_t bytes, void **room, bool *lent);
    void (*exchange_end)(Comm *c, const CommBlock *in, DType t);
    int (*broadcast)(Comm *c, void *x, size_t bytes, int root);
    int (*barrier)(Comm *c);
    void (*abort)(Comm *c,
                  int exit_code);       // may return: comm_abort then ends the process; NULL: nothing to do
    void *(*mpi_handle)(const Comm *c); // NULL: there is none
} CommOps;

// How memory of a device travels between the ranks of a group, each of which has one. Arguments as in CommOps. A collective may return
// when it is submitted to the device; under_way is then set until it has run.
typedef struct CommWire {
    const char *device;                           // which devices it connects
    int (*open)(void **impl, Comm *c, Device *d); // collective, over the host
    void (*close)(void *impl);
    int (*all_reduce)(void *impl, void *x, size_t count, DType t, ReduceOp op);
    int (*all_gather_parts)(void *impl, void *x, const size_t *start, DType t);
    int (*reduce_scatter_parts)(void *impl, void *x, const size_t *start, DType t);
    int (*broadcast)(void *impl, void *x, size_t bytes, int root);
} CommWire;
extern const CommWire wire_staged;
#define WIRE(name) extern const CommWire wire_##name;
#include "wires.def"
#undef WIRE

struct Comm {
    const CommOps *ops;
    int rank, size, local_rank, local_size;
    bool world;
    bool lent;      // an exchange has begun in memory that the others see
    char *own_room; // for exchanges that have not
    size_t room;    // that was asked for in the windows of shared memory; 0: none in particular
    Device *device; // whose memory it may be handed; NULL: the host's alone
    const CommWire *wire;
    void *wire_impl;
    // one thread at a time writes them, any may read; largest: bytes that a rank had to show the others at once
    _Atomic uint64_t calls, bytes, wire_bytes, largest, wait_ns;
    void *impl; // the kind's own
    // What the watchdog tells of a group of several ranks (watch.h). The group's number is made of its parent's, how many groups
    // the parent had before, and the color: the same on all ranks of a group, and on no others.
    uint64_t group, parts;
    Comm *next;
    _Atomic uint64_t entered, left;
    _Atomic int64_t since_us; // when the last collective began, or ended
    _Atomic bool by_main;
    _Atomic bool under_way; // collectives have been submitted to the device and are not known to have run
    const char *_Atomic what;
};

#define COMM(kind) extern const CommOps comm_##kind;
#include "comms.def"
#undef COMM

// ---- reduce.c: for the types that can be reduced, not F16, and BF16 only with REDUCE_SUM (made in f32, rounded once) ----
// out[i] = in[0][i] op in[1][i] op ... in[n - 1][i], in this order. out may be one of the in.
void reduce_ranks(void *out, const void *const *in, int n, size_t count, DType t, ReduceOp op);
void reduce_into(void *x, const void *y, size_t count, DType t, ReduceOp op); // x[i] = x[i] op y[i]

// ---- blocks.c: the bytes of a block, one run behind the other; size: of an element ----
size_t block_bytes(const CommBlock *b, size_t size);
// Bytes [from, from + n) out of the block to memory without gaps, and back.
void block_pack(void *to, const CommBlock *b, size_t size, size_t from, size_t n);
void block_unpack(const CommBlock *b, size_t size, size_t from, size_t n, const void *packed);
void block_copy(const CommBlock *to, const CommBlock *b, size_t size);

// ---- activity.c: brackets a collective; both tell the time in ms ----
void activity_open(Comm *c); // from now on the group is told of
void activity_close(const Comm *c);
double activity_enter(Comm *c, const char *what); // what: a string that lives
double activity_leave(Comm *c);
bool on_main_thread(void);

// A thread that takes no signals: these are for the main thread, which looks after being interrupted.
int start_thread(pthread_t *out, void *(*run)(void *), void *arg);
// Calls comm_on_abort's function. The job must then be ended: who wants to take the function away waits for ever.
void tell_abort(int rank, const char *what);

// Set by comm_mpi.c when the ranks of this machine arrived with different CPU masks: the launcher has bound
// them, and topo_bind_share leaves them alone.
extern bool topo_bound_by_launcher;
