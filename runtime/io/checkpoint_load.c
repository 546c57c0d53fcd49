// checkpoint_load: finding the newest good checkpoint, and reading the part that each rank of any layout needs. Digests are compared
// before HDF5 sees the file: HDF5 is not made for damaged or hostile files.
#include "checkpoint_impl.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// ---- verifying --------------------------------------------------------------------------------------------
// The state.h5 whose digests this process has compared last, so that finding and then loading reads it once.
static struct stat verified;

static bool is_verified(const char *dir)
{
    struct stat st;
    return stat(tmpf("%s/state.h5", dir), &st) == 0 && st.st_ino == verified.st_ino && st.st_dev == verified.st_dev &&
           st.st_size == verified.st_size && st.st_mtim.tv_sec == verified.st_mtim.tv_sec &&
           st.st_mtim.tv_nsec == verified.st_mtim.tv_nsec;
}

// Rank 0 reads the MANIFEST, so that a directory is judged by one text.
static int share_manifest(Comm *c, const char *dir, Manifest *m)
{
    char *path = xasprintf("%s/MANIFEST", dir), *text = NULL;
    size_t bytes = 0;
    int status = comm_agree(c, comm_rank(c) == 0 ? file_read(path, MANIFEST_LIMIT_BYTES, &text, &bytes) : OK);
    if (status == OK) status = comm_broadcast_blob(c, (void **)&text, &bytes, 0);
    if (status == OK) status = comm_agree(c, manifest_parse(m, path, text, bytes));
    free(path);
    return status;
}

static int compare_leaves(Comm *c, const char *file, const Manifest *m)
{
    size_t bad;
    TRY(comm_agree(c, manifest_compare(m, file, comm_rank(c), comm_size(c), &bad)));
    int64_t first = (int64_t)MIN(bad, (size_t)INT64_MAX);
    TRY(comm_all_reduce(c, &first, 1, DT_I64, REDUCE_MIN));
    bool blames = first != INT64_MAX && comm_rank(c) == 0;
    return comm_agree(c, blames ? manifest_blame(m, file, (size_t)first) : first != INT64_MAX ? E_INPUT : OK);
}

// Each rank compares its share of the digests; all return the same status. *step: what the MANIFEST says.
static int verify_together(Comm *c, const char *dir, int64_t *step)
{
    Manifest m = {0};
    struct stat st;
    char *file = xasprintf("%s/state.h5", dir);
    memset(&verified, 0, sizeof verified);
    int status = share_manifest(c, dir, &m);
    bool known = stat(file, &st) == 0; // before the comparison: a later change must not go unnoticed
    if (status == OK) status = compare_leaves(c, file, &m);
    if (status == OK && known) verified = st;
    *step = m.step;
    manifest_free(&m);
    free(file);
    return status;
}

static int verify_once(Comm *c, const char *dir)
{
    int64_t step;
    int32_t done = is_verified(dir);
    TRY(comm_all_reduce(c, &done, 1, DT_I32, REDUCE_MIN));
    return done ? OK : verify_together(c, dir, &step);
}

// A directory under another step's name was moved by hand; resuming it there would repeat or skip steps.
static int verify_step(Comm *c, const char *dir, int64_t step)
{
    int64_t stored;
    TRY(verify_together(c, dir, &stored));
    if (stored == step) return OK;
    return comm_agree(c, fail(E_INPUT, dir, NULL, "holds step %" PRId64, stored));
}

int checkpoint_find(Comm *c, const char *output, int64_t *step, char **dir)
{
    char *parent = xasprintf("%s/checkpoints", output);
    int64_t *steps = NULL;
    size_t n = 0, bytes;
    *step = -1;
    *dir = NULL;
    int status = comm_agree(c, comm_rank(c) == 0 ? ckpt_list_steps(parent, &steps, &n) : OK);
    bytes = n * sizeof *steps;
    if (status == OK) status = comm_broadcast_blob(c, (void **)&steps, &bytes, 0);
    n = bytes / sizeof *steps;
    for (size_t i = 0; i < n && status == OK && *step < 0; i++) {
        char *candidate = ckpt_step_path(parent, "", steps[i]);
        if (verify_step(c, candidate, steps[i]) == OK) {
            *step = steps[i];
            *dir = candidate;
            continue;
        }
        ckpt_warn_instead("this checkpoint is skipped");
        free(candidate);
    }
    free(steps);
    free(parent);
    return status;
}

// ---- loading ----------------------------------------------------------------------------------------------
// Every rank opens the file for itself, without MPI: reading needs no agreement inside HDF5, so nothing can
// hang there.
static int open_state(const char *dir, hid_t *file)
{
    char *path = xasprintf("%s/state.h5", dir);
    int status = ckpt_open_file(path, H5F_ACC_RDONLY, ckpt_plain_access(), file);
    free(path);
    return status;
}

// Whether the file has the dataset, a plain one: contiguous (so no filters), and with its bytes in this file.
static int open_set(hid_t file, const char *dir, const char *name, hid_t *set)
{
    *set = H5Dopen2(file, name, H5P_DEFAULT);
    if (*set < 0)
        return ckpt_h5_missing(dir, "was it saved by a run with another `method`?",
                               tmpf("there is no tensor %s in this checkpoint", name));
    hid_t create = H5Dget_create_plist(*set);
    bool plain = H5Pget_layout(create) == H5D_CONTIGUOUS && H5Pget_external_count(create) == 0;
    H5Pclose(create);
    if (plain) return OK;
    H5Dclose(*set);
    return fail(E_INPUT, dir, NULL, "tensor %s is not stored as attune stores tensors", name);
}

static int check_shape(hid_t set, const char *dir, const CkptTensor *t)
{
    hsize_t dims[2] = {0, 1};
    hid_t space = H5Dget_space(set), stored = H5Dget_type(set), wanted = ckpt_h5_type(t->t);
    int rank = H5Sget_simple_extent_ndims(space);
    if (rank == 1 || rank == 2) H5Sget_simple_extent_dims(space, dims, NULL);
    bool type_fits = H5Tequal(stored, wanted) > 0;
    bool shape_fits = (rank == 1 || rank == 2) && dims[0] == (hsize_t)t->shape[0] && dims[1] == (hsize_t)t->shape[1];
    H5Tclose(wanted);
    H5Tclose(stored);
    H5Sclose(space);
    if (!shape_fits)
        return fail(E_INPUT, dir, "was it saved by a run of another model or adapter rank?",
                    "tensor %s has shape (%llu, %llu), here it must be (%" PRId64 ", %" PRId64 ")", t->name,
                    (unsigned long long)dims[0], (unsigned long long)dims[1], t->shape[0], t->shape[1]);
    if (!type_fits) return fail(E_INPUT, dir, NULL, "tensor %s is not of type %s", t->name, dtype_name(t->t));
    return OK;
}

static int load_tensor(hid_t file, const char *dir, const CkptTensor *t)
{
    hid_t set;
    ckpt_check_part(t);
    TRY(open_set(file, dir, t->name, &set));
    int status = check_shape(set, dir, t);
    if (status == OK && t->rows) status = ckpt_transfer(set, t, false);
    H5Dclose(set);
    return status;
}

static int load_tensors(const char *dir, const CkptTensor *t, int n)
{
    hid_t file;
    int status = OK;
    TRY(open_state(dir, &file));
    for (int i = 0; i < n && status == OK; i++) status = load_tensor(file, dir, &t[i]);
    H5Fclose(file);
    return status;
}

int checkpoint_load(Comm *c, const char *dir, const CkptTensor *t, int n)
{
    TRY(verify_once(c, dir));
    return comm_agree(c, load_tensors(dir, t, n));
}

static int find_name(const void *name, const void *tensor)
{
    return strcmp(name, ((const CkptTensor *)tensor)->name);
}
static int by_name(const void *a, const void *b)
{
    return find_name(((const CkptTensor *)a)->name, b);
}

typedef struct Expected {
    const char *dir;
    const CkptTensor *t; // sorted by name
    int n;
} Expected;

static int is_expected(void *ctx, const CkptTensor *t)
{
    const Expected *x = ctx;
    if (bsearch(t->name, x->t, (size_t)x->n, sizeof *x->t, find_name)) return OK;
    return fail(E_INPUT, x->dir, "was it saved by a run with other `lora` or `freeze` options?",
                "this run has no place for the checkpoint's tensor %s", t->name);
}

int checkpoint_expect(Comm *c, const char *dir, const CkptTensor *t, int n)
{
    CkptTensor *sorted = xcalloc((size_t)n + 1, sizeof *sorted);
    if (n) memcpy(sorted, t, (size_t)n * sizeof *t);
    qsort(sorted, (size_t)n, sizeof *sorted, by_name);
    Expected x = {dir, sorted, n};
    int status = comm_agree(c, comm_rank(c) == 0 ? checkpoint_list(dir, is_expected, &x) : OK);
    free(sorted);
    return status;
}

static int read_attribute(hid_t file, const char *dir, const char *name, int64_t *out)
{
    hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    if (attribute < 0) return ckpt_h5_missing(dir, NULL, tmpf("the attribute %s is missing", name));
    int status = H5Aread(attribute, H5T_NATIVE_INT64, out) < 0 ? ckpt_h5_fail(dir, "cannot read an attribute") : OK;
    H5Aclose(attribute);
    return status;
}

static int read_meta_text(hid_t file, const char *dir, char **text, size_t *bytes)
{
    hid_t set;
    TRY(open_set(file, dir, MANIFEST_META, &set));
    hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    hssize_t n = H5Sget_simple_extent_npoints(space);
    int status = OK;
    if (n <= 0 || n > MANIFEST_LIMIT_BYTES || H5Tequal(type, H5T_STD_U8LE) <= 0) {
        status = fail(E_INPUT, dir, NULL, "%s is not a text", MANIFEST_META);
    } else {
        *bytes = (size_t)n;
        *text = xcalloc(*bytes + 1, 1);
        if (H5Dread(set, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, *text) < 0)
            status = ckpt_h5_fail(dir, "cannot read meta/json");
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(set);
    return status;
}

static int read_meta(const char *dir, int64_t *step, char **text, size_t *bytes)
{
    hid_t file;
    int64_t version = 0;
    TRY(open_state(dir, &file));
    int status = read_attribute(file, dir, "format_version", &version);
    if (status == OK && version != CKPT_FORMAT_VERSION)
        status = fail(E_INPUT, dir, "use the attune that wrote it, or a newer one",
                      "format version %" PRId64 ", this program reads %d", version, CKPT_FORMAT_VERSION);
    if (status == OK) status = read_attribute(file, dir, "step", step);
    if (status == OK) status = read_meta_text(file, dir, text, bytes);
    H5Fclose(file);
    return status;
}

int checkpoint_load_meta(Comm *c, const char *dir, CkptMeta *out)
{
    char *text = NULL;
    size_t bytes = 0;
    *out = (CkptMeta){0};
    TRY(verify_once(c, dir));
    int status = comm_agree(c, comm_rank(c) == 0 ? read_meta(dir, &out->step, &text, &bytes) : OK);
    if (status == OK) status = comm_broadcast(c, &out->step, 1, DT_I64, 0);
    if (status == OK) status = comm_broadcast_blob(c, (void **)&text, &bytes, 0);
    if (status == OK)
        out->json = text;
    else
        free(text);
    return status;
}
