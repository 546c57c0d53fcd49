// checkpoint_load: finding the newest good checkpoint, and reading the part that each rank of any layout needs. Rank 0 reads the
// MANIFEST, so that a directory is judged by one text; of the rest each rank reads what it needs (checkpoint_read.c), or
// together with others what their columns are cut from (checkpoint_rows.c).
#include "checkpoint_impl.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

// ---- opening ----------------------------------------------------------------------------------------------
static int share_text(Comm *c, const char *dir, char **text, size_t *bytes)
{
    char *path = xasprintf("%s/MANIFEST", dir);
    *text = NULL;
    int status = comm_agree(c, comm_rank(c) == 0 ? file_read(path, MANIFEST_LIMIT_BYTES, text, bytes) : OK);
    if (status == OK) status = comm_broadcast_blob(c, (void **)text, bytes, 0);
    free(path);
    return status;
}

// With status < 0 there is no reader.
static int open_together(Comm *c, const char *dir, CkptReader **out)
{
    char *text;
    size_t bytes = 0;
    *out = NULL;
    TRY(share_text(c, dir, &text, &bytes));
    int status = comm_agree(c, ckpt_reader_open(out, dir, text, bytes));
    if (status < 0) checkpoint_close(*out);
    return status;
}

// The steps that are there, newest first; the caller frees them.
static int share_steps(Comm *c, const char *parent, int64_t **steps, size_t *n)
{
    *steps = NULL;
    *n = 0;
    TRY(comm_agree(c, comm_rank(c) == 0 ? ckpt_list_steps(parent, steps, n) : OK));
    size_t bytes = *n * sizeof **steps;
    TRY(comm_broadcast_blob(c, (void **)steps, &bytes, 0));
    *n = bytes / sizeof **steps;
    return OK;
}

// A directory under another step's name was moved by hand; resuming it there would repeat or skip steps.
static int check_step(const Manifest *m, const char *dir, int64_t step)
{
    return m->step == step ? OK : fail(E_INPUT, dir, NULL, "holds step %" PRId64, m->step);
}

// ---- finding ----------------------------------------------------------------------------------------------
// Each rank compares its share of the digests; all return the same status.
static int compare_leaves(Comm *c, const char *file, const Manifest *m)
{
    size_t bad;
    TRY(comm_agree(c, manifest_compare(m, file, comm_rank(c), comm_size(c), &bad)));
    int64_t first = (int64_t)MIN(bad, (size_t)INT64_MAX);
    TRY(comm_all_reduce(c, &first, 1, DT_I64, REDUCE_MIN));
    bool blames = first != INT64_MAX && comm_rank(c) == 0;
    return comm_agree(c, blames ? manifest_blame(m, file, (size_t)first) : first != INT64_MAX ? E_INPUT : OK);
}

static int verify_step(Comm *c, const char *dir, int64_t step)
{
    CkptReader *r;
    TRY(open_together(c, dir, &r));
    char *file = xasprintf("%s/state.h5", dir);
    int status = comm_agree(c, check_step(ckpt_reader_manifest(r), dir, step));
    if (status == OK) status = compare_leaves(c, file, ckpt_reader_manifest(r));
    checkpoint_close(r);
    free(file);
    return status;
}

int checkpoint_find(Comm *c, const char *output, int64_t *step, char **dir)
{
    char *parent = xasprintf("%s/checkpoints", output);
    int64_t *steps;
    size_t n;
    *step = -1;
    *dir = NULL;
    int status = share_steps(c, parent, &steps, &n);
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
static int check_fit(const CkptReader *r, const CkptTensor *t, int n)
{
    for (int i = 0; i < n; i++) TRY(ckpt_reader_fits(r, &t[i]));
    return OK;
}

// A large part in several pieces, so that threads have equal shares; appended to *list.
static void add_pieces(CkptTensor **list, int *n, const CkptTensor *t)
{
    enum { PIECE_BYTES = 16 * MANIFEST_LEAF_BYTES };
    const int64_t step = ckpt_rows_within(t, PIECE_BYTES), pieces = (t->rows + step - 1) / step;
    *list = xrealloc(*list, sizeof **list * (size_t)(*n + pieces));
    for (int64_t done = 0; done < t->rows; done += step) (*list)[(*n)++] = ckpt_piece(t, done, step);
}

// Two threads read, each the next piece: the disk has something to do while what it brought is digested, and the system reads ahead
// for both, as each has the file open for itself.
typedef struct Pieces {
    const CkptTensor *list;
    int n;
    atomic_int next; // n and more: nothing is left, or something has failed
} Pieces;

static int read_pieces(Pieces *p, CkptReader *r)
{
    for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->n;) {
        int status = checkpoint_read(r, &p->list[i]);
        if (status == OK) continue;
        atomic_store(&p->next, p->n);
        return status;
    }
    return OK;
}

typedef struct SecondThread {
    Pieces *pieces;
    CkptReader *reader;
    pthread_t thread;
    int status;
    ErrorRecord error;
} SecondThread;

static void *read_beside(void *arg)
{
    SecondThread *x = arg;
    x->status = read_pieces(x->pieces, x->reader);
    x->error = *error_last();
    return NULL;
}

// Without a second thread, or a second reader, the first reads all.
static int read_by_two(CkptReader *r, Pieces *p)
{
    SecondThread second = {.pieces = p};
    bool started = p->n > 1 && ckpt_reader_again(&second.reader, r) == OK;
    if (started) started = pthread_create(&second.thread, NULL, read_beside, &second) == 0;
    error_clear();
    int status = read_pieces(p, r);
    if (started) pthread_join(second.thread, NULL);
    checkpoint_close(second.reader);
    if (status < 0 || second.status == OK) return status;
    error_adopt(&second.error);
    return second.status;
}

// What this rank reads for itself alone.
static int read_own(CkptReader *r, const CkptRows *rows, const CkptTensor *t, int n)
{
    CkptTensor *list = NULL;
    int pieces = 0;
    for (int i = 0; i < n; i++)
        if (t[i].rows && !ckpt_rows_has(rows, i)) add_pieces(&list, &pieces, &t[i]);
    int status = read_by_two(r, &(Pieces){.list = list, .n = pieces});
    free(list);
    return status;
}

// Collective: tensors whose columns are cut are read together.
static int read_tensors(Comm *c, CkptReader *r, const CkptTensor *t, int n)
{
    CkptRows *rows;
    for (int i = 0; i < n; i++) ckpt_check_part(&t[i]);
    int status = comm_agree(c, ckpt_rows_open(&rows, c, t, n, false));
    const bool opened = status == OK;
    if (opened) status = read_own(r, rows, t, n);
    for (int i = 0; i < n && opened; i++)
        if (ckpt_rows_has(rows, i)) status = ckpt_rows_read(rows, &t[i], i, r, status);
    ckpt_rows_close(rows);
    return comm_agree(c, status);
}

int checkpoint_load(Comm *c, const char *dir, const CkptTensor *t, int n)
{
    CkptReader *r;
    TRY(open_together(c, dir, &r));
    int status = comm_agree(c, check_fit(r, t, n));
    if (status == OK) status = read_tensors(c, r, t, n);
    checkpoint_close(r);
    return status;
}

static int share_meta(Comm *c, CkptReader *r, CkptMeta *out)
{
    size_t bytes = 0;
    int status = comm_agree(c, comm_rank(c) == 0 ? checkpoint_read_meta(r, out) : OK);
    if (status == OK) bytes = out->json ? strlen(out->json) : 0;
    if (status == OK) status = comm_broadcast_blob(c, (void **)&out->json, &bytes, 0);
    out->step = ckpt_reader_manifest(r)->step;
    return status;
}

int checkpoint_load_meta(Comm *c, const char *dir, CkptMeta *out)
{
    CkptReader *r;
    *out = (CkptMeta){0};
    TRY(open_together(c, dir, &r));
    int status = share_meta(c, r, out);
    if (status < 0) checkpoint_meta_free(out);
    checkpoint_close(r);
    return status;
}

// ---- resuming ---------------------------------------------------------------------------------------------
static int find_name(const void *name, const void *tensor)
{
    return strcmp(name, ((const CkptTensor *)tensor)->name);
}
static int by_name(const void *a, const void *b)
{
    return find_name(((const CkptTensor *)a)->name, b);
}

// Strict both ways: what this run needs is there as it needs it, and nothing is there that it would lose.
static int check_tensors(const CkptReader *r, const char *dir, const CkptTensor *t, int n)
{
    const Manifest *m = ckpt_reader_manifest(r);
    CkptTensor *sorted = xcalloc((size_t)n + 1, sizeof *sorted);
    int status = check_fit(r, t, n);
    if (n) memcpy(sorted, t, (size_t)n * sizeof *t);
    qsort(sorted, (size_t)n, sizeof *sorted, by_name);
    for (size_t i = 0; i < m->n_tensors && status == OK; i++) {
        const char *name = m->tensors[i].name;
        if (streq(name, MANIFEST_META) || bsearch(name, sorted, (size_t)n, sizeof *sorted, find_name)) continue;
        status = fail(E_INPUT, dir, "was it saved by a run with other `lora` or `freeze` options?",
                      "this run has no place for the checkpoint's tensor %s", name);
    }
    free(sorted);
    return status;
}

typedef struct Resume {
    Comm *c;
    CkptAcceptFn *accept;
    void *ctx;
    const CkptTensor *t;
    int n;
} Resume;

// *damaged: the status tells of the checkpoint itself, and not that it is another run's.
static int resume_from(const Resume *x, const char *dir, int64_t step, bool *damaged)
{
    CkptReader *r;
    CkptMeta meta = {0};
    int status = OK;
    *damaged = true;
    TRY(open_together(x->c, dir, &r));
    TRY_DONE(comm_agree(x->c, check_step(ckpt_reader_manifest(r), dir, step)));
    TRY_DONE(comm_agree(x->c, comm_rank(x->c) == 0 ? ckpt_reader_structure(r) : OK));
    TRY_DONE(share_meta(x->c, r, &meta));
    *damaged = false;
    TRY_DONE(comm_agree(x->c, x->accept ? x->accept(x->ctx, dir, &meta) : OK));
    TRY_DONE(comm_agree(x->c, check_tensors(r, dir, x->t, x->n)));
    *damaged = true;
    TRY_DONE(read_tensors(x->c, r, x->t, x->n));
done:
    checkpoint_meta_free(&meta);
    checkpoint_close(r);
    return status;
}

int checkpoint_resume(Comm *c, const char *output, CkptAcceptFn *accept, void *ctx, const CkptTensor *t, int n,
                      int64_t *step, char **dir)
{
    const Resume x = {c, accept, ctx, t, n};
    char *parent = xasprintf("%s/checkpoints", output);
    int64_t *steps;
    size_t found;
    *step = -1;
    *dir = NULL;
    int status = share_steps(c, parent, &steps, &found);
    for (size_t i = 0; i < found && status == OK && *step < 0; i++) {
        bool damaged;
        char *candidate = ckpt_step_path(parent, "", steps[i]);
        status = resume_from(&x, candidate, steps[i], &damaged);
        if (status == OK) {
            *step = steps[i];
            *dir = candidate;
            continue;
        }
        free(candidate);
        if (!damaged) break;
        ckpt_warn_instead("this checkpoint is skipped");
        status = OK;
    }
    if (status == OK && found && *step < 0)
        status = comm_agree(c, fail(E_INPUT, parent, "`--force` starts over", "none of the checkpoints here is whole"));
    free(steps);
    free(parent);
    return status;
}
