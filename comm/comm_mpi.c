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

// One piece of a collective, started: elements [first, first+count) of each rank's payload.
typedef struct Transfer {
    Comm *c;
    const void *in;
    void *out;
    size_t size; // of an element, bytes
    DType t;
    ReduceOp op;
    int root;
    size_t stride; // all_gather: bytes from one rank's payload to the next
} Transfer;
typedef int (*StartFn)(const Transfer *x, size_t first, int count, MPI_Request *request);

// Cuts `count` elements into pieces and keeps a few of them under way.
static int in_pieces(const Transfer *x, size_t count, size_t piece, StartFn start, const char *what)
{
    MPI_Request request[PIECES_AT_ONCE];
    size_t started = 0, ended = 0, pieces = (count + piece - 1) / piece;
    while (ended < pieces) {
        while (started < pieces && started - ended < PIECES_AT_ONCE) {
            size_t first = started * piece;
            TRY(check(start(x, first, (int)MIN(piece, count - first), &request[started % PIECES_AT_ONCE]), what));
            started++;
        }
        TRY(wait_for(x->c, &request[ended % PIECES_AT_ONCE], what));
        ended++;
    }
    return OK;
}

static MPI_Comm comm_of(const Transfer *x)
{
    return ((const MpiComm *)x->c->impl)->comm;
}

static int start_all_reduce(const Transfer *x, size_t first, int count, MPI_Request *request)
{
    void *at = (char *)x->out + first * x->size;
    return MPI_Iallreduce(MPI_IN_PLACE, at, count, mpi_type(x->t), mpi_op(x->t, x->op), comm_of(x), request);
}

static int mpi_all_reduce(Comm *c, void *data, size_t count, DType t, ReduceOp op)
{
    Transfer x = {.c = c, .out = data, .size = dtype_size(t), .t = t, .op = op};
    return in_pieces(&x, count, PIECE_BYTES / x.size, start_all_reduce, "all_reduce");
}

// The parts of all ranks for one piece lie apart in x_all; MPI wants them together, hence the copy.
static int mpi_reduce_scatter(Comm *c, const void *x_all, void *out_mine, size_t count_each, DType t)
{
    size_t size = dtype_size(t), piece = MAX(PIECE_BYTES / size / (size_t)c->size, 1);
    piece = MIN(piece, count_each);
    char *together = xmalloc((size_t)c->size * piece * size);
    int status = OK;
    for (size_t first = 0; first < count_each && status == OK; first += piece) {
        size_t n = MIN(piece, count_each - first);
        for (size_t r = 0; r < (size_t)c->size; r++)
            memcpy(together + r * n * size, (const char *)x_all + (r * count_each + first) * size, n * size);
        MPI_Request request;
        status = check(MPI_Ireduce_scatter_block(together, (char *)out_mine + first * size, (int)n, mpi_type(t),
                                                 mpi_op(t, REDUCE_SUM), ((MpiComm *)c->impl)->comm, &request),
                       "reduce_scatter");
        if (status == OK) status = wait_for(c, &request, "reduce_scatter");
    }
    free(together);
    return status;
}

// A piece of each rank's payload lands `stride` bytes after the previous rank's: a type of that extent says
// so.
static int start_all_gather(const Transfer *x, size_t first, int count, MPI_Request *request)
{
    MPI_Datatype bytes = MPI_DATATYPE_NULL, strided = MPI_DATATYPE_NULL;
    int rc = MPI_Type_contiguous(count, MPI_BYTE, &bytes);
    if (rc == MPI_SUCCESS) rc = MPI_Type_create_resized(bytes, 0, (MPI_Aint)x->stride, &strided);
    if (rc == MPI_SUCCESS) rc = MPI_Type_commit(&strided);
    if (rc == MPI_SUCCESS)
        rc = MPI_Iallgather((const char *)x->in + first, count, MPI_BYTE, (char *)x->out + first, 1, strided,
                            comm_of(x), request);
    if (bytes != MPI_DATATYPE_NULL) MPI_Type_free(&bytes); // freed when the transfer has ended
    if (strided != MPI_DATATYPE_NULL) MPI_Type_free(&strided);
    return rc;
}

static int mpi_all_gather(Comm *c, const void *mine, void *all, size_t bytes_each)
{
    Transfer x = {.c = c, .in = mine, .out = all, .stride = bytes_each};
    return in_pieces(&x, bytes_each, PIECE_BYTES, start_all_gather, "all_gather");
}

static int start_broadcast(const Transfer *x, size_t first, int count, MPI_Request *request)
{
    return MPI_Ibcast((char *)x->out + first, count, MPI_BYTE, x->root, comm_of(x), request);
}

static int mpi_broadcast(Comm *c, void *data, size_t bytes, int root)
{
    Transfer x = {.c = c, .out = data, .root = root};
    return in_pieces(&x, bytes, PIECE_BYTES, start_broadcast, "broadcast");
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
    .reduce_scatter = mpi_reduce_scatter,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort,
    .mpi_handle = mpi_handle,
};
