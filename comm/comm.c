// comm: the one owner of collectives. Picks the kind of communicator, checks arguments, counts bytes and
// time; the exchange itself is in comm_KIND.c. Also what is built out of collectives and so is the same for
// every kind: comm_agree and comm_broadcast_blob.
#include "comm_impl.h"
#include "shm.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const CommWire *const wires[] = {
#define WIRE(name) &wire_##name,
#include "wires.def"
#undef WIRE
    &wire_staged,
};
static const CommOps *const kinds[] = {
#define COMM(kind) &comm_##kind,
#include "comms.def"
#undef COMM
};

// ---- launchers --------------------------------------------------------------------------------------------
bool comm_launched_by_mpi(void)
{
    static const char *const marks[] = {"PMI_RANK", "PMI_SIZE", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"};
    for (size_t i = 0; i < COUNT_OF(marks); i++)
        if (getenv(marks[i])) return true;
    return false;
}

static int env_int(const char *name)
{
    const char *s = getenv(name);
    return s ? atoi(s) : 0;
}

// A launcher that speaks another protocol than our MPI starts N processes that each believe they are alone;
// they would train N times and overwrite each other. The launcher's own variables give it away.
static int refuse_lonely_rank(const Comm *c)
{
    if (c->size > 1) return OK;
    int tasks = env_int("SLURM_STEP_NUM_TASKS");
    if (!tasks && getenv("SLURM_STEP_ID")) tasks = env_int("SLURM_NTASKS");
    if (tasks > 1)
        return fail(E_INPUT, "srun", "start it with `srun --mpi=pmi2`, or with `mpirun` inside the batch script",
                    "this Slurm step has %d tasks, but each of them sees a world of one rank", tasks);
    int ompi = env_int("OMPI_COMM_WORLD_SIZE");
    if (ompi > 1)
        return fail(E_INPUT, "mpirun",
                    "start it with the mpirun of the MPI it was built with (`attune doctor` names it)",
                    "Open MPI's mpirun started %d processes, but each of them sees a world of one rank", ompi);
    return OK;
}

static int find_kind(const char *name, const CommOps **out)
{
    if (!name || streq(name, "auto")) name = comm_launched_by_mpi() ? "mpi" : "self";
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        if (!streq(kinds[i]->name, name)) continue;
        *out = kinds[i];
        return OK;
    }
    const char *known = "auto";
    for (size_t i = 0; i < COUNT_OF(kinds); i++) known = tmpf("%s, %s", known, kinds[i]->name);
    return fail(E_MISSING, NULL, tmpf("this build has: %s", known), "no communicator of kind \"%s\"", name);
}

// ---- life -------------------------------------------------------------------------------------------------
int comm_open(Comm **out, const CommConfig *config)
{
    Comm *c = xcalloc(1, sizeof *c);
    int status = OK;
    TRY_DONE(find_kind(config->kind, &c->ops));
    TRY_DONE(c->ops->open(c, config));
    if (c->ops != &comm_fake) TRY_DONE(refuse_lonely_rank(c));
    c->world = true;
    activity_open(c);
    *out = c;
    c = NULL;
done:
    if (c && c->ops) c->ops->close(c);
    free(c);
    return status;
}

// size, rank: of this rank's group, and in it; size 0: not known before
static int split_host(Comm **out, Comm *c, int color, int key, int size, int rank)
{
    Comm *part = xcalloc(1, sizeof *part);
    const uint64_t parent[] = {c->group, c->parts++, (uint64_t)color};
    part->ops = c->ops;
    part->size = size;
    part->rank = rank;
    part->group = hash64(parent, sizeof parent, 0);
    activity_enter(c, "split");
    int status = c->ops->split(part, c, color, key);
    activity_leave(c);
    if (status < 0) {
        c->ops->close(part);
        free(part);
        return status;
    }
    activity_open(part);
    *out = part;
    return OK;
}

static int split_off(Comm **out, Comm *c, int color, int key, int size, int rank)
{
    Comm *part;
    TRY(split_host(&part, c, color, key, size, rank));
    int status = c->device ? comm_use_device(part, c->device, c->wire != &wire_staged) : OK;
    if (status < 0)
        comm_close(part);
    else
        *out = part;
    return status;
}

int comm_use_device(Comm *c, Device *d, bool direct)
{
    ASSERT(!c->device);
    if (!d->obtain || c->ops == &comm_fake) return OK; // its memory is the host's, or nobody's
    c->device = d;
    c->wire = &wire_staged;
    for (size_t i = COUNT_OF(wires); direct && i-- > 0;)
        if (wires[i]->device && streq(wires[i]->device, d->name)) c->wire = wires[i];
    if (c->size == 1) return OK;
    activity_enter(c, "connect");
    const int status = c->wire->open(&c->wire_impl, c, d);
    activity_leave(c);
    return status;
}

int comm_split(Comm **out, Comm *c, int color, int key)
{
    return split_off(out, c, color, key, 0, 0);
}

int comm_split_host(Comm **out, Comm *c, int color, int key, size_t room)
{
    TRY(split_host(out, c, color, key, 0, 0));
    (*out)->room = room;
    return OK;
}

int comm_split_grid(Comm **out, Comm *c, int columns, bool row)
{
    ASSERT(columns > 0 && c->size % columns == 0);
    const int y = c->rank / columns, x = c->rank % columns;
    return row ? split_off(out, c, y, c->rank, columns, x) : split_off(out, c, x, c->rank, c->size / columns, y);
}

int comm_split_range(Comm **out, Comm *c, int first, int count)
{
    ASSERT(first >= 0 && first <= c->rank && c->rank < first + count && first + count <= c->size);
    return split_off(out, c, first, c->rank, count, c->rank - first);
}

void comm_close(Comm *c)
{
    if (!c) return;
    if (c->wire_impl) c->wire->close(c->wire_impl);
    (void)comm_barrier(c);
    activity_close(c);
    c->ops->close(c);
    free(c->own_room);
    free(c);
}

_Noreturn void comm_abort(Comm *c, int exit_code)
{
    fflush(stdout);
    if (c && c->ops->abort) c->ops->abort(c, exit_code);
    _exit(exit_code);
}

static struct {
    pthread_mutex_t lock; // held while fn is called
    void (*fn)(void *ctx, int rank, const char *what);
    void *ctx;
} on_abort = {.lock = PTHREAD_MUTEX_INITIALIZER};

void comm_on_abort(void (*fn)(void *ctx, int rank, const char *what), void *ctx)
{
    pthread_mutex_lock(&on_abort.lock);
    on_abort.fn = fn;
    on_abort.ctx = ctx;
    pthread_mutex_unlock(&on_abort.lock);
}

void tell_abort(int rank, const char *what)
{
    pthread_mutex_lock(&on_abort.lock);
    if (on_abort.fn) on_abort.fn(on_abort.ctx, rank, what);
}

_Noreturn void comm_abort_because(Comm *c, const char *what)
{
    tell_abort(c->rank, what);
    comm_abort(c, error_exit_code(E_FAILED));
}

// ---- readings ---------------------------------------------------------------------------------------------
int comm_rank(const Comm *c)
{
    return c->rank;
}
int comm_size(const Comm *c)
{
    return c->size;
}
int comm_local_rank(const Comm *c)
{
    return c->local_rank;
}
int comm_local_size(const Comm *c)
{
    return c->local_size;
}
CommStats comm_stats(const Comm *c)
{
    return (CommStats){
        .calls = c->calls, .bytes = c->bytes, .wire_bytes = c->wire_bytes, .wait_ms = (double)c->wait_ns * 1e-6};
}

size_t comm_footprint(const Comm *c)
{
    enum { MPI_BYTES = 12 << 20 }; // measured with MPICH 4.0 over UCX, 2 to 8 ranks
    if (c->size == 1) return 0;
    return (c->world ? MPI_BYTES : 0) + shm_resident_bytes(c->local_size, c->room, c->largest);
}

void *comm_mpi_handle(const Comm *c)
{
    return c->ops->mpi_handle ? c->ops->mpi_handle(c) : NULL;
}

// ---- collectives ------------------------------------------------------------------------------------------
static size_t checked_bytes(size_t count, DType t)
{
    size_t bytes = 0;
    ASSERT(t >= 0 && t < DT_COUNT && mul_ok(count, dtype_size(t), &bytes));
    return bytes;
}

// bytes: handed in; payload: all that is exchanged, of which `rounds` times (n-1)/n passes each rank of a ring
static int counted(Comm *c, size_t bytes, size_t payload, int rounds, double start_ms, int status)
{
    c->calls++;
    c->bytes += bytes;
    c->wire_bytes += (uint64_t)((double)payload * rounds * (c->size - 1) / c->size);
    if (bytes > c->largest) c->largest = bytes;
    c->wait_ns += (uint64_t)((activity_leave(c) - start_ms) * 1e6);
    return status;
}

static bool far(const Comm *c, const void *x)
{
    return device_owns(c->device, x);
}

int comm_all_reduce(Comm *c, void *x, size_t count, DType t, ReduceOp op)
{
    size_t bytes = checked_bytes(count, t);
    ASSERT(t != DT_F16 && (t != DT_BF16 || op == REDUCE_SUM) && (x || !count || c->ops == &comm_fake));
    if (!count) return OK;
    double start = activity_enter(c, "all_reduce");
    int status = OK;
    if (c->size > 1)
        status =
            far(c, x) ? c->wire->all_reduce(c->wire_impl, x, count, t, op) : c->ops->all_reduce(c, x, count, t, op);
    return counted(c, bytes, bytes, 2, start, status);
}

// All parts together, in bytes: what every rank hands in or gets.
static size_t checked_parts(const Comm *c, const void *x, const size_t *start, DType t)
{
    for (int r = 0; r < c->size; r++) ASSERT(start[r] <= start[r + 1]);
    (void)checked_bytes(start[c->size], t);
    size_t bytes = checked_bytes(start[c->size] - start[0], t);
    ASSERT(x || !bytes || c->ops == &comm_fake);
    return bytes;
}

int comm_all_gather_parts(Comm *c, void *x, const size_t *start, DType t)
{
    size_t bytes = checked_parts(c, x, start, t);
    if (!bytes) return OK;
    size_t mine = (start[c->rank + 1] - start[c->rank]) * dtype_size(t);
    double began = activity_enter(c, "all_gather");
    int status = OK;
    if (c->size > 1)
        status =
            far(c, x) ? c->wire->all_gather_parts(c->wire_impl, x, start, t) : c->ops->all_gather_parts(c, x, start, t);
    return counted(c, mine, bytes, 1, began, status);
}

int comm_reduce_scatter_parts(Comm *c, void *x, const size_t *start, DType t)
{
    size_t bytes = checked_parts(c, x, start, t);
    ASSERT(t != DT_F16);
    if (!bytes) return OK;
    double began = activity_enter(c, "reduce_scatter");
    int status = OK;
    if (c->size > 1)
        status = far(c, x) ? c->wire->reduce_scatter_parts(c->wire_impl, x, start, t)
                           : c->ops->reduce_scatter_parts(c, x, start, t);
    return counted(c, bytes, bytes, 1, began, status);
}

// Of all blocks together.
static size_t checked_blocks(const Comm *c, const CommBlock *b, DType t)
{
    size_t bytes = 0;
    for (int r = 0; r < c->size; r++) {
        size_t elements = 0, reach = 0;
        ASSERT(mul_ok(b[r].rows, b[r].count, &elements) && mul_ok(b[r].rows, b[r].stride, &reach));
        ASSERT(b[r].rows < 2 || b[r].stride >= b[r].count);
        ASSERT(b[r].at || !elements || c->ops == &comm_fake);
        ASSERT(!device_owns(c->device, b[r].at));
        (void)checked_bytes(reach, t);
        bytes += checked_bytes(elements, t);
    }
    return bytes;
}

int comm_exchange(Comm *c, const CommBlock *out, const CommBlock *in, DType t)
{
    const size_t bytes = checked_blocks(c, out, t), size = dtype_size(t);
    (void)checked_blocks(c, in, t);
    ASSERT(block_bytes(&out[c->rank], size) == block_bytes(&in[c->rank], size));
    double start = activity_enter(c, "exchange");
    if (out[c->rank].at) block_copy(&in[c->rank], &out[c->rank], size);
    return counted(c, bytes, bytes, 1, start, c->size > 1 ? c->ops->exchange(c, out, in, t) : OK);
}

int comm_exchange_begin(Comm *c, size_t bytes, void **room)
{
    int status = OK;
    double start = activity_enter(c, "exchange");
    c->lent = false;
    if (c->size > 1 && c->ops->exchange_begin) status = c->ops->exchange_begin(c, bytes, room, &c->lent);
    if (!c->lent) c->own_room = xrealloc(c->own_room, bytes * (size_t)c->size + 1);
    for (int r = 0; r < c->size && !c->lent; r++) room[r] = c->own_room + (size_t)r * bytes;
    c->wait_ns += (uint64_t)((activity_leave(c) - start) * 1e6);
    return status;
}

static int exchange_own_room(Comm *c, void *const *room, const size_t *given, const CommBlock *in, DType t)
{
    CommBlock *out = xcalloc((size_t)c->size, sizeof *out);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) out[r] = (CommBlock){room[r], 1, given[r] / dtype_size(t), given[r] / dtype_size(t)};
    int status = c->size > 1 ? c->ops->exchange(c, out, in, t) : OK;
    free(out);
    return status;
}

int comm_exchange_end(Comm *c, void *const *room, const size_t *given, const CommBlock *in, DType t)
{
    size_t bytes = 0;
    int status = OK;
    (void)checked_blocks(c, in, t);
    for (int r = 0; r < c->size; r++) bytes += r == c->rank ? 0 : given[r];
    double start = activity_enter(c, "exchange");
    if (c->lent)
        c->ops->exchange_end(c, in, t);
    else
        status = exchange_own_room(c, room, given, in, t);
    return counted(c, bytes, bytes, 1, start, status);
}

int comm_broadcast(Comm *c, void *x, size_t count, DType t, int root)
{
    size_t bytes = checked_bytes(count, t);
    ASSERT(root >= 0 && root < c->size && (x || !count));
    if (!count) return OK;
    double start = activity_enter(c, "broadcast");
    int status = OK;
    if (c->size > 1)
        status = far(c, x) ? c->wire->broadcast(c->wire_impl, x, bytes, root) : c->ops->broadcast(c, x, bytes, root);
    return counted(c, bytes, bytes, 1, start, status);
}

int comm_barrier(Comm *c)
{
    double start = activity_enter(c, "barrier");
    return counted(c, 0, 0, 0, start, c->size > 1 ? c->ops->barrier(c) : OK);
}

// ---- built out of collectives -----------------------------------------------------------------------------
// How bad a status is; the worst of the ranks becomes everybody's.
static int64_t severity(int status)
{
    if (status >= 0) return 0;
    return status == E_PREEMPTED ? 1 : 1 - (int64_t)status;
}

int comm_agree(Comm *c, int status)
{
    // One number holds severity, whether this rank can say what happened (a rank that heard of the fault in
    // an earlier agreement cannot), and the rank: one MAX finds the worst status and the lowest of the ranks
    // that should tell of it.
    const ErrorRecord *mine = error_last();
    int64_t tells = mine->code && *mine->what;
    int64_t worst = severity(status) << 32 | tells << 31 | (INT32_MAX - c->rank);
    TRY(comm_all_reduce(c, &worst, 1, DT_I64, REDUCE_MAX));
    int64_t level = worst >> 32;
    if (!level) return OK;
    int agreed = level == 1 ? E_PREEMPTED : (int)(1 - level);
    int culprit = INT32_MAX - (int)(worst & INT32_MAX);
    if (culprit != c->rank) {
        // What this rank found itself is less bad, or the same thing again: an error is told once, by the
        // culprit.
        if (tells) log_debug("%s: %s (rank %d reports its own)", mine->place, mine->what, culprit);
        error_clear();
        fail(agreed, tmpf("rank %d", culprit), NULL, "%s", "");
    }
    error_mark_agreed();
    return agreed;
}

int comm_broadcast_blob(Comm *c, void **data, size_t *bytes, int root)
{
    int64_t size = c->rank == root ? (int64_t)*bytes : 0;
    TRY(comm_broadcast(c, &size, 1, DT_I64, root));
    // MPI writes to the root's buffer too (the same bytes): a copy travels, so that the root's may be
    // read-only.
    char *copy = xmalloc((size_t)size + 1);
    if (c->rank == root && size) memcpy(copy, *data, (size_t)size);
    copy[size] = 0; // so that a string can be used as one
    int status = comm_broadcast(c, copy, (size_t)size, DT_U8, root);
    if (c->rank == root || status < 0) {
        free(copy);
        return status;
    }
    *data = copy;
    *bytes = (size_t)size;
    return OK;
}
