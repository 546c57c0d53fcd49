// comm_mpi: ranks connected by MPI. mpi.h is included here and in checkpoint.c (parallel HDF5 asks for it)
// only.
//
// Waiting. MPI's blocking calls spin, which is ruinous when a machine has more ranks than cores (a 4 KB
// all-reduce of 4 ranks on 2 cores: 20 ms against 0.4 ms). So every collective is a non-blocking one that is
// tested: by spinning for a moment when each rank has a core, else by sleeping between the tests. A rank that
// dies takes the job with it; one that hangs is never noticed by MPI: ATTUNE_COMM_TIMEOUT=SECONDS ends the
// job when a collective takes longer.
//
// Large payloads travel in pieces, a few at a time: MPI's large all-reduce runs at half the rate of the same
// in 1 MiB pieces.
#define _GNU_SOURCE
#include "comm_impl.h"
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PIECE_BYTES = 1 << 20, PIECES_AT_ONCE = 4 };

typedef struct MpiComm {
    MPI_Comm comm;
    bool owns_mpi;     // the world: it initialised MPI and will finalise it
    bool crowded;      // this machine has more ranks than hardware threads for them
    double timeout_ms; // 0: none
} MpiComm;

static MPI_Op sum_bf16 = MPI_OP_NULL; // made by the world, used by all its parts

static int check(int rc, const char *what)
{
    if (rc == MPI_SUCCESS) return OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(rc, text, &length);
    return fail(E_FAILED, "MPI", NULL, "%s: %s", what, text);
}

// ---- opening ----------------------------------------------------------------------------------------------
static void add_bf16(void *in, void *inout, int *count, MPI_Datatype *t)
{
    (void)t;
    reduce_into(inout, in, (size_t)*count, DT_BF16, REDUCE_SUM);
}

static int start_mpi(MpiComm *m)
{
    int started = 0, provided = 0;
    TRY(check(MPI_Initialized(&started), "MPI_Initialized"));
    if (started) return fail(E_FAILED, "MPI", NULL, "a process can open its MPI world only once");
    setenv("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1", 0); // MPICH: who aborts has told why already
    TRY(check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread"));
    m->owns_mpi = true;
    if (provided < MPI_THREAD_MULTIPLE)
        return fail(E_MISSING, "MPI", "use an MPI built with MPI_THREAD_MULTIPLE",
                    "this MPI cannot be used from several threads");
    TRY(check(MPI_Op_create(add_bf16, 1, &sum_bf16), "MPI_Op_create"));
    return check(MPI_Comm_dup(MPI_COMM_WORLD, &m->comm), "MPI_Comm_dup");
}

// A number that all processes on one running kernel share, containers included: they share its cores.
static int kernel_identity(void)
{
    char *text = NULL, host[256] = "";
    size_t bytes = 0;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re"); // size 0 in stat, so file_read does not do
    ssize_t n = f ? getline(&text, &bytes, f) : -1;
    if (f) fclose(f);
    if (n <= 0) gethostname(host, sizeof host - 1);
    uint64_t h = n > 0 ? hash64(text, (size_t)n, 0) : hash64(host, strlen(host), 0);
    free(text);
    return (int)(h & 0x7fffffff);
}

// Finds out whether the ranks that share this machine's cores outnumber them, and whether a launcher gave
// each its own.
static int look_around(MpiComm *m, int rank)
{
    MPI_Comm here = MPI_COMM_NULL;
    int ranks = 0;
    cpu_set_t mine, any, all;
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof mine, &mine);
    TRY(check(MPI_Comm_split(m->comm, kernel_identity(), rank, &here), "MPI_Comm_split"));
    int rc = MPI_Comm_size(here, &ranks);
    if (rc == MPI_SUCCESS) rc = MPI_Allreduce(&mine, &any, sizeof mine, MPI_BYTE, MPI_BOR, here);
    if (rc == MPI_SUCCESS) rc = MPI_Allreduce(&mine, &all, sizeof mine, MPI_BYTE, MPI_BAND, here);
    MPI_Comm_free(&here);
    TRY(check(rc, "MPI_Allreduce"));
    m->crowded = ranks > CPU_COUNT(&any);
    topo_bound_by_launcher = !CPU_EQUAL(&any, &all);
    return OK;
}

// rank, size and place on the node, from the communicator itself: launchers' variables are wrong too often.
static int fill_ranks(Comm *c)
{
    MpiComm *m = c->impl;
    MPI_Comm node = MPI_COMM_NULL;
    TRY(check(MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    TRY(check(MPI_Comm_rank(m->comm, &c->rank), "MPI_Comm_rank"));
    TRY(check(MPI_Comm_size(m->comm, &c->size), "MPI_Comm_size"));
    TRY(check(MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type"));
    int rc = MPI_Comm_rank(node, &c->local_rank);
    if (rc == MPI_SUCCESS) rc = MPI_Comm_size(node, &c->local_size);
    MPI_Comm_free(&node);
    return check(rc, "MPI_Comm_rank");
}

static int mpi_open(Comm *c, const CommConfig *config)
{
    (void)config;
    MpiComm *m = c->impl = xcalloc(1, sizeof *m);
    m->comm = MPI_COMM_NULL;
    const char *timeout = getenv("ATTUNE_COMM_TIMEOUT");
    m->timeout_ms = timeout ? atof(timeout) * 1e3 : 0;
    TRY(start_mpi(m));
    TRY(fill_ranks(c));
    return look_around(m, c->rank);
}

static int mpi_split(Comm *c, const Comm *parent, int color, int key, int size)
{
    (void)size;
    const MpiComm *from = parent->impl;
    MpiComm *m = c->impl = xcalloc(1, sizeof *m);
    *m = (MpiComm){.comm = MPI_COMM_NULL, .crowded = from->crowded, .timeout_ms = from->timeout_ms};
    TRY(check(MPI_Comm_split(from->comm, color, key, &m->comm), "MPI_Comm_split"));
    return fill_ranks(c);
}

static void mpi_close(Comm *c)
{
    MpiComm *m = c->impl;
    if (!m) return;
    if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
    if (m->owns_mpi) {
        if (sum_bf16 != MPI_OP_NULL) MPI_Op_free(&sum_bf16);
        MPI_Finalize();
    }
    free(m);
    c->impl = NULL;
}

static void mpi_abort(Comm *c, int exit_code)
{
    (void)c;
    // MPI_Abort may wait for a lock that a stuck thread holds; a process that dies of a signal ends the job
    // as well.
    signal(SIGALRM, SIG_DFL);
    alarm(5);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static void *mpi_handle(const Comm *c)
{
    return &((MpiComm *)c->impl)->comm;
}

// ---- waiting ----------------------------------------------------------------------------------------------
static void nap(long microseconds)
{
    nanosleep(&(struct timespec){.tv_nsec = microseconds * 1000}, NULL);
}

// Between two tests. The steps are chosen so that a rank with its own core answers within microseconds, a
// long wait (another rank writes a file) costs no core, and ranks that share a core leave it to those that
// have work.
static void pause_between_tests(const MpiComm *m, unsigned tries, double waited_ms)
{
    if (m->crowded) {
        if (tries < 4)
            sched_yield();
        else
            nap(waited_ms < 100 ? 20 : 500);
    } else if (tries > 500) {
        if (waited_ms < 5)
            sched_yield();
        else
            nap(50);
    }
}

static int wait_for(Comm *c, MPI_Request *request, const char *what)
{
    const MpiComm *m = c->impl;
    double start = now_ms();
    for (unsigned tries = 1;; tries++) {
        int finished = 0;
        TRY(check(MPI_Test(request, &finished, MPI_STATUS_IGNORE), what));
        if (finished) return OK;
        double waited_ms = now_ms() - start;
        pause_between_tests(m, tries, waited_ms);
        if (!m->timeout_ms || waited_ms < m->timeout_ms) continue;
        // The buffers belong to MPI until the request ends, so there is no way back from here.
        log_warn("%s has waited %.0f s for the other ranks (ATTUNE_COMM_TIMEOUT): the run ends here", what,
                 waited_ms / 1e3);
        comm_abort(c, error_exit_code(E_FAILED));
    }
}

// ---- collectives ------------------------------------------------------------------------------------------
static MPI_Datatype mpi_type(DType t)
{
    switch (t) {
    case DT_F32: return MPI_FLOAT;
    case DT_BF16: return MPI_UINT16_T;
    case DT_I64: return MPI_INT64_T;
    case DT_I32: return MPI_INT32_T;
    default: return MPI_UINT8_T;
    }
}

static MPI_Op mpi_op(DType t, ReduceOp op)
{
    ASSERT(t != DT_BF16 || op == REDUCE_SUM);
    if (op == REDUCE_SUM) return t == DT_BF16 ? sum_bf16 : MPI_SUM;
    return op == REDUCE_MAX ? MPI_MAX : MPI_MIN;
}

// Pieces of a collective that are under way, the oldest first.
typedef struct Pieces {
    Comm *c;
    const char *what;
    MPI_Request request[PIECES_AT_ONCE];
    size_t started, ended;
} Pieces;

static int end_oldest(Pieces *p)
{
    return wait_for(p->c, &p->request[p->ended++ % PIECES_AT_ONCE], p->what);
}

// Where the request of the next piece goes, once there is room for it.
static int next_piece(Pieces *p, MPI_Request **request)
{
    if (p->started - p->ended == PIECES_AT_ONCE) TRY(end_oldest(p));
    *request = &p->request[p->started++ % PIECES_AT_ONCE];
    return OK;
}

static int end_all(Pieces *p)
{
    while (p->ended < p->started) TRY(end_oldest(p));
    return OK;
}

static int mpi_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    const MpiComm *m = c->impl;
    Pieces pieces = {.c = c, .what = "all_reduce"};
    const size_t piece = PIECE_BYTES / dtype_size(t);
    for (size_t first = 0; first < count; first += piece) {
        MPI_Request *request;
        TRY(next_piece(&pieces, &request));
        TRY(check(MPI_Iallreduce(MPI_IN_PLACE, (char *)x + first * dtype_size(t), (int)MIN(piece, count - first),
                                 mpi_type(t), mpi_op(t, op), m->comm, request),
                  pieces.what));
    }
    return end_all(&pieces);
}

static int start_broadcast(Pieces *pieces, char *x, size_t bytes, int root)
{
    const MpiComm *m = pieces->c->impl;
    for (size_t first = 0; first < bytes; first += PIECE_BYTES) {
        MPI_Request *request;
        TRY(next_piece(pieces, &request));
        int n = (int)MIN(PIECE_BYTES, bytes - first);
        TRY(check(MPI_Ibcast(x + first, n, MPI_BYTE, root, m->comm, request), pieces->what));
    }
    return OK;
}

static int mpi_broadcast(Comm *c, void *x, size_t bytes, int root)
{
    Pieces pieces = {.c = c, .what = "broadcast"};
    TRY(start_broadcast(&pieces, x, bytes, root));
    return end_all(&pieces);
}

// MPI's own gather of uneven parts counts elements and places in int; a broadcast per part does not.
static int mpi_all_gather_parts(Comm *c, void *x, const size_t *start, DType t)
{
    Pieces pieces = {.c = c, .what = "all_gather"};
    const size_t size = dtype_size(t);
    for (int r = 0; r < c->size; r++)
        TRY(start_broadcast(&pieces, (char *)x + start[r] * size, (start[r + 1] - start[r]) * size, r));
    return end_all(&pieces);
}

static int start_reduce(Pieces *pieces, char *x, size_t count, DType t, int root)
{
    const MpiComm *m = pieces->c->impl;
    const size_t piece = PIECE_BYTES / dtype_size(t);
    const bool mine = pieces->c->rank == root;
    for (size_t first = 0; first < count; first += piece) {
        MPI_Request *request;
        TRY(next_piece(pieces, &request));
        char *at = x + first * dtype_size(t);
        TRY(check(MPI_Ireduce(mine ? MPI_IN_PLACE : at, mine ? at : NULL, (int)MIN(piece, count - first), mpi_type(t),
                              mpi_op(t, REDUCE_SUM), root, m->comm, request),
                  pieces->what));
    }
    return OK;
}

static int mpi_reduce_scatter_parts(Comm *c, void *x, const size_t *start, DType t)
{
    Pieces pieces = {.c = c, .what = "reduce_scatter"};
    for (int r = 0; r < c->size; r++)
        TRY(start_reduce(&pieces, (char *)x + start[r] * dtype_size(t), start[r + 1] - start[r], t, r));
    return end_all(&pieces);
}

static int mpi_barrier(Comm *c)
{
    MPI_Request request;
    TRY(check(MPI_Ibarrier(((MpiComm *)c->impl)->comm, &request), "barrier"));
    return wait_for(c, &request, "barrier");
}

const CommOps comm_mpi = {
    .name = "mpi",
    .open = mpi_open,
    .split = mpi_split,
    .close = mpi_close,
    .all_reduce = mpi_all_reduce,
    .all_gather_parts = mpi_all_gather_parts,
    .reduce_scatter_parts = mpi_reduce_scatter_parts,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort,
    .mpi_handle = mpi_handle,
};
