// Collectives by messages.
//
// Waiting. MPI's blocking calls spin, which is ruinous when a machine has more ranks than cores (a 4 KB
// all-reduce of 4 ranks on 2 cores: 20 ms against 0.4 ms). So every collective is a non-blocking one that is
// tested: by spinning for a moment when each rank has a core, else by sleeping between the tests. A rank that
// dies takes the job with it; one that hangs is the watchdog's business (comm_mpi_watch.c).
//
// Large payloads travel in pieces, a few at a time: MPI's large all-reduce runs at half the rate of the same
// in 1 MiB pieces.
#include "comm_mpi.h"
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum { PIECE_BYTES = 1 << 20, PIECES_AT_ONCE = 4 };

MPI_Op mpi_sum_bf16 = MPI_OP_NULL;

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

static int wait_for(const MpiComm *m, MPI_Request *request, const char *what)
{
    double start = now_ms();
    for (unsigned tries = 1;; tries++) {
        int finished = 0;
        TRY(mpi_check(MPI_Test(request, &finished, MPI_STATUS_IGNORE), what));
        if (finished) return OK;
        pause_between_tests(m, tries, now_ms() - start);
    }
}

// ---- pieces -----------------------------------------------------------------------------------------------
// Those of a collective that are under way.
typedef struct Pieces {
    const MpiComm *m;
    MPI_Comm comm; // of those who exchange messages
    const char *what;
    MPI_Request request[PIECES_AT_ONCE];
    size_t started, ended;
} Pieces;

static Pieces pieces_of(const Comm *c, const char *what)
{
    const MpiComm *m = c->impl;
    return (Pieces){.m = m, .comm = m->leaders != MPI_COMM_NULL ? m->leaders : m->comm, .what = what};
}

static int speaker_of(const Pieces *p, int rank)
{
    return p->m->speaker ? p->m->speaker[rank] : rank;
}

static int end_oldest(Pieces *p)
{
    return wait_for(p->m, &p->request[p->ended++ % PIECES_AT_ONCE], p->what);
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
    if (op == REDUCE_SUM) return t == DT_BF16 ? mpi_sum_bf16 : MPI_SUM;
    return op == REDUCE_MAX ? MPI_MAX : MPI_MIN;
}

int message_all_reduce(const Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    Pieces p = pieces_of(c, "all_reduce");
    const size_t size = dtype_size(t), piece = PIECE_BYTES / size;
    for (size_t first = 0; first < count; first += piece) {
        MPI_Request *request;
        char *at = (char *)x + first * size;
        const int n = (int)MIN(piece, count - first);
        TRY(next_piece(&p, &request));
        TRY(mpi_check(MPI_Iallreduce(MPI_IN_PLACE, at, n, mpi_type(t), mpi_op(t, op), p.comm, request), p.what));
    }
    return end_all(&p);
}

static int start_broadcast(Pieces *p, char *x, size_t bytes, int root)
{
    for (size_t first = 0; first < bytes; first += PIECE_BYTES) {
        MPI_Request *request;
        const int n = (int)MIN(PIECE_BYTES, bytes - first);
        TRY(next_piece(p, &request));
        TRY(mpi_check(MPI_Ibcast(x + first, n, MPI_BYTE, root, p->comm, request), p->what));
    }
    return OK;
}

int message_broadcast(const Comm *c, void *x, size_t bytes, int root)
{
    Pieces p = pieces_of(c, "broadcast");
    TRY(start_broadcast(&p, x, bytes, speaker_of(&p, root)));
    return end_all(&p);
}

// MPI's own gather of uneven parts counts elements and places in int; a broadcast per part does not.
int message_all_gather(const Comm *c, void *x, const size_t *start, DType t)
{
    Pieces p = pieces_of(c, "all_gather");
    const size_t size = dtype_size(t);
    for (int r = 0; r < c->size; r++)
        TRY(start_broadcast(&p, (char *)x + start[r] * size, (start[r + 1] - start[r]) * size, speaker_of(&p, r)));
    return end_all(&p);
}

static int start_reduce(Pieces *p, char *x, size_t count, DType t, int root)
{
    const size_t size = dtype_size(t), piece = PIECE_BYTES / size;
    int rank;
    TRY(mpi_check(MPI_Comm_rank(p->comm, &rank), p->what));
    for (size_t first = 0; first < count; first += piece) {
        MPI_Request *request;
        char *at = x + first * size;
        const int n = (int)MIN(piece, count - first);
        TRY(next_piece(p, &request));
        TRY(mpi_check(MPI_Ireduce(rank == root ? MPI_IN_PLACE : at, rank == root ? at : NULL, n, mpi_type(t),
                                  mpi_op(t, REDUCE_SUM), root, p->comm, request),
                      p->what));
    }
    return OK;
}

int message_reduce_scatter(const Comm *c, void *x, const size_t *start, DType t)
{
    Pieces p = pieces_of(c, "reduce_scatter");
    const size_t size = dtype_size(t);
    for (int r = 0; r < c->size; r++)
        TRY(start_reduce(&p, (char *)x + start[r] * size, start[r + 1] - start[r], t, speaker_of(&p, r)));
    return end_all(&p);
}

// Runs of a block become a type of MPI's, which counts them in int.
static int block_type(const CommBlock *b, size_t size, MPI_Datatype *out)
{
    ASSERT(b->rows <= INT_MAX && b->count * size <= INT_MAX);
    TRY(mpi_check(
        MPI_Type_create_hvector((int)b->rows, (int)(b->count * size), (MPI_Aint)(b->stride * size), MPI_BYTE, out),
        "exchange"));
    return mpi_check(MPI_Type_commit(out), "exchange");
}

static int start_block(const MpiComm *m, const CommBlock *b, size_t size, int peer, bool sends, MPI_Request *request)
{
    MPI_Datatype type;
    if (!block_bytes(b, size)) return OK;
    TRY(block_type(b, size, &type));
    int rc = sends ? MPI_Isend(b->at, 1, type, peer, 0, m->comm, request)
                   : MPI_Irecv(b->at, 1, type, peer, 0, m->comm, request);
    MPI_Type_free(&type); // when what it is used for has been done
    return mpi_check(rc, "exchange");
}

int message_exchange(const Comm *c, const CommBlock *out, const CommBlock *in, DType t)
{
    const MpiComm *m = c->impl;
    const size_t n = (size_t)c->size, size = dtype_size(t);
    MPI_Request *request = xmalloc(2 * n * sizeof *request);
    int status = OK;
    for (size_t i = 0; i < 2 * n; i++) request[i] = MPI_REQUEST_NULL;
    for (int i = 1; i < c->size && status == OK; i++) {
        const int from = (c->rank + c->size - i) % c->size;
        status = start_block(m, &in[from], size, from, false, &request[i]);
    }
    for (int i = 1; i < c->size && status == OK; i++) {
        const int to = (c->rank + i) % c->size;
        status = start_block(m, &out[to], size, to, true, &request[(size_t)i + n]);
    }
    for (size_t i = 0; i < 2 * n && status == OK; i++) status = wait_for(m, &request[i], "exchange");
    free(request);
    return status;
}

int message_barrier(const Comm *c)
{
    const Pieces p = pieces_of(c, "barrier");
    MPI_Request request;
    TRY(mpi_check(MPI_Ibarrier(p.comm, &request), p.what));
    return wait_for(p.m, &request, p.what);
}
