// comm_mpi: ranks connected by MPI. mpi.h is included here, by comm_mpi.h, and in runtime/io/checkpoint.c only.
//
// Ranks of one node go through a window of shared memory (shm.h), several times as fast as messages. In a group over several
// nodes the first rank of each speaks for it: the node's sum is made in the window, the leaders exchange messages, and the
// window hands on what they got. ATTUNE_COMM=mpi leaves the windows away; so does a machine without room for them.
#define _GNU_SOURCE
#include "comm_mpi.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

int mpi_check(int rc, const char *what)
{
    if (rc == MPI_SUCCESS) return OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(rc, text, &length);
    return fail(E_FAILED, "MPI", NULL, "%s: %s", what, text);
}

// ---- opening ----------------------------------------------------------------------------------------------
static void sum_up_bf16(void *in, void *inout, int *count, MPI_Datatype *t)
{
    (void)t;
    reduce_into(inout, in, (size_t)*count, DT_BF16, REDUCE_SUM);
}

static int start_mpi(MpiComm *m)
{
    int started = 0, provided = 0;
    TRY(mpi_check(MPI_Initialized(&started), "MPI_Initialized"));
    if (started) return fail(E_FAILED, "MPI", NULL, "a process can open its MPI world only once");
    TRY(mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread"));
    m->owns_mpi = true;
    if (provided < MPI_THREAD_MULTIPLE)
        return fail(E_MISSING, "MPI", "use an MPI built with MPI_THREAD_MULTIPLE",
                    "this MPI cannot be used from several threads");
    TRY(mpi_check(MPI_Op_create(sum_up_bf16, 1, &mpi_sum_bf16), "MPI_Op_create"));
    return mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &m->comm), "MPI_Comm_dup");
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
    TRY(mpi_check(MPI_Comm_split(m->comm, kernel_identity(), rank, &here), "MPI_Comm_split"));
    int rc = MPI_Comm_size(here, &ranks);
    if (rc == MPI_SUCCESS) rc = MPI_Allreduce(&mine, &any, sizeof mine, MPI_BYTE, MPI_BOR, here);
    if (rc == MPI_SUCCESS) rc = MPI_Allreduce(&mine, &all, sizeof mine, MPI_BYTE, MPI_BAND, here);
    MPI_Comm_free(&here);
    TRY(mpi_check(rc, "MPI_Allreduce"));
    m->crowded = ranks > CPU_COUNT(&any);
    topo_bound_by_launcher = !CPU_EQUAL(&any, &all);
    return OK;
}

// rank, size and place on the node, from the communicator itself: launchers' variables are wrong too often.
static int fill_ranks(Comm *c)
{
    MpiComm *m = c->impl;
    MPI_Comm node = MPI_COMM_NULL;
    TRY(mpi_check(MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    TRY(mpi_check(MPI_Comm_rank(m->comm, &c->rank), "MPI_Comm_rank"));
    TRY(mpi_check(MPI_Comm_size(m->comm, &c->size), "MPI_Comm_size"));
    TRY(mpi_check(MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node),
                  "MPI_Comm_split_type"));
    int rc = MPI_Comm_rank(node, &c->local_rank);
    if (rc == MPI_SUCCESS) rc = MPI_Comm_size(node, &c->local_size);
    MPI_Comm_free(&node);
    return mpi_check(rc, "MPI_Comm_rank");
}

static MpiComm *new_comm(bool crowded)
{
    MpiComm *m = xcalloc(1, sizeof *m);
    m->crowded = crowded;
    m->comm = m->node = m->leaders = MPI_COMM_NULL;
    return m;
}

static int mpi_open(Comm *c, const CommConfig *config)
{
    (void)config;
    const char *choice = getenv("ATTUNE_COMM");
    if (choice && !streq(choice, "mpi"))
        return fail(E_INPUT, "ATTUNE_COMM", "leave it away, or set it to mpi", "\"%s\" is not known", choice);
    MpiComm *m = c->impl = new_comm(false); // look_around tells
    TRY(watch_read_environment());
    TRY(start_mpi(m));
    TRY(fill_ranks(c));
    TRY(look_around(m, c->rank));
    return watch_start(c);
}

static int mpi_split(Comm *c, const Comm *parent, int color, int key)
{
    const MpiComm *from = parent->impl;
    MpiComm *m = c->impl = new_comm(from->crowded);
    TRY(mpi_check(MPI_Comm_split(from->comm, color, key, &m->comm), "MPI_Comm_split"));
    return fill_ranks(c);
}

static void mpi_close(Comm *c)
{
    MpiComm *m = c->impl;
    if (!m) return;
    if (m->owns_mpi) watch_end();
    leave_neighbours(m);
    if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
    if (m->owns_mpi) {
        if (mpi_sum_bf16 != MPI_OP_NULL) MPI_Op_free(&mpi_sum_bf16);
        MPI_Finalize();
    }
    free(m);
    c->impl = NULL;
}

typedef struct LastWord {
    int seconds, exit_code;
} LastWord;

static void *end_later(void *arg)
{
    const LastWord *w = arg;
    sleep((unsigned)w->seconds);
    _exit(w->exit_code);
}

void mpi_end_within(int seconds, int exit_code)
{
    LastWord *w = xmalloc(sizeof *w);
    pthread_t thread;
    *w = (LastWord){seconds, exit_code};
    if (start_thread(&thread, end_later, w) < 0) _exit(exit_code);
}

// A launcher that is told to end the job does so at once, and what it has not yet read from this process is lost: the very
// error that tells why. At most half a second, for stderr may be something that nobody reads.
static void let_launcher_read(void)
{
    const struct timespec nap = {.tv_nsec = 10000000};
    for (int i = 0, left = 1; i < 50 && left > 0; i++) {
        if (ioctl(STDERR_FILENO, FIONREAD, &left) < 0) left = 0;
        nanosleep(&nap, NULL);
    }
}

void mpi_abort(Comm *c, int exit_code)
{
    (void)c;
    let_launcher_read();
    // MPI_Abort may wait for a lock that a stuck thread holds; launchers end the job when one process has failed.
    mpi_end_within(5, exit_code);
    // MPICH has words of its own for this; who aborts has told why already.
    const int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (null >= 0) dup2(null, STDERR_FILENO);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static void *mpi_handle(const Comm *c)
{
    return &((MpiComm *)c->impl)->comm;
}

// ---- collectives ------------------------------------------------------------------------------------------
static bool speaks(const Comm *c)
{
    return c->local_rank == 0;
}

static int mpi_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    const MpiComm *m = c->impl;
    TRY(find_neighbours(c));
    if (!m->window) return message_all_reduce(c, x, count, t, op);
    if (!m->speaker) {
        shm_all_reduce(m->window, x, count, t, op);
        return OK;
    }
    shm_reduce(m->window, x, count, t, op);
    if (speaks(c)) TRY(message_all_reduce(c, x, count, t, op));
    shm_broadcast(m->window, x, count * dtype_size(t), 0, true);
    return OK;
}

// What the ranks of this node hold of a payload.
static const ShmSpan *spans_here(const Comm *c, const size_t *start)
{
    const MpiComm *m = c->impl;
    for (int i = 0; i < c->local_size; i++) {
        const int r = m->neighbour ? m->neighbour[i] : i;
        m->span[i] = (ShmSpan){start[r], start[r + 1]};
    }
    return m->span;
}

static int mpi_all_gather_parts(Comm *c, void *x, const size_t *start, DType t)
{
    const MpiComm *m = c->impl;
    const size_t size = dtype_size(t);
    TRY(find_neighbours(c));
    if (!m->window) return message_all_gather(c, x, start, t);
    shm_all_gather(m->window, x, spans_here(c, start), size, true);
    if (!m->speaker) return OK;
    if (speaks(c)) TRY(message_all_gather(c, x, start, t));
    for (int r = 0; r < c->size; r++) // the parts of other nodes
        if (m->speaker[r] != m->speaker[c->rank])
            shm_broadcast(m->window, (char *)x + start[r] * size, (start[r + 1] - start[r]) * size, 0, true);
    return OK;
}

static int mpi_reduce_scatter_parts(Comm *c, void *x, const size_t *start, DType t)
{
    const MpiComm *m = c->impl;
    const size_t size = dtype_size(t);
    TRY(find_neighbours(c));
    if (!m->window) return message_reduce_scatter(c, x, start, t);
    if (!m->speaker) {
        shm_reduce_scatter(m->window, x, spans_here(c, start), t);
        return OK;
    }
    shm_reduce(m->window, (char *)x + start[0] * size, start[c->size] - start[0], t, REDUCE_SUM);
    if (speaks(c)) TRY(message_reduce_scatter(c, x, start, t));
    for (int i = 1; i < c->local_size; i++) {
        const size_t *part = &start[m->neighbour[i]];
        shm_broadcast(m->window, (char *)x + part[0] * size, (part[1] - part[0]) * size, 0, i == c->local_rank);
    }
    return OK;
}

static int mpi_exchange(Comm *c, const CommBlock *out, const CommBlock *in, DType t)
{
    const MpiComm *m = c->impl;
    TRY(find_neighbours(c));
    if (!m->window || m->speaker) return message_exchange(c, out, in, t);
    shm_exchange(m->window, out, in, dtype_size(t));
    return OK;
}

static int mpi_exchange_begin(Comm *c, size_t bytes, void **room, bool *lent)
{
    const MpiComm *m = c->impl;
    TRY(find_neighbours(c));
    *lent = m->window && !m->speaker && shm_exchange_begin(m->window, bytes, room);
    return OK;
}

static void mpi_exchange_end(Comm *c, const CommBlock *in, DType t)
{
    shm_exchange_end(((const MpiComm *)c->impl)->window, in, dtype_size(t));
}

static int mpi_broadcast(Comm *c, void *x, size_t bytes, int root)
{
    const MpiComm *m = c->impl;
    TRY(find_neighbours(c));
    if (!m->window) return message_broadcast(c, x, bytes, root);
    int from = root;
    if (m->speaker) { // the root's node has it first, the others from their leaders
        const bool here = m->speaker[root] == m->speaker[c->rank];
        for (from = 0; here && m->neighbour[from] != root;) from++;
        if (here && from) shm_broadcast(m->window, x, bytes, from, speaks(c));
        if (speaks(c)) TRY(message_broadcast(c, x, bytes, root));
    }
    shm_broadcast(m->window, x, bytes, m->speaker ? 0 : from, true);
    return OK;
}

static int mpi_barrier(Comm *c)
{
    const MpiComm *m = c->impl;
    TRY(find_neighbours(c));
    if (!m->window) return message_barrier(c);
    shm_barrier(m->window);
    if (!m->speaker) return OK;
    if (speaks(c)) TRY(message_barrier(c));
    shm_barrier(m->window);
    return OK;
}

const CommOps comm_mpi = {
    .name = "mpi",
    .open = mpi_open,
    .split = mpi_split,
    .close = mpi_close,
    .all_reduce = mpi_all_reduce,
    .all_gather_parts = mpi_all_gather_parts,
    .reduce_scatter_parts = mpi_reduce_scatter_parts,
    .exchange = mpi_exchange,
    .exchange_begin = mpi_exchange_begin,
    .exchange_end = mpi_exchange_end,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort,
    .mpi_handle = mpi_handle,
};
