// checkpoint: saving and loading OUTPUT/checkpoints. Owns the HDF5 calls and the protocol that makes a
// directory appear whole or not at all. manifest.c owns the digests.
//
// state.h5, in the file format of HDF5 1.10 (its metadata carries checksums; the older one reads damage as
// data), no filters, every dataset contiguous and allocated when created:
//   /            attributes format, format_version, step, complete (1 once everything has been written)
//   /model/NAME, /adapter/NAME, /optim/NAME/m, ...   one per global tensor; BF16 is a 16-bit float type
//   /meta/json   the text of CkptMeta, bytes
//
// Saving. Each phase ends in comm_agree; any rank's failure ends the save on all, and nothing is published.
//   1 rank 0: room on the disk, a fresh .tmp-step-N, the file with all its datasets, its blocks reserved
//   2 all ranks open that file together and write their hyperslabs, independently of each other: with more
//     ranks than cores, collective transfers are 20 times slower
//   3 fsync after the close (HDF5 writes its superblock after its own last fsync), digests, each rank a share
//   4 rank 0: MANIFEST, fsync, rename to step-N, fsync of the parent, old steps removed
// Phase 1 is rank 0's alone because of failures: a rank whose write of metadata fails inside a parallel close
// leaves the others waiting for ever. In phase 2 there is no metadata left to write but the superblock, in
// its place. Should a rank hang all the same, the save has a deadline.
//
// Loading. Digests are compared before HDF5 sees the file: HDF5 is not made for damaged or hostile files.
#define _GNU_SOURCE
#include "checkpoint.h"
#include "manifest.h"
#include "rundir.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <inttypes.h>
#include <mpi.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { FORMAT_VERSION = 1 };
static const char format_name[] = "attune";
static const char meta_name[] = "meta/json";
static const size_t slab_limit = (size_t)1 << 30; // MPI-IO counts in int: independent transfers of 2 GiB fail

// ---- HDF5's errors ----------------------------------------------------------------------------------------
typedef struct Cause {
    char text[256];
} Cause;

// The innermost line that names a system error tells the cause; HDF5 wraps it in what it was doing.
static herr_t find_cause(unsigned depth, const H5E_error2_t *e, void *ctx)
{
    static const char marker[] = "error message = '";
    Cause *cause = ctx;
    const char *text = e->desc ? e->desc : "", *found = strstr(text, marker);
    if (found) {
        found += sizeof marker - 1;
        snprintf(cause->text, sizeof cause->text, "%.*s", (int)strcspn(found, "'"), found);
    } else if (strstr(text, "No space left")) {
        snprintf(cause->text, sizeof cause->text, "No space left on device");
    } else if (depth == 0) {
        snprintf(cause->text, sizeof cause->text, "%s", text);
    }
    return 0;
}

// Right after the call that failed: any other call of HDF5 forgets why.
static int h5_fail(const char *path, const char *what)
{
    Cause cause = {"unknown cause"};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, find_cause, &cause);
    bool full = strstr(cause.text, "No space left") != NULL;
    return fail(E_FAILED, path, full ? "free some space, or set `output` to another disk" : NULL, "%s: %s", what,
                cause.text);
}

// Before main, and so before MPI: HDF5 that starts under MPI closes what is left open when MPI ends, and at
// exit; that includes the files whose close has failed, and crashes. It would also print its error stack by
// itself.
__attribute__((constructor)) static void h5_start(void)
{
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

// ---- types and shapes -------------------------------------------------------------------------------------
// 1 sign, 8 exponent and 7 mantissa bits; every HDF5 reader understands it and widens it exactly.
static hid_t bf16_type(void)
{
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(t, 15, 7, 8, 0, 7);
    H5Tset_size(t, 2);
    H5Tset_ebias(t, 127);
    return t;
}

// The caller closes it. Files are little-endian, as are the machines this runs on, so it is the type in
// memory too.
static hid_t h5_type(DType t)
{
    switch (t) {
    case DT_F32: return H5Tcopy(H5T_IEEE_F32LE);
    case DT_BF16: return bf16_type();
    case DT_I64: return H5Tcopy(H5T_STD_I64LE);
    case DT_I32: return H5Tcopy(H5T_STD_I32LE);
    case DT_U8: return H5Tcopy(H5T_STD_U8LE);
    default: ASSERT(!"a type that checkpoints hold"); return -1;
    }
}

static size_t tensor_bytes(const CkptTensor *t)
{
    return (size_t)t->shape[0] * (size_t)t->shape[1] * dtype_size(t->t);
}

// {n, 1} is a vector: one dimension in the file.
static hid_t file_space(const CkptTensor *t)
{
    hsize_t dims[2] = {(hsize_t)t->shape[0], (hsize_t)t->shape[1]};
    return H5Screate_simple(t->shape[1] == 1 ? 1 : 2, dims, NULL);
}

static void check_part(const CkptTensor *t)
{
    ASSERT(t->shape[0] > 0 && t->shape[1] > 0 && t->rows >= 0 && strlen(t->name) < MANIFEST_NAME_BYTES);
    if (!t->rows) return;
    ASSERT(t->data && t->row0 >= 0 && t->row0 + t->rows <= t->shape[0]);
    ASSERT(t->cols > 0 && t->col0 >= 0 && t->col0 + t->cols <= t->shape[1]);
}

// Calls H5Dwrite or H5Dread for this rank's part, in slabs of whole rows below the limit; independently of
// other ranks.
static int transfer(hid_t set, const CkptTensor *t, bool write)
{
    size_t row_bytes = (size_t)t->cols * dtype_size(t->t);
    int64_t step = MAX((int64_t)(slab_limit / row_bytes), 1);
    hid_t type = h5_type(t->t), in_file = H5Dget_space(set);
    int status = OK;
    for (int64_t row = 0; row < t->rows && status == OK; row += step) {
        hsize_t start[2] = {(hsize_t)(t->row0 + row), (hsize_t)t->col0};
        hsize_t count[2] = {(hsize_t)MIN(step, t->rows - row), (hsize_t)t->cols};
        char *data = (char *)t->data + (size_t)row * row_bytes;
        hid_t in_memory = H5Screate_simple(t->shape[1] == 1 ? 1 : 2, count, NULL);
        herr_t rc = H5Sselect_hyperslab(in_file, H5S_SELECT_SET, start, NULL, count, NULL);
        if (rc >= 0 && write) rc = H5Dwrite(set, type, in_memory, in_file, H5P_DEFAULT, data);
        if (rc >= 0 && !write) rc = H5Dread(set, type, in_memory, in_file, H5P_DEFAULT, data);
        if (rc < 0) status = h5_fail(t->name, write ? "cannot write" : "cannot read");
        H5Sclose(in_memory);
    }
    H5Sclose(in_file);
    H5Tclose(type);
    return status;
}

// For faults that end nothing: they become a warning, and the thread's record is free for the next.
static void warn_instead(const char *consequence)
{
    const ErrorRecord *e = error_last();
    if (*e->what) log_warn("%s: %s: %s", consequence, e->place, e->what);
    error_clear();
}

// ---- directories ------------------------------------------------------------------------------------------
// "step-00000100" -> 100; -1 for any other name.
static int64_t step_of(const char *name)
{
    if (strncmp(name, "step-", 5) != 0) return -1;
    const char *digits = name + 5;
    size_t n = strspn(digits, "0123456789");
    bool printed_so = n == 8 || (n > 8 && n <= 18 && *digits != '0');
    return printed_so && !digits[n] ? strtoll(digits, NULL, 10) : -1;
}

static int newer_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

// The published steps of a checkpoints directory, newest first; none when there is no such directory.
static int list_steps(const char *parent, int64_t **steps, size_t *n)
{
    *steps = NULL;
    *n = 0;
    DIR *d = opendir(parent);
    if (!d) return errno == ENOENT ? OK : fail_errno(parent, "cannot read the directory");
    for (struct dirent *e; (e = readdir(d));) {
        int64_t step = step_of(e->d_name);
        if (step < 0) continue;
        *steps = xrealloc(*steps, (*n + 1) * sizeof **steps);
        (*steps)[(*n)++] = step;
    }
    closedir(d);
    if (*n) qsort(*steps, *n, sizeof **steps, newer_first);
    return OK;
}

static char *step_path(const char *parent, const char *prefix, int64_t step)
{
    return xasprintf("%s/%sstep-%08" PRId64, parent, prefix, step);
}

// What saves that were cut off have left. The run's lock keeps others out, so nobody is writing there now.
static void sweep(const char *parent)
{
    DIR *d = opendir(parent);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, ".tmp-", 5) != 0 && strncmp(e->d_name, ".del-", 5) != 0) continue;
        char *path = xasprintf("%s/%s", parent, e->d_name);
        if (remove_tree(path) < 0) warn_instead("an unfinished checkpoint stays");
        free(path);
    }
    closedir(d);
}

static int sync_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return fail_errno(path, "cannot open");
    int status = fsync(fd) < 0 ? fail_errno(path, "cannot flush to the disk") : OK;
    close(fd);
    return status;
}

// ---- deadline ---------------------------------------------------------------------------------------------
// A thread that ends the job when a save takes far longer than it can. It makes no MPI or HDF5 call but the
// abort.
typedef struct Deadline {
    Comm *comm;
    double seconds;
    bool over;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    pthread_t thread;
} Deadline;

static void *deadline_thread(void *arg)
{
    Deadline *d = arg;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)d->seconds + 1;
    pthread_mutex_lock(&d->lock);
    int rc = 0;
    while (!d->over && rc == 0) rc = pthread_cond_timedwait(&d->ended, &d->lock, &until);
    bool expired = !d->over;
    pthread_mutex_unlock(&d->lock);
    if (expired) {
        log_warn("saving a checkpoint has not ended within %.0f s: the run ends here (the previous "
                 "checkpoint is untouched)",
                 d->seconds);
        comm_abort(d->comm, error_exit_code(E_FAILED));
    }
    return NULL;
}

// Twenty times what a disk of 100 MB/s needs, at least a minute; ATTUNE_SAVE_DEADLINE=SECONDS overrides.
static double deadline_for(uint64_t bytes)
{
    const char *choice = getenv("ATTUNE_SAVE_DEADLINE");
    return choice ? atof(choice) : MAX(60.0, 20.0 * (double)bytes / 100e6);
}

// false: no thread could be had; the save goes on unwatched.
static bool deadline_start(Deadline *d, Comm *c, uint64_t bytes)
{
    *d = (Deadline){.comm = c, .seconds = deadline_for(bytes)};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->ended, &attr);
    pthread_condattr_destroy(&attr);
    return pthread_create(&d->thread, NULL, deadline_thread, d) == 0;
}

static void deadline_stop(Deadline *d)
{
    pthread_mutex_lock(&d->lock);
    d->over = true;
    pthread_cond_signal(&d->ended);
    pthread_mutex_unlock(&d->lock);
    pthread_join(d->thread, NULL);
    pthread_cond_destroy(&d->ended);
    pthread_mutex_destroy(&d->lock);
}

// ---- saving -----------------------------------------------------------------------------------------------
typedef struct Save {
    Comm *comm;
    char *parent, *tmp, *final, *file; // checkpoints/, .tmp-step-N/, step-N/, .tmp-step-N/state.h5
    int64_t step;
    CkptTensor *tensors; // the caller's, then /meta/json
    int n;
    Manifest manifest;
} Save;

static uint64_t save_bytes(const Save *s)
{
    uint64_t bytes = 0;
    for (int i = 0; i < s->n; i++) bytes += tensor_bytes(&s->tensors[i]);
    return bytes;
}

// Refusing early is better than filling the disk to the last byte and failing then.
static int check_room(const Save *s)
{
    struct statvfs fs;
    if (statvfs(s->parent, &fs) < 0 || !fs.f_blocks) return OK; // some file systems do not tell
    uint64_t need = save_bytes(s) + save_bytes(s) / 50 + (1u << 20), have = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (have >= need) return OK;
    return fail(E_FAILED, s->parent, "free some space, lower checkpoint.keep, or set `output` to another disk",
                "No space left on device: a checkpoint needs %.1f MB, %.1f MB are free", (double)need / 1e6,
                (double)have / 1e6);
}

static int prepare(const Save *s)
{
    TRY(make_dirs(s->parent));
    sweep(s->parent);
    TRY(check_room(s));
    if (mkdir(s->tmp, 0777) < 0) return fail_errno(s->tmp, "cannot create the directory");
    return OK;
}

// Access by this rank alone, through HDF5's plain driver. No file locks: the run's own lock protects the
// file, and parallel file systems often have none.
static hid_t plain_access(void)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_fclose_degree(access, H5F_CLOSE_SEMI);
    H5Pset_file_locking(access, false, true);
    return access;
}

// Takes over the access list.
static int open_file(const char *path, unsigned flags, hid_t access, hid_t *file)
{
    *file = H5Fopen(path, flags, access);
    int status = *file < 0 ? h5_fail(path, "cannot open") : OK;
    H5Pclose(access);
    return status;
}

// Access by all ranks together. A single rank without MPI uses the plain driver; the format is the same.
static hid_t parallel_access(Comm *c)
{
    hid_t access = plain_access();
    MPI_Comm *mpi = comm_mpi_handle(c);
    if (!mpi) return access;
    MPI_Info info;
    MPI_Info_create(&info);
    MPI_Info_set(info, "romio_ds_write", "disable"); // data sieving would take file locks
    H5Pset_fapl_mpio(access, *mpi, info);
    H5Pset_coll_metadata_write(access, true);
    MPI_Info_free(&info);
    return access;
}

// *offset: where the dataset's bytes lie in the file.
static int create_set(hid_t file, const CkptTensor *t, int64_t *offset)
{
    hid_t links = H5Pcreate(H5P_LINK_CREATE), create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_layout(create, H5D_CONTIGUOUS);
    H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    hid_t type = h5_type(t->t), space = file_space(t);
    hid_t set = H5Dcreate2(file, t->name, type, space, links, create, H5P_DEFAULT);
    haddr_t at = set < 0 ? HADDR_UNDEF : H5Dget_offset(set);
    int status = at == HADDR_UNDEF ? h5_fail(t->name, "cannot create the dataset") : OK;
    *offset = (int64_t)at;
    if (set >= 0) H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(create);
    H5Pclose(links);
    return status;
}

static int write_attribute(hid_t file, const char *name, hid_t type, const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t rc = attribute < 0 ? -1 : H5Awrite(attribute, type, value);
    int status = rc < 0 ? h5_fail(name, "cannot write the attribute") : OK;
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    return status;
}

static int write_attributes(const Save *s, hid_t file)
{
    int64_t version = FORMAT_VERSION, complete = 0;
    hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, sizeof format_name - 1);
    int status = write_attribute(file, "format", text, format_name);
    H5Tclose(text);
    TRY(status);
    TRY(write_attribute(file, "format_version", H5T_STD_I64LE, &version));
    TRY(write_attribute(file, "step", H5T_STD_I64LE, &s->step));
    return write_attribute(file, "complete", H5T_STD_I64LE, &complete);
}

// The datasets have their places now; the blocks behind them are taken from the disk, so that no write of a
// rank finds it full.
static int reserve(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC), status = OK;
    if (fd < 0) return fail_errno(path, "cannot open");
    if (fstat(fd, &st) < 0)
        status = fail_errno(path, "cannot stat");
    else if (fallocate(fd, 0, 0, st.st_size) < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        status = fail_errno(path, "cannot reserve the space");
    close(fd);
    return status;
}

// Rank 0: the whole file but the data. offsets (n): where each dataset's bytes lie.
static int lay_out(const Save *s, int64_t *offsets)
{
    hid_t access = plain_access(), file = H5Fcreate(s->file, H5F_ACC_EXCL, H5P_DEFAULT, access);
    int status = file < 0 ? h5_fail(s->file, "cannot create") : OK;
    H5Pclose(access);
    TRY(status);
    status = write_attributes(s, file);
    for (int i = 0; i < s->n && status == OK; i++) status = create_set(file, &s->tensors[i], &offsets[i]);
    if (H5Fclose(file) < 0 && status == OK) status = h5_fail(s->file, "cannot write");
    return status == OK ? reserve(s->file) : status;
}

static void place_tensors(Save *s, const int64_t *offsets)
{
    for (int i = 0; i < s->n; i++) {
        const CkptTensor *t = &s->tensors[i];
        s->manifest.tensors[i] = (ManifestTensor){.offset = (uint64_t)offsets[i],
                                                  .bytes = tensor_bytes(t),
                                                  .t = t->t,
                                                  .shape = {t->shape[0], t->shape[1]},
                                                  .name = t->name};
    }
}

// Phase 1.
static int create_state(Save *s)
{
    bool first = comm_rank(s->comm) == 0;
    int64_t *offsets = xcalloc((size_t)s->n, sizeof *offsets);
    int status = first ? prepare(s) : OK;
    if (first && status == OK) status = lay_out(s, offsets);
    status = comm_agree(s->comm, status);
    if (status == OK) status = comm_broadcast(s->comm, offsets, (size_t)s->n, DT_I64, 0);
    if (status == OK) place_tensors(s, offsets);
    free(offsets);
    return status;
}

static int write_parts(const Save *s, hid_t file)
{
    int status = OK;
    for (int i = 0; i < s->n && status == OK; i++) {
        const CkptTensor *t = &s->tensors[i];
        if (!t->rows) continue;
        hid_t set = H5Dopen2(file, t->name, H5P_DEFAULT);
        status = set < 0 ? h5_fail(t->name, "cannot open the dataset") : transfer(set, t, true);
        if (set >= 0) H5Dclose(set);
    }
    return status;
}

// Rank 0, when all data is there: the one change to metadata after phase 1, a number in its place.
static int mark_complete(const Save *s)
{
    int64_t complete = 1;
    hid_t file;
    TRY(open_file(s->file, H5F_ACC_RDWR, plain_access(), &file));
    hid_t attribute = H5Aopen(file, "complete", H5P_DEFAULT);
    herr_t rc = attribute < 0 ? -1 : H5Awrite(attribute, H5T_NATIVE_INT64, &complete);
    int status = rc < 0 ? h5_fail(s->file, "cannot write the attribute `complete`") : OK;
    if (attribute >= 0) H5Aclose(attribute);
    if (H5Fclose(file) < 0 && status == OK) status = h5_fail(s->file, "cannot write");
    return status;
}

// Phase 2, and the fsync of each rank: the ranks of another machine have pages of their own.
static int write_state(const Save *s)
{
    hid_t file;
    int status = comm_agree(s->comm, open_file(s->file, H5F_ACC_RDWR, parallel_access(s->comm), &file));
    if (status == OK) status = comm_agree(s->comm, write_parts(s, file));
    if (file >= 0 && H5Fclose(file) < 0 && status == OK) status = h5_fail(s->file, "cannot close");
    TRY(comm_agree(s->comm, status));
    TRY(comm_agree(s->comm, comm_rank(s->comm) == 0 ? mark_complete(s) : OK));
    return comm_agree(s->comm, sync_path(s->file, O_RDWR));
}

// Phase 3. Each rank digests a share of the file; integer sums with zeros put the shares together.
static int digest_state(Save *s)
{
    Manifest *m = &s->manifest;
    struct stat st;
    int status = stat(s->file, &st) < 0 ? fail_errno(s->file, "cannot stat") : OK;
    TRY(comm_agree(s->comm, status));
    m->file_bytes = (uint64_t)st.st_size;
    manifest_cut(m);
    TRY(comm_agree(s->comm, manifest_digest(m, s->file, comm_rank(s->comm), comm_size(s->comm))));
    int64_t *all = xcalloc(m->n_leaves, sizeof *all);
    for (size_t i = 0; i < m->n_leaves; i++) all[i] = (int64_t)m->leaves[i].digest;
    status = comm_all_reduce(s->comm, all, m->n_leaves, DT_I64, REDUCE_SUM);
    for (size_t i = 0; i < m->n_leaves; i++) m->leaves[i].digest = (uint64_t)all[i];
    free(all);
    return status;
}

// A step that was published before (the run went back behind it) changes places with the new one in a single
// act where the file system can do that. The old one then lies under the temporary name or .del-: sweep
// removes it.
static int move_into_place(const Save *s)
{
    if (rename(s->tmp, s->final) == 0) return OK;
    if (errno != ENOTEMPTY && errno != EEXIST) return fail_errno(s->final, "cannot rename into place");
    if (renameat2(AT_FDCWD, s->tmp, AT_FDCWD, s->final, RENAME_EXCHANGE) == 0) return OK;
    char *old = step_path(s->parent, ".del-", s->step);
    int status = OK;
    if (rename(s->final, old) < 0 || rename(s->tmp, s->final) < 0)
        status = fail_errno(s->final, "cannot rename into place");
    free(old);
    return status;
}

// Phase 4.
static int publish(const Save *s)
{
    Buf text = {0};
    manifest_print(&s->manifest, &text);
    char *path = xasprintf("%s/MANIFEST", s->tmp);
    int status = file_write_atomic(path, text.data, text.len); // flushes the directory too
    buf_free(&text);
    free(path);
    TRY(status);
    TRY(move_into_place(s));
    if (sync_path(s->parent, O_RDONLY | O_DIRECTORY) < 0)
        warn_instead("published, but it may not survive a loss of power");
    return OK;
}

// ---- retention --------------------------------------------------------------------------------------------
// Whether a step looks whole, at the cost of reading its MANIFEST: size and digests are there, the bytes are
// not read again.
static bool looks_whole(const char *dir)
{
    char *path = xasprintf("%s/MANIFEST", dir), *file = xasprintf("%s/state.h5", dir);
    Manifest m;
    struct stat st;
    bool whole = manifest_read(&m, path) == OK;
    if (whole) {
        whole = stat(file, &st) == 0 && (uint64_t)st.st_size == m.file_bytes;
        manifest_free(&m);
    } else {
        error_clear();
    }
    free(path);
    free(file);
    return whole;
}

// Renamed first: a removal that is cut off leaves no damaged step behind.
static void drop_step(const char *parent, int64_t step)
{
    char *dir = step_path(parent, "", step), *doomed = step_path(parent, ".del-", step);
    int status = rename(dir, doomed) < 0 ? fail_errno(dir, "cannot rename") : remove_tree(doomed);
    if (status < 0) warn_instead("an old checkpoint stays");
    free(dir);
    free(doomed);
}

// Steps older than the keep-th that looks whole go, the one just saved never.
static void retain(const Save *s, int keep)
{
    int64_t *steps;
    size_t n;
    int whole = 0;
    if (keep <= 0) return;
    if (list_steps(s->parent, &steps, &n) < 0) warn_instead("old checkpoints stay");
    for (size_t i = 0; i < n; i++) {
        if (whole >= keep && steps[i] != s->step) {
            drop_step(s->parent, steps[i]);
            continue;
        }
        char *dir = step_path(s->parent, "", steps[i]);
        whole += looks_whole(dir);
        free(dir);
    }
    free(steps);
}

// ---- checkpoint_save --------------------------------------------------------------------------------------
static void save_init(Save *s, Comm *c, const char *output, const CkptMeta *meta, const CkptTensor *t, int n)
{
    ASSERT(meta->step >= 0 && meta->json && *meta->json);
    *s = (Save){
        .comm = c, .step = meta->step, .n = n + 1, .manifest.step = meta->step, .manifest.n_tensors = (size_t)n + 1};
    s->parent = xasprintf("%s/checkpoints", output);
    s->tmp = step_path(s->parent, ".tmp-", s->step);
    s->final = step_path(s->parent, "", s->step);
    s->file = xasprintf("%s/state.h5", s->tmp);
    s->tensors = xcalloc((size_t)s->n, sizeof *s->tensors);
    s->manifest.tensors = xcalloc((size_t)s->n, sizeof *s->manifest.tensors);
    if (n) memcpy(s->tensors, t, (size_t)n * sizeof *t);
}

// Rank 0's text becomes the last dataset; the others need its size to create it with.
static int add_meta(Save *s, const CkptMeta *meta)
{
    int64_t bytes = (int64_t)strlen(meta->json);
    TRY(comm_broadcast(s->comm, &bytes, 1, DT_I64, 0));
    bool writes = comm_rank(s->comm) == 0;
    s->tensors[s->n - 1] = (CkptTensor){
        .name = meta_name, .t = DT_U8, .shape = {bytes, 1}, .rows = writes ? bytes : 0, .cols = 1, .data = meta->json};
    for (int i = 0; i < s->n; i++) check_part(&s->tensors[i]);
    return OK;
}

static void save_free(Save *s)
{
    free(s->parent);
    free(s->tmp);
    free(s->final);
    free(s->file);
    free(s->tensors);
    manifest_free(&s->manifest);
}

static int save_phases(Save *s)
{
    bool first = comm_rank(s->comm) == 0;
    TRY(create_state(s));
    TRY(write_state(s));
    TRY(digest_state(s));
    return comm_agree(s->comm, first ? publish(s) : OK);
}

// On rank 0, after the agreement. A failed save leaves nothing behind; the error that ended it stays the
// thread's. The file is emptied first: HDF5 keeps one open whose close has failed, and with it the space.
static void tidy(const Save *s, int status, int keep)
{
    ErrorRecord cause = *error_last();
    error_clear();
    if (status < 0 && truncate(s->file, 0) < 0) log_debug("%s is not there to be emptied", s->file);
    sweep(s->parent);
    if (status == OK) retain(s, keep);
    error_adopt(&cause);
}

int checkpoint_save(Comm *c, const char *output, const CkptMeta *meta, const CkptTensor *t, int n, int keep)
{
    Save s;
    Deadline deadline;
    save_init(&s, c, output, meta, t, n);
    int status = add_meta(&s, meta);
    if (status == OK) {
        bool watched = deadline_start(&deadline, c, save_bytes(&s));
        status = save_phases(&s);
        if (watched) deadline_stop(&deadline);
    }
    if (comm_rank(c) == 0) tidy(&s, status, keep);
    save_free(&s);
    return status;
}

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
    int status = comm_agree(c, comm_rank(c) == 0 ? list_steps(parent, &steps, &n) : OK);
    bytes = n * sizeof *steps;
    if (status == OK) status = comm_broadcast_blob(c, (void **)&steps, &bytes, 0);
    n = bytes / sizeof *steps;
    for (size_t i = 0; i < n && status == OK && *step < 0; i++) {
        char *candidate = step_path(parent, "", steps[i]);
        if (verify_step(c, candidate, steps[i]) == OK) {
            *step = steps[i];
            *dir = candidate;
            continue;
        }
        warn_instead("this checkpoint is skipped");
        free(candidate);
    }
    free(steps);
    free(parent);
    return status;
}

int checkpoint_verify(const char *dir)
{
    char *path = xasprintf("%s/MANIFEST", dir), *file = xasprintf("%s/state.h5", dir);
    Manifest m = {0};
    size_t bad = SIZE_MAX;
    int status = manifest_read(&m, path);
    if (status == OK) status = manifest_compare(&m, file, 0, 1, &bad);
    if (status == OK && bad != SIZE_MAX) status = manifest_blame(&m, file, bad);
    manifest_free(&m);
    free(path);
    free(file);
    return status;
}

int checkpoint_list(const char *dir, int (*fn)(void *ctx, const CkptTensor *t), void *ctx)
{
    char *path = xasprintf("%s/MANIFEST", dir);
    Manifest m = {0};
    int status = manifest_read(&m, path);
    for (size_t i = 0; i < m.n_tensors && status == OK; i++) {
        const ManifestTensor *t = &m.tensors[i];
        if (streq(t->name, meta_name)) continue;
        status = fn(ctx, &(CkptTensor){.name = t->name, .t = t->t, .shape = {t->shape[0], t->shape[1]}});
    }
    manifest_free(&m);
    free(path);
    return status;
}

// ---- loading ----------------------------------------------------------------------------------------------
// Every rank opens the file for itself, without MPI: reading needs no agreement inside HDF5, so nothing can
// hang there.
static int open_state(const char *dir, hid_t *file)
{
    char *path = xasprintf("%s/state.h5", dir);
    int status = open_file(path, H5F_ACC_RDONLY, plain_access(), file);
    free(path);
    return status;
}

// Whether the file has the dataset, a plain one: contiguous (so no filters), and with its bytes in this file.
static int open_set(hid_t file, const char *dir, const char *name, hid_t *set)
{
    *set = H5Dopen2(file, name, H5P_DEFAULT);
    if (*set < 0)
        return fail(E_INPUT, dir, "was it saved by a run with another `method`?",
                    "there is no tensor %s in this checkpoint", name);
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
    hid_t space = H5Dget_space(set), stored = H5Dget_type(set), wanted = h5_type(t->t);
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
    check_part(t);
    TRY(open_set(file, dir, t->name, &set));
    int status = check_shape(set, dir, t);
    if (status == OK && t->rows) status = transfer(set, t, false);
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

static int read_attribute(hid_t file, const char *dir, const char *name, int64_t *out)
{
    hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    herr_t rc = attribute < 0 ? -1 : H5Aread(attribute, H5T_NATIVE_INT64, out);
    if (attribute >= 0) H5Aclose(attribute);
    return rc < 0 ? fail(E_INPUT, dir, NULL, "the attribute %s is missing", name) : OK;
}

static int read_meta_text(hid_t file, const char *dir, char **text, size_t *bytes)
{
    hid_t set;
    TRY(open_set(file, dir, meta_name, &set));
    hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    hssize_t n = H5Sget_simple_extent_npoints(space);
    int status = OK;
    if (n <= 0 || n > MANIFEST_LIMIT_BYTES || H5Tequal(type, H5T_STD_U8LE) <= 0) {
        status = fail(E_INPUT, dir, NULL, "%s is not a text", meta_name);
    } else {
        *bytes = (size_t)n;
        *text = xcalloc(*bytes + 1, 1);
        if (H5Dread(set, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, *text) < 0)
            status = h5_fail(dir, "cannot read meta/json");
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
    if (status == OK && version != FORMAT_VERSION)
        status = fail(E_INPUT, dir, "use the attune that wrote it, or a newer one",
                      "format version %" PRId64 ", this program reads %d", version, FORMAT_VERSION);
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

void checkpoint_meta_free(CkptMeta *m)
{
    if (m) free(m->json);
    if (m) m->json = NULL;
}
