// shm: collectives of the ranks of one node, through a window of shared memory. Knows nothing of MPI: who the members are
// and that all have mapped the window is the caller's.
//
// As with every collective, all members call the same functions in the same order, one at a time per window; several windows
// may be in use at once. Nothing here can fail: a member that dies takes the job with it.
//
// Sums are made in the order of the members, whatever the size, the timing, or who makes them.
#pragma once
#include "comm.h"

typedef struct Shm Shm;
typedef struct ShmSpan {
    size_t first, end; // elements [first, end) of a payload
} ShmSpan;

// The window: memory that one member makes and the others join, under a name that it tells them. It is in no file system: nothing
// remains however the job ends, and no limit but that of memory counts. Each member backs its own part. NULL when that fails (no
// memory, or not the same machine after all). The maker closes the door when all have joined. room: bytes that a member can show the
// others at once, as far as memory allows; 0: what suits payloads of all sizes.
typedef struct ShmName {
    char path[32], memory[64];
} ShmName;
Shm *shm_make_window(ShmName *name, int size, size_t room, bool crowded); // as member 0
Shm *shm_join_window(const ShmName *name, int rank, int size, size_t room, bool crowded);
void shm_close_door(Shm *g);
// The same over memory that is there already, zeroed and 4096-aligned, of shm_window_bytes: for threads.
size_t shm_window_bytes(int size, size_t room);
// What of it is ever touched, and so resident, when no member has more than `largest` bytes to show the others at once.
size_t shm_resident_bytes(int size, size_t room, size_t largest);
Shm *shm_attach(void *window, int rank, int size, size_t room,
                bool crowded); // crowded: more members than cores, waiting must not spin
void shm_close(Shm *g);        // NULL is fine

void shm_all_reduce(Shm *g, void *x, size_t count, DType t, ReduceOp op);
void shm_reduce(Shm *g, void *x, size_t count, DType t,
                ReduceOp op); // to member 0; the others' x is undefined afterwards
void shm_reduce_scatter(Shm *g, void *x, const ShmSpan *span, DType t); // sum; span[r] is what member r gets
// span[r] is what member r has. takes: whether this member wants what the others have.
void shm_all_gather(Shm *g, void *x, const ShmSpan *span, size_t element_bytes, bool takes);
void shm_exchange(Shm *g, const CommBlock *out, const CommBlock *in, size_t element_bytes); // all but the member's own
// Its two halves; begin: whether the slots have so much room, the same answer for all members. room[own rank] is left as it is.
bool shm_exchange_begin(Shm *g, size_t bytes, void **room);
void shm_exchange_end(Shm *g, const CommBlock *in, size_t element_bytes);
void shm_broadcast(Shm *g, void *x, size_t bytes, int root, bool takes);
void shm_barrier(Shm *g);
