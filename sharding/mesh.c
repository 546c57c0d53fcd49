// mesh: the ranks as a grid, data × tensor.
#include "sharding.h"
#include <stdlib.h>
#include <string.h>

// Ranks that are only pretended to be there (plans) have nobody to wait for: jobs run at once.
static int open_background(Mesh *m, int tensor)
{
    TRY(comm_split_grid(&m->tensor_bg, m->world, tensor, true));
    TRY(comm_split_grid(&m->data_bg, m->world, tensor, false));
    return comm_queue_open(&m->queue, comm_mpi_handle(m->world) != NULL);
}

int mesh_open(Mesh *m, Comm *world, int tensor)
{
    int size = comm_size(world), rank = comm_rank(world);
    memset(m, 0, sizeof *m);
    if (tensor < 1 || size % tensor)
        return fail(E_INPUT, "parallel.tensor", "start a multiple of parallel.tensor ranks",
                    "%d ranks cannot be divided into groups of %d", size, tensor);
    m->world = world;
    m->data_rank = rank / tensor;
    m->data_size = size / tensor;
    m->tensor_rank = rank % tensor;
    m->tensor_size = tensor;
    int status = comm_split_grid(&m->tensor, world, tensor, true);
    if (status == OK) status = comm_split_grid(&m->data, world, tensor, false);
    if (status == OK && size > 1) status = open_background(m, tensor);
    if (status < 0) mesh_close(m);
    return status;
}

typedef struct Found { // a rank's device
    char name[24], place[40];
} Found;

static int gather_devices(Comm *world, const Device *d, Found *all)
{
    const size_t n = (size_t)comm_size(world);
    size_t *start = xcalloc(n + 1, sizeof *start);
    for (size_t r = 0; r <= n; r++) start[r] = r * sizeof *all;
    Found *own = &all[comm_rank(world)];
    snprintf(own->name, sizeof own->name, "%s", d->name);
    snprintf(own->place, sizeof own->place, "%s", d->place);
    int status = comm_all_gather_parts(world, all, start, DT_U8);
    free(start);
    return status;
}

static int compare_devices(const Found *all, int n, bool *shared)
{
    *shared = false;
    for (int a = 1; a < n; a++) {
        if (!streq(all[a].name, all[0].name))
            return fail(E_INPUT, "device", "name one that all have: device: cpu", "rank 0 has %s, rank %d has %s",
                        all[0].name, a, all[a].name);
        for (int b = 0; b < a && *all[a].place; b++) {
            if (!streq(all[a].place, all[b].place)) continue;
            *shared = true;
            if (getenv("ATTUNE_SHARE_GPUS")) continue;
            return fail(E_INPUT, "device",
                        "start one rank for each GPU of a node; ATTUNE_SHARE_GPUS=1 lets ranks share them, slowly",
                        "ranks %d and %d have the same GPU", b, a);
        }
    }
    return OK;
}

int mesh_use_device(Mesh *m, Device *d)
{
    Comm *groups[] = {m->tensor, m->data, m->tensor_bg, m->data_bg};
    const int n = comm_size(m->world);
    bool shared = false;
    if (!comm_mpi_handle(m->world) || n == 1) return OK; // alone, or among ranks that are only pretended
    Found *all = xcalloc((size_t)n, sizeof *all);
    int status = gather_devices(m->world, d, all);
    if (status == OK) status = compare_devices(all, n, &shared);
    free(all);
    TRY(status);
    const bool direct = !shared && !getenv("ATTUNE_COMM");
    for (size_t i = 0; i < COUNT_OF(groups); i++)
        if (groups[i]) TRY(comm_use_device(groups[i], d, direct));
    comm_queue_use_device(m->queue, d);
    return OK;
}

// The world is the caller's.
void mesh_close(Mesh *m)
{
    comm_queue_close(m->queue);
    comm_close(m->data_bg);
    comm_close(m->tensor_bg);
    comm_close(m->data);
    comm_close(m->tensor);
    memset(m, 0, sizeof *m);
}

// ---- readings -------------------------------------------------------------------------------------------------------
CommStats stats_sum(CommStats a, CommStats b)
{
    return (CommStats){.calls = a.calls + b.calls,
                       .bytes = a.bytes + b.bytes,
                       .wire_bytes = a.wire_bytes + b.wire_bytes,
                       .wait_ms = a.wait_ms + b.wait_ms};
}

static CommStats stats_since(CommStats now, CommStats before)
{
    return (CommStats){.calls = now.calls - before.calls,
                       .bytes = now.bytes - before.bytes,
                       .wire_bytes = now.wire_bytes - before.wire_bytes,
                       .wait_ms = now.wait_ms - before.wait_ms};
}

static CommStats group_stats(const Comm *c)
{
    return c && comm_size(c) > 1 ? comm_stats(c) : (CommStats){0};
}

Traffic mesh_traffic(const Mesh *m)
{
    const CommStats tensor = group_stats(m->tensor), data = group_stats(m->data), world = group_stats(m->world);
    Traffic t = {.tensor = stats_sum(tensor, group_stats(m->tensor_bg)),
                 .data = stats_sum(data, group_stats(m->data_bg)),
                 .world = world,
                 .wait_ms = tensor.wait_ms + data.wait_ms + world.wait_ms};
    if (!m->queue) return t;
    const CommQueueStats beside = comm_queue_stats(m->queue);
    t.beside_ms = beside.busy_ms;
    t.beside_wait_ms = beside.waited_ms;
    t.wait_ms += beside.waited_ms;
    return t;
}

Traffic traffic_since(Traffic now, const Traffic *before)
{
    return (Traffic){.tensor = stats_since(now.tensor, before->tensor),
                     .data = stats_since(now.data, before->data),
                     .world = stats_since(now.world, before->world),
                     .wait_ms = now.wait_ms - before->wait_ms,
                     .beside_ms = now.beside_ms - before->beside_ms,
                     .beside_wait_ms = now.beside_wait_ms - before->beside_wait_ms};
}

uint64_t traffic_bytes(const Traffic *t)
{
    return t->tensor.bytes + t->data.bytes + t->world.bytes;
}

size_t mesh_footprint(const Mesh *m)
{
    const Comm *const group[] = {m->world, m->data, m->tensor, m->data_bg, m->tensor_bg};
    size_t bytes = 0;
    for (size_t i = 0; i < COUNT_OF(group); i++) bytes += group[i] ? comm_footprint(group[i]) : 0;
    return bytes;
}
