// doctor: what attune finds on this machine, what it will use of it, and how to get what is missing. Reads only; asks no foreign
// library itself: versions come from the build (versions.h), topology from comm, the instruction set from kernels.
#include "runtime.h"
#include "versions.h"
#include <ctype.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { RANK_LINE = 256, MAX_NOTES = 8 };
static const double GIB = 1024.0 * 1024 * 1024;

typedef struct Notes { // what deserves attention, printed last
    char text[MAX_NOTES][256];
    int n;
} Notes;

static void note(Notes *notes, const char *text)
{
    if (notes->n < MAX_NOTES) snprintf(notes->text[notes->n++], sizeof notes->text[0], "%s", text);
}

static void row(const char *name, const char *text)
{
    printf("  %-9s %s\n", name, text);
}

// ---- processor and memory ---------------------------------------------------------------------------------
static void print_cpu(const Topo *t, Notes *notes)
{
    row("CPU",
        tmpf("%s, %d core%s, %d hardware thread%s, %d NUMA node%s", t->cpu_model, t->cores, t->cores == 1 ? "" : "s",
             t->pus, t->pus == 1 ? "" : "s", t->numa_nodes, t->numa_nodes == 1 ? "" : "s"));
    row("", tmpf("kernels for %s, %s", cpu_isa(),
                 cpu_has_fast_bf16() ? "bf16 in hardware" : "bf16 emulated: precision: f32 may be faster"));
    if (streq(cpu_isa(), "generic")) note(notes, "this CPU has no AVX2: training works, slowly");
}

static double available_memory(void)
{
    char line[128];
    double kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lf", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

static void print_memory(const Topo *t, Notes *notes)
{
    double free_bytes = available_memory();
    row("memory", tmpf("%.1f GiB, %.1f GiB available", (double)t->memory_bytes / GIB, free_bytes / GIB));
    if (free_bytes > 0 && free_bytes < 2 * GIB)
        note(notes, "little free memory: `attune plan RECIPE` tells what a run needs");
}

static void print_disk(Notes *notes)
{
    struct statvfs here, shm;
    if (statvfs(".", &here) == 0) {
        double left = (double)here.f_bavail * (double)here.f_frsize;
        row("disk", tmpf("%.1f GiB free here", left / GIB));
        if (left < GIB) note(notes, "little free disk here: set `output` of the recipe to another one");
    }
    if (statvfs("/dev/shm", &shm) == 0 && (double)shm.f_bavail * (double)shm.f_frsize < GIB / 8)
        note(notes, "/dev/shm is small: ranks of one machine talk through it (docker run --shm-size=1g)");
}

// ---- ranks ------------------------------------------------------------------------------------------------
static const char *launcher(const Comm *world)
{
    const char *job = getenv("SLURM_JOB_ID");
    if (job) return tmpf("inside Slurm job %s", job);
    if (comm_launched_by_mpi()) return "started by an MPI launcher";
    return comm_size(world) == 1 ? "`mpirun -n N attune ...` starts N" : "";
}

// Collective: every rank binds itself as a run would, and rank 0 prints what came of it.
static int print_ranks(Comm *world)
{
    const int rank = comm_rank(world), size = comm_size(world);
    char host[64] = "", bound[128] = "";
    gethostname(host, sizeof host - 1);
    int cores = topo_bind_share(comm_local_rank(world), comm_local_size(world), bound, sizeof bound);
    TRY(cores);
    const char *threads = getenv("OMP_NUM_THREADS");
    char *lines = xcalloc((size_t)size, RANK_LINE);
    size_t *start = xcalloc((size_t)size + 1, sizeof *start);
    for (int r = 0; r < size; r++) start[r + 1] = start[r] + RANK_LINE;
    snprintf(lines + start[rank], RANK_LINE, "rank %d on %s: %s thread%s, %s", rank, host,
             threads ? threads : tmpf("%d", cores), streq(threads ? threads : tmpf("%d", cores), "1") ? "" : "s",
             bound);
    int status = comm_all_gather_parts(world, lines, start, DT_U8);
    if (status == OK && rank == 0) {
        row("ranks", tmpf("%d, %s", size, launcher(world)));
        for (int r = 0; r < size; r++) row("", lines + start[r]);
    }
    free(start);
    free(lines);
    return status;
}

// ---- devices and libraries --------------------------------------------------------------------------------
static void gpu_model(const char *information, char *out, size_t bytes)
{
    char line[256];
    snprintf(out, bytes, "NVIDIA GPU");
    FILE *f = fopen(information, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "Model:", 6) != 0) continue;
        char *model = line + 6;
        while (isspace((unsigned char)*model)) model++;
        model[strcspn(model, "\n")] = 0;
        snprintf(out, bytes, "%s", model);
    }
    if (f) fclose(f);
}

// Opens the device, as a run would.
static void print_cuda(bool gpu, Notes *notes)
{
    Device *d;
    if (device_open(&d, &(DeviceConfig){.name = "cuda"}) == OK) {
        row("", tmpf("device cuda: %s", d->about));
        device_close(d);
        return;
    }
    row("", tmpf("device cuda: %s", error_last()->what));
    if (gpu) note(notes, tmpf("there is a GPU that this build does not use: %s", error_last()->hint));
    error_clear();
}

static void print_gpus(Notes *notes)
{
    glob_t driver = {0}, nodes = {0};
    glob("/proc/driver/nvidia/gpus/*/information", 0, NULL, &driver);
    glob("/dev/nvidia[0-9]*", 0, NULL, &nodes);
    for (size_t i = 0; i < driver.gl_pathc; i++) {
        char model[256];
        gpu_model(driver.gl_pathv[i], model, sizeof model);
        row(i ? "" : "GPU", model);
    }
    if (!driver.gl_pathc && nodes.gl_pathc) row("GPU", tmpf("%zu NVIDIA devices", nodes.gl_pathc));
    if (!driver.gl_pathc && !nodes.gl_pathc) row("GPU", "none");
    print_cuda(driver.gl_pathc || nodes.gl_pathc, notes);
    globfree(&driver);
    globfree(&nodes);
}

static bool in_path(const char *program)
{
    const char *path = getenv("PATH");
    char *dirs = xstrdup(path ? path : ""), *rest = NULL;
    bool found = false;
    for (char *dir = strtok_r(dirs, ":", &rest); dir && !found; dir = strtok_r(NULL, ":", &rest))
        found = access(tmpf("%s/%s", dir, program), X_OK) == 0;
    free(dirs);
    return found;
}

static void print_libraries(Notes *notes)
{
    static const char *const libraries[][2] = {
#define LIBRARY(name, version) {name, version},
        LIBRARIES
#undef LIBRARY
    };
    Buf line = {0};
    for (size_t i = 0; i < COUNT_OF(libraries); i++) {
        const char *item = tmpf("%s %s", libraries[i][0], libraries[i][1]);
        if (line.len && line.len + strlen(item) > 80) {
            row("", line.data);
            line.len = 0;
        }
        buf_printf(&line, "%s%s", line.len ? ", " : "", item);
    }
    row("", line.data);
    buf_free(&line);
    if (!in_path("mpirun"))
        note(notes, "mpirun is not in PATH, so only one rank can be started: apt-get install mpich");
}

int run_doctor(Comm *world)
{
    Topo topo;
    TRY(topo_read(&topo)); // before a rank is bound to a part of it
    Notes notes = {0};
    bool first = comm_rank(world) == 0;
    if (first) {
        printf("attune %s, built by %s\n", ATTUNE_BUILD, COMPILER);
        print_cpu(&topo, &notes);
        print_memory(&topo, &notes);
    }
    TRY(print_ranks(world));
    if (!first) return OK;
    print_gpus(&notes);
    print_disk(&notes);
    row("libraries", "");
    print_libraries(&notes);
    for (int i = 0; i < notes.n; i++) row(i ? "" : "note", notes.text[i]);
    if (!notes.n) puts("Nothing is missing.");
    return OK;
}
