#include "provenance.h"
#include "from_checkpoint.h"
#include "io/checkpoint.h"
#include "versions.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOST_BYTES = 256, MOST_FILES = 4096 };
static const off_t most_digested = (off_t)256 << 20; // hashing takes a moment then, a minute for the largest models

static json_t *utc(time_t at)
{
    char text[32];
    struct tm tm;
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&at, &tm));
    return json_string(text);
}

// ---- the program and its ranks --------------------------------------------------------------------------------------
static void add_build(json_t *j)
{
    json_t *libraries = json_object();
    json_object_set_new(j, "attune", json_string(ATTUNE_BUILD));
    if (*ATTUNE_COMMIT) json_object_set_new(j, "commit", json_string(ATTUNE_COMMIT));
    json_object_set_new(j, "compiler", json_string(COMPILER));
#define LIBRARY(name, version) json_object_set_new(libraries, name, json_string(version));
    LIBRARIES
#undef LIBRARY
    json_object_set_new(j, "libraries", libraries);
}

static int add_hosts(json_t *j, Comm *world)
{
    const size_t ranks = (size_t)comm_size(world);
    char *all = xcalloc(ranks, HOST_BYTES);
    size_t *start = xcalloc(ranks + 1, sizeof *start);
    json_t *hosts = json_object();
    for (size_t i = 0; i <= ranks; i++) start[i] = i * HOST_BYTES;
    gethostname(all + start[comm_rank(world)], HOST_BYTES - 1);
    int status = comm_all_gather_parts(world, all, start, DT_U8);
    for (size_t i = 0; i < ranks && status == OK; i++) {
        const char *host = all + start[i];
        const json_int_t before = json_integer_value(json_object_get(hosts, host));
        json_object_set_new(hosts, host, json_integer(before + 1));
    }
    json_object_set_new(j, "hosts", hosts);
    free(start);
    free(all);
    return status;
}

static void add_layout(json_t *j, const Session *s)
{
    const char *threads = getenv("OMP_NUM_THREADS");
    json_object_set_new(j, "ranks", json_integer(comm_size(s->mesh.world)));
    json_object_set_new(j, "tensor", json_integer(s->mesh.tensor_size));
    json_object_set_new(j, "data", json_integer(s->mesh.data_size));
    json_object_set_new(j, "zero", json_integer(s->recipe.parallel.zero));
    if (threads) json_object_set_new(j, "threads", json_integer(atoi(threads)));
    json_object_set_new(j, "device", json_string(s->dev->name));
    json_object_set_new(j, "isa", json_string(cpu_isa()));
}

// ---- files ----------------------------------------------------------------------------------------------------------
// false: it is too large to be read for this, or cannot be read
static bool digest_file(const char *path, off_t bytes, uint64_t *digest)
{
    return bytes <= most_digested && hash64_file(path, digest);
}

static void add_file(json_t *files, const char *path, const char *name)
{
    struct stat st;
    uint64_t digest;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) return;
    json_t *f =
        json_pack("{s:s, s:I, s:o}", "file", name, "bytes", (json_int_t)st.st_size, "modified_utc", utc(st.st_mtime));
    if (digest_file(path, st.st_size, &digest))
        json_object_set_new(f, "xxh64", json_string(tmpf("%016llx", (unsigned long long)digest)));
    if (f) json_array_append_new(files, f); // NULL: a name that is not UTF-8
}

// Weights and what says how to read them; not what may lie beside.
static int is_of_model(const struct dirent *e)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "adapter_config.json"};
    const size_t n = strlen(e->d_name);
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (streq(e->d_name, names[i])) return 1;
    return n > 12 && streq(e->d_name + n - 12, ".safetensors");
}

static json_t *list_files(const char *path)
{
    json_t *files = json_array();
    struct dirent **entries = NULL;
    if (!path_is_dir(path)) {
        const char *slash = strrchr(path, '/');
        add_file(files, path, slash ? slash + 1 : path);
        return files;
    }
    int n = scandir(path, &entries, is_of_model, alphasort);
    for (int i = 0; i < n; i++) {
        char *file = xasprintf("%s/%s", path, entries[i]->d_name);
        if (i < MOST_FILES) add_file(files, file, entries[i]->d_name);
        free(file);
        free(entries[i]);
    }
    free(entries);
    return files;
}

json_t *provenance_of_checkpoint(const char *dir)
{
    uint64_t digest = 0;
    char *path = xasprintf("%s/MANIFEST", dir);
    struct stat st;
    bool known = stat(path, &st) == 0 && digest_file(path, st.st_size, &digest);
    free(path);
    return json_pack("{s:s, s:s}", "checkpoint", dir, "manifest",
                     known ? tmpf("%016llx", (unsigned long long)digest) : "");
}

int provenance_open(json_t **out, Session *s)
{
    const Recipe *r = &s->recipe;
    json_t *j = json_object();
    add_build(j);
    int status = add_hosts(j, s->mesh.world);
    add_layout(j, s);
    json_object_set_new(j, "started_utc", utc(time(NULL)));
    if (comm_rank(s->mesh.world) == 0) { // it alone writes descriptions
        json_object_set_new(j, "base_files", list_files(r->model));
        if (s->from) json_object_set_new(j, "from", provenance_of_checkpoint(from_checkpoint_dir(s)));
        if (*r->adapter) json_object_set_new(j, "adapter_files", list_files(r->adapter));
    }
    *out = j;
    return status;
}
