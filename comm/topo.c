// topo: the machine as this process may use it, and binding a rank to its share. hwloc is included here only.
//
// What a process may use is the smallest of the machine, its CPU mask (taskset, launchers), and its control
// group: cpuset (hwloc leaves out what it forbids), CPU quota, and memory limit. Control groups: v2, and v1's
// memory and cpu controllers.
#include "comm_impl.h"
#include <ctype.h>
#include <hwloc.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool topo_bound_by_launcher;

// ---- control groups
// ------------------------------------------------------------------------------------------------- First
// line of DIR/NAME; false when there is none.
static bool read_line(const char *dir, const char *name, char *line, int bytes)
{
    char *path = xasprintf("%s/%s", dir, name);
    FILE *f = fopen(path, "re");
    free(path);
    bool ok = f && fgets(line, bytes, f);
    if (f) fclose(f);
    return ok;
}

static void lower_to(uint64_t *limit, uint64_t value)
{
    if (value && value < *limit) *limit = value;
}

// The limits set in one control group's directory; whatever is not there or says "max" limits nothing.
static void read_group(const char *dir, uint64_t *memory, uint64_t *milli_cpus)
{
    char line[256];
    long long quota, period;
    if (read_line(dir, "memory.max", line, sizeof line) || read_line(dir, "memory.limit_in_bytes", line, sizeof line))
        lower_to(memory, strtoull(line, NULL, 10));
    if (read_line(dir, "cpu.max", line, sizeof line) && sscanf(line, "%lld %lld", &quota, &period) == 2 && period > 0)
        lower_to(milli_cpus, (uint64_t)(quota * 1000 / period));
    if (read_line(dir, "cpu.cfs_quota_us", line, sizeof line) && (quota = atoll(line)) > 0 &&
        read_line(dir, "cpu.cfs_period_us", line, sizeof line) && (period = atoll(line)) > 0)
        lower_to(milli_cpus, (uint64_t)(quota * 1000 / period));
}

// A group's limits hold for all groups below it: from the process's own up to the mount point.
static void read_groups_up(const char *mount, const char *group, uint64_t *memory, uint64_t *milli_cpus)
{
    char *path = xasprintf("%s%s", mount, group);
    size_t stop = strlen(mount);
    while (strlen(path) >= stop) {
        read_group(path, memory, milli_cpus);
        char *slash = strrchr(path, '/');
        if (!slash) break;
        *slash = 0;
    }
    free(path);
}

static void read_limits(uint64_t *memory, uint64_t *milli_cpus)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[PATH_MAX + 64];
    while (f && fgets(line, sizeof line, f)) { // "ID:CONTROLLERS:PATH"
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *controllers++ = 0;
        *path++ = 0;
        if (!*controllers) read_groups_up("/sys/fs/cgroup", path, memory, milli_cpus);
        if (strstr(controllers, "memory")) read_groups_up("/sys/fs/cgroup/memory", path, memory, milli_cpus);
        if (strstr(controllers, "cpu,cpuacct") || streq(controllers, "cpu"))
            read_groups_up(tmpf("/sys/fs/cgroup/%s", controllers), path, memory, milli_cpus);
    }
    if (f) fclose(f);
}

// ---- hwloc ------------------------------------------------------------------------------------------------
// The machine without what it does not need here (caches' details, devices), and the CPUs of this process.
static int load(hwloc_topology_t *out, hwloc_cpuset_t *mine)
{
    hwloc_topology_t t = NULL;
    *mine = NULL;
    if (hwloc_topology_init(&t) < 0) return fail(E_FAILED, "hwloc", NULL, "cannot read this machine's topology");
    hwloc_topology_set_io_types_filter(t, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_icache_types_filter(t, HWLOC_TYPE_FILTER_KEEP_NONE);
    if (hwloc_topology_load(t) < 0) {
        hwloc_topology_destroy(t);
        return fail(E_FAILED, "hwloc", NULL, "cannot read this machine's topology");
    }
    *mine = hwloc_bitmap_alloc();
    if (hwloc_get_cpubind(t, *mine, HWLOC_CPUBIND_PROCESS) < 0 || hwloc_bitmap_iszero(*mine))
        hwloc_bitmap_copy(*mine, hwloc_topology_get_allowed_cpuset(t));
    hwloc_bitmap_and(*mine, *mine, hwloc_topology_get_allowed_cpuset(t));
    *out = t;
    return OK;
}

static void unload(hwloc_topology_t t, hwloc_cpuset_t mine)
{
    hwloc_bitmap_free(mine);
    hwloc_topology_destroy(t);
}

// The i-th core, in the machine's order, of which the process may use at least a part; NULL past the last.
static hwloc_obj_t core_at(hwloc_topology_t t, hwloc_const_cpuset_t mine, int i)
{
    hwloc_obj_t core = NULL;
    while ((core = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_CORE, core)))
        if (hwloc_bitmap_intersects(core->cpuset, mine) && i-- == 0) return core;
    return NULL;
}

static int core_count(hwloc_topology_t t, hwloc_const_cpuset_t mine)
{
    int n = 0;
    while (core_at(t, mine, n)) n++;
    return n ? n : hwloc_bitmap_weight(mine); // some virtual machines do not tell their cores
}

static int numa_count(hwloc_topology_t t, hwloc_const_cpuset_t mine)
{
    hwloc_obj_t node = NULL;
    int n = 0;
    while ((node = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, node)))
        n += hwloc_bitmap_intersects(node->cpuset, mine);
    return MAX(n, 1);
}

static void copy_cpu_model(hwloc_topology_t t, char *out, size_t bytes)
{
    hwloc_obj_t package = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
    const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    if (!model) model = hwloc_obj_get_info_by_name(hwloc_get_root_obj(t), "CPUModel");
    while (model && isspace((unsigned char)*model)) model++;
    snprintf(out, bytes, "%s", model ? model : "unknown CPU");
}

// A part of a core counts as one; no quota (UINT64_MAX) as more than there are.
static int quota_cores(uint64_t milli_cpus)
{
    return (int)MIN(milli_cpus / 1000 + (milli_cpus % 1000 != 0), INT_MAX);
}

int topo_read(Topo *out)
{
    hwloc_topology_t t;
    hwloc_cpuset_t mine;
    TRY(load(&t, &mine));
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), milli_cpus = UINT64_MAX;
    read_limits(&memory, &milli_cpus);
    int quota = quota_cores(milli_cpus);
    *out = (Topo){.cores = MIN(core_count(t, mine), quota),
                  .pus = MIN(hwloc_bitmap_weight(mine), quota),
                  .numa_nodes = numa_count(t, mine),
                  .memory_bytes = memory};
    copy_cpu_model(t, out->cpu_model, sizeof out->cpu_model);
    unload(t, mine);
    return OK;
}

// ---- binding ----------------------------------------------------------------------------------------------
// Cores [first, first+n) of the process's, less the hardware threads it may not use.
static int bind_cores(hwloc_topology_t t, hwloc_const_cpuset_t mine, int first, int n, char *bound, size_t bytes)
{
    hwloc_cpuset_t share = hwloc_bitmap_alloc();
    for (int i = first; i < first + n; i++) {
        hwloc_obj_t core = core_at(t, mine, i);
        if (core) hwloc_bitmap_or(share, share, core->cpuset);
    }
    hwloc_bitmap_and(share, share, mine);
    bool ok = !hwloc_bitmap_iszero(share) && hwloc_set_cpubind(t, share, HWLOC_CPUBIND_PROCESS) == 0;
    char list[128] = "";
    hwloc_bitmap_list_snprintf(list, sizeof list, share);
    hwloc_bitmap_free(share);
    snprintf(bound, bytes, ok ? "bound to CPUs %s" : "not bound: this machine refuses CPUs %s", list);
    return ok ? OK : E_FAILED;
}

int topo_bind_share(int local_rank, int local_size, char *bound, size_t bound_bytes)
{
    ASSERT(local_size > 0 && local_rank >= 0 && local_rank < local_size);
    hwloc_topology_t t;
    hwloc_cpuset_t mine;
    const char *choice = getenv("ATTUNE_BIND");
    TRY(load(&t, &mine));
    uint64_t memory = UINT64_MAX, milli_cpus = UINT64_MAX;
    read_limits(&memory, &milli_cpus);
    int cores = core_count(t, mine), quota = quota_cores(milli_cpus);
    int first = (int)((int64_t)cores * local_rank / local_size);
    int share = (int)((int64_t)cores * (local_rank + 1) / local_size) - first;
    if (topo_bound_by_launcher) {
        snprintf(bound, bound_bytes, "bound by the launcher");
        share = cores;
    } else if (choice && streq(choice, "none")) {
        snprintf(bound, bound_bytes, "not bound: ATTUNE_BIND=none");
    } else if (local_size == 1) {
        snprintf(bound, bound_bytes, "not bound: the only rank of this node");
    } else if (cores < local_size) {
        snprintf(bound, bound_bytes, "not bound: %d ranks share %d cores", local_size, cores);
    } else {
        (void)bind_cores(t, mine, first, share, bound, bound_bytes); // an unbound rank is slower, not wrong
    }
    unload(t, mine);
    int fair_quota = MAX(quota / local_size, 1);
    return MAX(MIN(share, fair_quota), 1);
}
