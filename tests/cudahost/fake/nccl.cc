// nccl: the collectives over MPI, carried out when their stream comes to them. Sums are made in the order of the ranks, bf16 in f32 and
// rounded once. Operations of one communicator begin in the order in which they were submitted, on every rank; those of different
// communicators go on side by side, as non-blocking MPI.
#include "fake.h"
#include <memory>
#include <mpi.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

struct ncclComm {
    MPI_Comm mpi; // MPI_COMM_NULL: one rank alone
    int rank, size, device;
    int not_yet; // how often its making is still said to be in progress
    bool aborted;
};

namespace fake
{
struct Id { // in a ncclUniqueId
    char mark[8];
    int32_t maker, tag; // rank of the world
};
static_assert(sizeof(Id) <= sizeof(ncclUniqueId), "");

static size_t size_of(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclFloat32: return 4;
    case ncclInt64: return 8;
    default: return 0;
    }
}

static float wide(uint16_t b)
{
    const uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t narrow(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return f != f ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T> static void reduce_as(T *out, const T *all, size_t count, int ranks, ncclRedOp_t op)
{
    for (size_t i = 0; i < count; i++) {
        T v = all[i];
        for (int r = 1; r < ranks; r++) {
            const T x = all[(size_t)r * count + i];
            v = op == ncclSum ? (T)(v + x) : op == ncclMax ? (x > v ? x : v) : (x < v ? x : v);
        }
        out[i] = v;
    }
}

static void reduce(void *out, const char *all, size_t count, int ranks, ncclDataType_t t, ncclRedOp_t op)
{
    if (t == ncclFloat32)
        reduce_as((float *)out, (const float *)all, count, ranks, op);
    else if (t == ncclInt64)
        reduce_as((int64_t *)out, (const int64_t *)all, count, ranks, op);
    else if (t == ncclInt32)
        reduce_as((int32_t *)out, (const int32_t *)all, count, ranks, op);
    else if (t == ncclUint8)
        reduce_as((uint8_t *)out, (const uint8_t *)all, count, ranks, op);
    else
        for (size_t i = 0; i < count; i++) {
            const uint16_t *x = (const uint16_t *)all;
            float v = wide(x[i]);
            for (int r = 1; r < ranks; r++) v += wide(x[(size_t)r * count + i]);
            ((uint16_t *)out)[i] = narrow(v);
        }
}

// ---- operations -----------------------------------------------------------------------------------------------------
// Everybody's input is gathered, by non-blocking MPI; finish takes from it what this rank is to have.
struct Operation {
    ncclComm_t comm;
    const void *in;
    size_t in_bytes;
    std::function<void(const char *all)> finish;
    std::vector<char> mine, all;
    MPI_Request request;
    bool begun = false;
};

static bool go_on(Operation *o)
{
    if (o->comm->aborted) return true;
    if (o->comm->size == 1) {
        o->mine.assign((const char *)o->in, (const char *)o->in + o->in_bytes);
        o->finish(o->mine.data());
        return true;
    }
    if (!o->begun) {
        o->mine.assign((const char *)o->in, (const char *)o->in + o->in_bytes);
        o->all.resize(o->in_bytes * (size_t)o->comm->size);
        MPI_Iallgather(o->mine.data(), (int)o->in_bytes, MPI_BYTE, o->all.data(), (int)o->in_bytes, MPI_BYTE,
                       o->comm->mpi, &o->request);
        o->begun = true;
    }
    int done = 0;
    MPI_Test(&o->request, &done, MPI_STATUS_IGNORE);
    if (done) o->finish(o->all.data());
    return done != 0;
}

struct Queued {
    std::shared_ptr<Operation> op;
    cudaStream_t stream;
    const char *what;
};
static thread_local int group_depth;
static thread_local std::vector<Queued> group;

static ncclResult_t add(const char *what, ncclComm_t comm, cudaStream_t stream, const void *in, size_t in_bytes,
                        const void *out, size_t out_bytes, std::function<void(const char *)> finish)
{
    FAKE_ENTRY;
    if (!comm || comm->aborted) return ncclInvalidArgument;
    if (comm->device != current_device()) {
        fprintf(stderr, "cudahost: %s: the communicator is of another device than the current one\n", what);
        return ncclInvalidUsage;
    }
    if ((in_bytes && !cudahost_is_device(in, in_bytes)) || (out_bytes && !cudahost_is_device(out, out_bytes))) {
        fprintf(stderr, "cudahost: %s of what is not the device's memory\n", what);
        return ncclInvalidArgument;
    }
    auto o = std::make_shared<Operation>();
    o->comm = comm;
    o->in = in;
    o->in_bytes = in_bytes;
    o->finish = std::move(finish);
    if (group_depth)
        group.push_back({o, stream, what});
    else
        submit(stream, Work{[o] { return go_on(o.get()); }, what});
    return ncclSuccess;
}

static bool reducible(ncclDataType_t t, ncclRedOp_t op)
{
    return size_of(t) && t != ncclInt8 && (op == ncclSum || ((op == ncclMax || op == ncclMin) && t != ncclBfloat16));
}

// ---- communicators --------------------------------------------------------------------------------------------------
static bool mpi_runs()
{
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

// The members of an id find each other through its maker, who is one of them.
static MPI_Comm gather_members(const Id &id, int size, int rank)
{
    int world_rank;
    std::vector<int> member((size_t)size);
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    if (world_rank == id.maker) {
        member[(size_t)rank] = world_rank;
        for (int i = 1; i < size; i++) {
            int said;
            MPI_Status from;
            MPI_Recv(&said, 1, MPI_INT, MPI_ANY_SOURCE, id.tag, MPI_COMM_WORLD, &from);
            member[(size_t)said] = from.MPI_SOURCE;
        }
        for (int r : member)
            if (r != world_rank) MPI_Send(member.data(), size, MPI_INT, r, id.tag, MPI_COMM_WORLD);
    } else {
        MPI_Send(&rank, 1, MPI_INT, id.maker, id.tag, MPI_COMM_WORLD);
        MPI_Recv(member.data(), size, MPI_INT, id.maker, id.tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Group world, members;
    MPI_Comm comm;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, size, member.data(), &members);
    MPI_Comm_create_group(MPI_COMM_WORLD, members, id.tag, &comm);
    MPI_Group_free(&world);
    MPI_Group_free(&members);
    return comm;
}

static ncclResult_t init(ncclComm_t *out, int size, ncclUniqueId unique, int rank, bool blocking)
{
    Id id;
    memcpy(&id, &unique, sizeof id);
    if (memcmp(id.mark, "cudahost", 8) != 0 || rank < 0 || rank >= size) return ncclInvalidArgument;
    ncclComm *c = new ncclComm{MPI_COMM_NULL, rank, size, current_device(), blocking ? 0 : 3, false};
    if (size > 1) {
        if (!mpi_runs()) misuse("ncclCommInitRank: ranks are connected by MPI, which has not been started");
        c->mpi = gather_members(id, size, rank);
        std::vector<int> device((size_t)size);
        MPI_Allgather(&c->device, 1, MPI_INT, device.data(), 1, MPI_INT, c->mpi);
        for (int a = 0; a < size; a++)
            for (int b = 0; b < a; b++)
                if (device[(size_t)a] == device[(size_t)b]) {
                    if (!rank) fprintf(stderr, "cudahost: NCCL: ranks %d and %d have the same GPU\n", b, a);
                    MPI_Comm_free(&c->mpi);
                    delete c;
                    return ncclInvalidUsage;
                }
    }
    *out = c;
    return blocking ? ncclSuccess : ncclInProgress;
}
} // namespace fake

using namespace fake;

extern "C" {
ncclResult_t ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t r)
{
    return r == ncclSuccess           ? "no error"
           : r == ncclInProgress      ? "operation in progress"
           : r == ncclInvalidUsage    ? "invalid usage"
           : r == ncclInvalidArgument ? "invalid argument"
           : r == ncclRemoteError     ? "remote process exited or there was a network error"
                                      : "failed";
}
const char *ncclGetLastError(ncclComm_t)
{
    return "";
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    static int made;
    Id id = {{'c', 'u', 'd', 'a', 'h', 'o', 's', 't'}, 0, 1000 + made++};
    if (mpi_runs()) MPI_Comm_rank(MPI_COMM_WORLD, &id.maker);
    memset(out, 0, sizeof *out);
    memcpy(out, &id, sizeof id);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank)
{
    return init(out, size, id, rank, true);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    return init(out, size, id, rank, !config || config->blocking != 0);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *out)
{
    FAKE_ENTRY;
    static int healthy = env("CUDAHOST_NCCL_LOST", -1);
    *out = c->not_yet > 0 && c->not_yet-- ? ncclInProgress : ncclSuccess;
    if (c->size > 1 && healthy >= 0 && !healthy--) *out = ncclRemoteError;
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t)
{
    run_until("ncclCommFinalize", idle);
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    run_until("ncclCommDestroy", idle);
    if (c->mpi != MPI_COMM_NULL && mpi_runs()) MPI_Comm_free(&c->mpi);
    delete c;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    FAKE_ENTRY;
    c->aborted = true; // what is under way ends without a result
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *n)
{
    *n = c->size;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *r)
{
    *r = c->rank;
    return ncclSuccess;
}
ncclResult_t ncclGroupStart()
{
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd()
{
    if (!group_depth) return ncclInvalidUsage;
    if (--group_depth) return ncclSuccess;
    FAKE_ENTRY;
    for (Queued &q : group) {
        auto o = q.op;
        submit(q.stream, Work{[o] { return go_on(o.get()); }, q.what});
    }
    group.clear();
    return ncclSuccess;
}
ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t s)
{
    if (!reducible(t, op)) return ncclInvalidArgument;
    const size_t bytes = n * size_of(t);
    return add("ncclAllReduce", c, s, in, bytes, out, bytes,
               [=](const char *all) { reduce(out, all, n, c->size, t, op); });
}
ncclResult_t ncclReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, int root, ncclComm_t c,
                        cudaStream_t s)
{
    if (!reducible(t, op) || root < 0 || root >= c->size) return ncclInvalidArgument;
    const size_t bytes = n * size_of(t);
    return add("ncclReduce", c, s, in, bytes, out, c->rank == root ? bytes : 0, [=](const char *all) {
        if (c->rank == root) reduce(out, all, n, c->size, t, op);
    });
}
ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                               cudaStream_t s)
{
    if (!reducible(t, op)) return ncclInvalidArgument;
    const size_t part = n * size_of(t), all_bytes = part * (size_t)c->size;
    return add("ncclReduceScatter", c, s, in, all_bytes, out, part, [=](const char *all) {
        std::vector<char> mine(all_bytes);
        for (int r = 0; r < c->size; r++)
            memcpy(&mine[(size_t)r * part], all + (size_t)r * all_bytes + (size_t)c->rank * part, part);
        reduce(out, mine.data(), n, c->size, t, op);
    });
}
ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s)
{
    if (!size_of(t)) return ncclInvalidArgument;
    const size_t bytes = n * size_of(t);
    return add("ncclAllGather", c, s, in, bytes, out, bytes * (size_t)c->size,
               [=](const char *all) { memcpy(out, all, bytes * (size_t)c->size); });
}
ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t s)
{
    if (!size_of(t) || root < 0 || root >= c->size) return ncclInvalidArgument;
    const size_t bytes = n * size_of(t);
    const void *from = c->rank == root ? in : out; // what the others hold is of no interest, but must be theirs
    return add("ncclBroadcast", c, s, from, bytes, out, bytes,
               [=](const char *all) { memcpy(out, all + (size_t)root * bytes, bytes); });
}
}
