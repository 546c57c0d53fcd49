// checkpoint_save: the protocol that makes a checkpoint appear whole or not at all.
//
// state.h5, in the file format of HDF5 1.10 (its metadata carries checksums; the older one reads damage as
// data), no filters, every dataset contiguous and allocated when created:
//   /            attributes format, format_version, step, complete (1 once everything has been written)
//   /model/NAME, /adapter/NAME, /optim/NAME/m, ...   one per global tensor; BF16 is a 16-bit float type
//   /meta/json   the text of CkptMeta, bytes
//
// Saving. Each phase ends in comm_agree; any rank's failure ends the save on all, and nothing is published.
//   1 rank 0: room on the disk, a fresh .tmp-step-N-ATTEMPT, the file with all its datasets, its blocks reserved
//   2 all ranks open that file together and write their hyperslabs, independently of each other: with more
//     ranks than cores, collective transfers are 20 times slower. Column cuts are exchanged for whole rows before (checkpoint_rows.c)
//   3 digests of what no rank has written in one piece, each rank a share; the others were made from memory in phase 2. fsync, which must
//     come after the close because HDF5 writes its superblock last
//   4 rank 0: MANIFEST, fsync, rename to step-N, fsync of the parent, old steps removed
// Phase 1 is rank 0's alone because of failures: a rank whose write of metadata fails inside a parallel close
// leaves the others waiting for ever. In phase 2 there is no metadata left to write but the superblock, in
// its place. Should a rank hang all the same, the save has a deadline.
#define _GNU_SOURCE
#include "checkpoint_impl.h"
#include "fault.h"
#include "rundir.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mpi.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char format_name[] = "attune";

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
    if (!expired) return NULL;
    const char *what = tmpf("saving a checkpoint has not ended within %.0f s (ATTUNE_SAVE_DEADLINE)", d->seconds);
    log_warn("%s: the run ends here; the previous checkpoint is untouched", what);
    comm_abort_because(d->comm, what);
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
    char *parent, *tmp, *final, *file; // checkpoints/, .tmp-step-N-ATTEMPT/, step-N/, and state.h5 in the temporary one
    int64_t step;
    CkptTensor *tensors; // the caller's, then /meta/json
    int n;
    int64_t *places; // (n + 1) where each dataset's bytes lie in the file, and where it ends
    Manifest manifest;
    LeafWatch digests; // of what this rank writes
    CkptRows *rows;
    int writeback;           // the file once more, for the disk to be told what has been written; -1: it is not told
    uint64_t unsaid[2];      // bytes of the file of which it has not been told, and
    uint64_t unsaid_written; // how many of them this rank has written
} Save;

static uint64_t save_bytes(const Save *s)
{
    uint64_t bytes = 0;
    for (int i = 0; i < s->n; i++) bytes += ckpt_tensor_bytes(&s->tensors[i]);
    return bytes;
}

static int prepare(const Save *s)
{
    TRY(make_dirs(s->parent));
    if (file_sync_parent(s->parent) < 0) return fail_errno(s->parent, "cannot flush its directory to the disk");
    ckpt_sweep(s->parent);
    TRY(ckpt_check_room(s->parent, save_bytes(s)));
    if (mkdir(s->tmp, 0777) < 0) return fail_errno(s->tmp, "cannot create the directory");
    return OK;
}

// Access by all ranks together. A single rank without MPI uses the plain driver; the format is the same.
static hid_t parallel_access(Comm *c)
{
    hid_t access = ckpt_plain_access();
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
    hid_t type = ckpt_h5_type(t->t), space = ckpt_file_space(t);
    hid_t set = H5Dcreate2(file, t->name, type, space, links, create, H5P_DEFAULT);
    haddr_t at = set < 0 ? HADDR_UNDEF : H5Dget_offset(set);
    int status = at == HADDR_UNDEF ? ckpt_h5_fail(t->name, "cannot create the dataset") : OK;
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
    int status = rc < 0 ? ckpt_h5_fail(name, "cannot write the attribute") : OK;
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    return status;
}

static int write_attributes(const Save *s, hid_t file)
{
    int64_t version = CKPT_FORMAT_VERSION, complete = 0;
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
// rank finds it full. *bytes: how large the file is.
static int reserve(const char *path, int64_t *bytes)
{
    struct stat st = {0};
    int fd = open(path, O_RDWR | O_CLOEXEC), status = OK;
    if (fd < 0) return fail_errno(path, "cannot open");
    if (fstat(fd, &st) < 0)
        status = fail_errno(path, "cannot stat");
    else if (fallocate(fd, 0, 0, st.st_size) < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        status = fail_errno(path, "cannot reserve the space");
    *bytes = (int64_t)st.st_size;
    close(fd);
    return status;
}

// Rank 0: the whole file but the data. how: the file is to be new, or is replaced.
static int lay_out(const Save *s, unsigned how)
{
    hid_t access = ckpt_plain_access(), file = H5Fcreate(s->file, how, H5P_DEFAULT, access);
    int status = file < 0 ? ckpt_h5_fail(s->file, "cannot create") : OK;
    H5Pclose(access);
    TRY(status);
    status = write_attributes(s, file);
    for (int i = 0; i < s->n && status == OK; i++) status = create_set(file, &s->tensors[i], &s->places[i]);
    if (H5Fclose(file) < 0 && status == OK) status = ckpt_h5_fail(s->file, "cannot write");
    return status;
}

static void place_tensors(Save *s)
{
    for (int i = 0; i < s->n; i++) {
        const CkptTensor *t = &s->tensors[i];
        s->manifest.tensors[i] = (ManifestTensor){.offset = (uint64_t)s->places[i],
                                                  .bytes = ckpt_tensor_bytes(t),
                                                  .t = t->t,
                                                  .shape = {t->shape[0], t->shape[1]},
                                                  .name = t->name};
    }
    s->manifest.file_bytes = (uint64_t)s->places[s->n];
    manifest_cut(&s->manifest);
}

// Phase 1.
static int create_state(Save *s)
{
    bool first = comm_rank(s->comm) == 0;
    int status = first ? prepare(s) : OK;
    if (first && status == OK) status = lay_out(s, H5F_ACC_EXCL);
    if (first && status == OK) status = reserve(s->file, &s->places[s->n]);
    TRY(comm_agree(s->comm, status));
    TRY(comm_broadcast(s->comm, s->places, (size_t)s->n + 1, DT_I64, 0));
    place_tensors(s);
    leaves_watch(&s->digests, &s->manifest);
    return OK;
}

// The disk works while the rest is still being written and digested; whether it succeeds is for fsync to tell.
static void start_writeback(Save *s)
{
    const off_t from = (off_t)s->unsaid[0], bytes = (off_t)(s->unsaid[1] - s->unsaid[0]);
    if (s->writeback < 0 || !s->unsaid_written) return;
    if (sync_file_range(s->writeback, from, bytes, SYNC_FILE_RANGE_WRITE) < 0)
        log_debug("%s: no early writeback", s->file);
    s->unsaid_written = 0;
}

static void note_written(Save *s, uint64_t from, uint64_t bytes, uint64_t spread)
{
    enum { AT_ONCE = 8 << 20 };
    s->unsaid[0] = s->unsaid_written ? MIN(s->unsaid[0], from) : from;
    s->unsaid[1] = s->unsaid_written ? MAX(s->unsaid[1], from + spread) : from + spread;
    s->unsaid_written += bytes;
    if (s->unsaid_written >= AT_ONCE) start_writeback(s);
}

typedef struct Part {
    Save *s;
    hid_t set;
    uint64_t offset; // of the dataset in the file
} Part;

static int write_rows(void *ctx, const CkptTensor *t)
{
    const Part *p = ctx;
    const uint64_t size = dtype_size(t->t), row = (uint64_t)t->shape[1] * size;
    const uint64_t from = p->offset + (uint64_t)t->row0 * row, spread = (uint64_t)t->rows * row;
    TRY(ckpt_write(p->set, t));
    if (t->cols == t->shape[1]) leaves_pass(&p->s->digests, from, t->data, spread);
    note_written(p->s, from, (uint64_t)(t->rows * t->cols) * size, spread);
    return OK;
}

// In pieces that are still in the processor's cache when they are digested, and so that the disk hears of them soon.
static int write_slab(Part *p, const CkptTensor *t)
{
    enum { PIECE = 1 << 20 };
    const int64_t step = ckpt_rows_within(t, PIECE);
    int status = OK;
    for (int64_t done = 0; done < t->rows && status == OK; done += step) {
        const CkptTensor piece = ckpt_piece(t, done, step);
        status = write_rows(p, &piece);
    }
    return status;
}

// status: of the parts before. Also a rank that has failed exchanges what others wait for.
static int write_part(Save *s, hid_t file, int i, int status)
{
    const CkptTensor *t = &s->tensors[i];
    const bool exchanged = ckpt_rows_has(s->rows, i);
    Part p = {s, -1, (uint64_t)s->places[i]};
    if (!t->rows || (status < 0 && !exchanged)) return status;
    if (status == OK) p.set = H5Dopen2(file, t->name, H5P_DEFAULT);
    if (status == OK && p.set < 0) status = ckpt_h5_fail(t->name, "cannot open the dataset");
    if (exchanged)
        status = ckpt_rows_write(s->rows, t, i, write_rows, &p, status);
    else if (status == OK)
        status = write_slab(&p, t);
    if (p.set >= 0) H5Dclose(p.set);
    return status;
}

static int write_parts(Save *s, hid_t file)
{
    int status = OK;
    for (int i = 0; i < s->n; i++) {
        if (i == s->n / 2) fault_here("write", s->step, comm_rank(s->comm));
        status = write_part(s, file, i, status);
    }
    return status;
}

// Rank 0, when all data is there: the one change to metadata after phase 1, a number in its place.
static int mark_complete(const Save *s)
{
    int64_t complete = 1;
    hid_t file;
    TRY(ckpt_open_file(s->file, H5F_ACC_RDWR, ckpt_plain_access(), &file));
    hid_t attribute = H5Aopen(file, "complete", H5P_DEFAULT);
    herr_t rc = attribute < 0 ? -1 : H5Awrite(attribute, H5T_NATIVE_INT64, &complete);
    int status = rc < 0 ? ckpt_h5_fail(s->file, "cannot write the attribute `complete`") : OK;
    if (attribute >= 0) H5Aclose(attribute);
    if (H5Fclose(file) < 0 && status == OK) status = ckpt_h5_fail(s->file, "cannot write");
    return status;
}

// Phase 2.
static int write_state(Save *s)
{
    hid_t file;
    TRY(comm_agree(s->comm, ckpt_rows_open(&s->rows, s->comm, s->tensors, s->n, true)));
    int status = comm_agree(s->comm, ckpt_open_file(s->file, H5F_ACC_RDWR, parallel_access(s->comm), &file));
    s->writeback = open(s->file, O_RDWR | O_CLOEXEC);
    if (status == OK) status = comm_agree(s->comm, write_parts(s, file));
    ckpt_rows_close(s->rows); // and its memory: what follows takes time
    s->rows = NULL;
    if (file >= 0 && H5Fclose(file) < 0 && status == OK) status = ckpt_h5_fail(s->file, "cannot close");
    TRY(comm_agree(s->comm, status));
    start_writeback(s);
    return comm_agree(s->comm, comm_rank(s->comm) == 0 ? mark_complete(s) : OK);
}

// Phase 3. Each leaf's digest comes from one rank: who wrote it whole, or else who reads it now; integer sums with zeros put them
// together. And each rank flushes the file: those of another machine have pages of their own.
static int digest_state(Save *s)
{
    Manifest *m = &s->manifest;
    TRY(comm_all_reduce(s->comm, s->digests.known, m->n_leaves, DT_U8, REDUCE_MAX));
    TRY(comm_agree(s->comm, manifest_digest(m, s->file, comm_rank(s->comm), comm_size(s->comm), s->digests.known)));
    int64_t *all = xcalloc(m->n_leaves, sizeof *all);
    for (size_t i = 0; i < m->n_leaves; i++) all[i] = (int64_t)m->leaves[i].digest;
    int status = comm_all_reduce(s->comm, all, m->n_leaves, DT_I64, REDUCE_SUM);
    for (size_t i = 0; i < m->n_leaves; i++) m->leaves[i].digest = (uint64_t)all[i];
    free(all);
    TRY(status);
    return comm_agree(s->comm, ckpt_sync_path(s->file, O_RDWR));
}

// A step that was published before (the run went back behind it) changes places with the new one in a single
// act where the file system can do that. The old one then lies under the temporary name or .del-: ckpt_sweep
// removes it.
static int move_into_place(const Save *s)
{
    if (rename(s->tmp, s->final) == 0) return OK;
    if (errno != ENOTEMPTY && errno != EEXIST) return fail_errno(s->final, "cannot rename into place");
    if (renameat2(AT_FDCWD, s->tmp, AT_FDCWD, s->final, RENAME_EXCHANGE) == 0) return OK;
    char *old = ckpt_step_path(s->parent, ".del-", s->step);
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
    if (ckpt_sync_path(s->parent, O_RDONLY | O_DIRECTORY) < 0)
        ckpt_warn_instead("published, but it may not survive a loss of power");
    return OK;
}

// ---- checkpoint_save --------------------------------------------------------------------------------------
static void save_init(Save *s, Comm *c, const char *output, const CkptMeta *meta, const CkptTensor *t, int n)
{
    ASSERT(meta->step >= 0 && meta->json && *meta->json);
    *s = (Save){.writeback = -1,
                .comm = c,
                .step = meta->step,
                .n = n + 1,
                .manifest.step = meta->step,
                .manifest.n_tensors = (size_t)n + 1};
    s->parent = xasprintf("%s/checkpoints", output);
    s->final = ckpt_step_path(s->parent, "", s->step);
    s->tensors = xcalloc((size_t)s->n, sizeof *s->tensors);
    s->places = xcalloc((size_t)s->n + 1, sizeof *s->places);
    s->manifest.tensors = xcalloc((size_t)s->n, sizeof *s->manifest.tensors);
    if (n) memcpy(s->tensors, t, (size_t)n * sizeof *t);
}

// The temporary directory has a name that no other attempt has: a rank of a run that was killed may live on for a moment, and must
// not write into this one's file.
static int name_attempt(Save *s)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const int64_t seeds[] = {now.tv_sec, now.tv_nsec, getpid()};
    int64_t attempt = (int64_t)hash64(seeds, sizeof seeds, 0);
    TRY(comm_broadcast(s->comm, &attempt, 1, DT_I64, 0));
    char *tmp = ckpt_step_path(s->parent, ".tmp-", s->step);
    s->tmp = xasprintf("%s-%08" PRIx32, tmp, (uint32_t)attempt);
    s->file = xasprintf("%s/state.h5", s->tmp);
    free(tmp);
    return OK;
}

// Every element is written by exactly one rank: parts that leave gaps would publish whatever lies on the disk there.
static int check_parts(const Save *s)
{
    int64_t *covered = xcalloc((size_t)s->n, sizeof *covered);
    for (int i = 0; i < s->n; i++) {
        const CkptTensor *t = &s->tensors[i];
        ckpt_check_part(t);
        covered[i] = t->rows ? t->rows * t->cols : 0;
    }
    int status = comm_all_reduce(s->comm, covered, (size_t)s->n, DT_I64, REDUCE_SUM);
    for (int i = 0; i < s->n && status == OK; i++) {
        const CkptTensor *t = &s->tensors[i];
        if (covered[i] != t->shape[0] * t->shape[1])
            status = fail(E_FAILED, t->name, NULL, "the ranks' parts have %" PRId64 " elements, the tensor %" PRId64,
                          covered[i], t->shape[0] * t->shape[1]);
    }
    free(covered);
    return comm_agree(s->comm, status);
}

static void set_meta(Save *s, const CkptMeta *meta, int64_t bytes, bool writes)
{
    s->tensors[s->n - 1] = (CkptTensor){.name = MANIFEST_META,
                                        .t = DT_U8,
                                        .shape = {bytes, 1},
                                        .rows = writes ? bytes : 0,
                                        .cols = 1,
                                        .data = meta->json};
}

// Rank 0's text becomes the last dataset; the others need its size to create it with.
static int add_meta(Save *s, const CkptMeta *meta)
{
    int64_t bytes = (int64_t)strlen(meta->json);
    TRY(comm_broadcast(s->comm, &bytes, 1, DT_I64, 0));
    bool writes = comm_rank(s->comm) == 0;
    set_meta(s, meta, bytes, writes);
    for (int i = 0; i < s->n; i++) ckpt_check_part(&s->tensors[i]);
    return OK;
}

static void save_free(Save *s)
{
    free(s->parent);
    free(s->tmp);
    free(s->final);
    free(s->file);
    free(s->tensors);
    free(s->places);
    if (s->writeback >= 0) close(s->writeback);
    ckpt_rows_close(s->rows);
    leaves_watch_end(&s->digests);
    manifest_free(&s->manifest);
}

static int save_phases(Save *s, const CkptMeta *meta)
{
    int rank = comm_rank(s->comm);
    TRY(add_meta(s, meta));
    TRY(name_attempt(s));
    TRY(check_parts(s));
    fault_here("create", s->step, rank);
    TRY(create_state(s));
    TRY(write_state(s));
    fault_here("digest", s->step, rank);
    TRY(digest_state(s));
    fault_here("publish", s->step, rank);
    TRY(comm_agree(s->comm, rank == 0 ? publish(s) : OK));
    fault_here("published", s->step, rank);
    return OK;
}

// On rank 0, after the agreement. A failed save leaves nothing behind; the error that ended it stays the
// thread's. The file is emptied first: HDF5 keeps one open whose close has failed, and with it the space.
static void tidy(const Save *s, int status, int keep)
{
    ErrorRecord cause = *error_last();
    error_clear();
    if (status < 0 && s->file && truncate(s->file, 0) < 0) log_debug("%s is not there to be emptied", s->file);
    ckpt_sweep(s->parent);
    if (status == OK) ckpt_retain(s->parent, s->step, keep);
    error_adopt(&cause);
}

int checkpoint_save(Comm *c, const char *output, const CkptMeta *meta, const CkptTensor *t, int n, int keep)
{
    Save s;
    Deadline deadline;
    save_init(&s, c, output, meta, t, n);
    bool watched = deadline_start(&deadline, c, save_bytes(&s));
    int status = save_phases(&s, meta);
    if (watched) deadline_stop(&deadline);
    if (comm_rank(c) == 0) tidy(&s, status, keep);
    save_free(&s);
    return status;
}

// ---- how large ----------------------------------------------------------------------------------------------
// The file is laid out for a moment where the places of its data stay holes: in memory, if there is such a directory.
static int measure(Save *s, uint64_t *bytes)
{
    struct stat st;
    Buf text = {0};
    s->file = xasprintf("%s/attune-plan-XXXXXX", path_is_dir("/dev/shm") ? "/dev/shm" : "/tmp");
    int status = OK, fd = mkstemp(s->file);
    if (fd < 0) {
        status = fail_errno(s->file, "cannot create");
        goto done;
    }
    TRY_DONE(lay_out(s, H5F_ACC_TRUNC));
    if (fstat(fd, &st) < 0) {
        status = fail_errno(s->file, "cannot stat");
        goto done;
    }
    s->places[s->n] = (int64_t)st.st_size;
    place_tensors(s);
    manifest_print(&s->manifest, &text);
    *bytes = s->manifest.file_bytes + text.len;
done:
    if (fd >= 0) unlink(s->file);
    if (fd >= 0) close(fd);
    buf_free(&text);
    return status;
}

int checkpoint_measure(const CkptMeta *meta, const CkptTensor *t, int n, uint64_t *bytes)
{
    Save s;
    save_init(&s, NULL, "", meta, t, n);
    set_meta(&s, meta, (int64_t)strlen(meta->json), true);
    int status = measure(&s, bytes);
    save_free(&s);
    return status;
}
