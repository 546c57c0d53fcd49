// state.c: a run's state as a checkpoint, and back. Tensors: the f32 master of each trained tensor and its two moments, under
// "model/NAME" or "adapter/NAME" and "optim/NAME/{m,v}". Everything else is a function of (recipe, step): the schedule, the data
// cursor, and every random number, so the step is all that has to be remembered of them.
// Each rank writes its share and reads what it has.
#define _GNU_SOURCE
#include "trainer.h"
#include "provenance.h"
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { MAX_FAILED_SAVES = 3 }; // in a row

typedef struct Names {
    char (*text)[192];
    CkptTensor *t;
    int n;
} Names;

// rows: of this rank's slab, among those it has
static void add_tensor(Names *s, const char *name, const Trainable *t, float *data, Rows rows)
{
    snprintf(s->text[s->n], sizeof s->text[0], "%s", name);
    s->t[s->n] = (CkptTensor){.name = s->text[s->n],
                              .t = DT_F32,
                              .shape = {t->full_N, t->full_K},
                              .row0 = t->row0 + rows.row0,
                              .rows = rows.rows,
                              .col0 = t->col0,
                              .cols = t->K,
                              .data = rows.rows ? data + (size_t)(rows.row0 - t->part.row0) * (size_t)t->K : NULL};
    s->n++;
}

// What this rank writes: its rows under ZeRO; else a share of the rows that all data ranks have. Of tensor ranks that hold the same
// slab one writes.
static Rows rows_to_write(const Model *m, const Trainable *t)
{
    const Mesh *mesh = m->mesh;
    if (!t->owner) return (Rows){t->part.row0, 0};
    return m->zero ? t->part : part_rows(t->N, mesh->data_rank, mesh->data_size);
}

static Names state_tensors(const Model *m, bool write)
{
    Names s = {.text = xcalloc(3 * (size_t)m->n_trained + 1, sizeof s.text[0]),
               .t = xcalloc(3 * (size_t)m->n_trained + 1, sizeof *s.t)};
    for (int i = 0; i < m->n_trained; i++) {
        const Trainable *t = &m->trained[i];
        const Rows rows = write ? rows_to_write(m, t) : t->part;
        add_tensor(&s, tmpf("%s/%s", t->adapter ? "adapter" : "model", t->name), t, t->master, rows);
        add_tensor(&s, tmpf("optim/%s/m", t->name), t, t->m, rows);
        add_tensor(&s, tmpf("optim/%s/v", t->name), t, t->v, rows);
    }
    return s;
}

static size_t slab_bytes(const CkptTensor *t)
{
    return (size_t)t->rows * (size_t)t->cols * dtype_size(t->t);
}

static char *host_room(const Names *s) // for all slabs
{
    size_t bytes = 0;
    for (int i = 0; i < s->n; i++) bytes += slab_bytes(&s->t[i]);
    return xmalloc(bytes + 1);
}

// By all threads: the steps stand still meanwhile, and one thread alone does not use what memory can do.
static void copy_within_host(char *to, const char *from, size_t bytes)
{
    enum { PIECE = 1 << 20 };
#pragma omp parallel for schedule(static) if (bytes > PIECE)
    for (size_t at = 0; at < bytes; at += PIECE) memcpy(to + at, from + at, MIN(bytes - at, (size_t)PIECE));
}

// The slabs are copied, one behind the other, and are then found there.
static int copy_to_host(Device *d, Names *s, char *to)
{
    for (int i = 0; i < s->n; i++) {
        CkptTensor *t = &s->t[i];
        const size_t bytes = slab_bytes(t);
        if (!bytes) continue;
        if (d->obtain)
            TRY(d->download(d, to, t->data, bytes));
        else
            copy_within_host(to, t->data, bytes);
        t->data = to;
        to += bytes;
    }
    return OK;
}

static void names_free(Names *s)
{
    free(s->text);
    free(s->t);
}

static json_t *peft_json(const PeftConfig *c)
{
    json_t *targets = json_array();
    for (char **t = c->targets; t && *t; t++) json_array_append_new(targets, json_string(*t));
    json_t *patterns = json_array();
    for (int i = 0; i < c->n_pattern; i++)
        json_array_append_new(patterns,
                              json_pack("[s, i, o]", c->pattern[i], c->pattern_rank[i],
                                        isnan(c->pattern_alpha[i]) ? json_null() : json_real(c->pattern_alpha[i])));
    return json_pack("{s:i, s:f, s:b, s:b, s:o, s:o}", "rank", c->rank, "alpha", c->alpha, "rslora", c->use_rslora,
                     "dora", c->use_dora, "targets", targets, "patterns", patterns);
}

static char *state_json(const Trainer *t)
{
    const Recipe *r = &t->s.recipe;
    Buf yaml = {0};
    recipe_write_yaml(r, &yaml);
    json_t *j = json_pack("{s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:s}", "step", (json_int_t)t->step, "method", r->method,
                          "objective", r->objective, "base", r->model, "recipe", yaml.data, "seed", (json_int_t)r->seed,
                          "total_steps", (json_int_t)t->total_steps, "data_digest",
                          tmpf("%016llx", (unsigned long long)dataset_digest(t->train)));
    if (streq(r->method, "lora")) json_object_set_new(j, "lora", peft_json(&t->s.peft));
    if (t->provenance) json_object_set(j, "provenance", t->provenance);
    char *text = json_dumps(j, JSON_INDENT(1));
    json_decref(j);
    buf_free(&yaml);
    return text;
}

static bool is_last_try(const Trainer *t)
{
    return t->failed_saves + 1 >= MAX_FAILED_SAVES;
}

// A checkpoint that fails costs what could have been resumed, the run's end would cost more: until several fail in a row it is a
// warning, on all ranks alike.
static int forgive(Trainer *t, int status)
{
    const bool ends = is_last_try(t);
    if (status == OK) return OK;
    t->failed_saves++;
    if (ends) return status;
    error_clear();
    return OK;
}

static void warn_of_failed_save(int64_t step)
{
    const ErrorRecord *e = error_last();
    if (*e->what) log_warn("the checkpoint of step %lld was not written: %s: %s", (long long)step, e->place, e->what);
}

int state_save(Trainer *t)
{
    const Mesh *mesh = &t->s.mesh;
    TRY(forgive(t, state_wait(t)));
    Names s = state_tensors(t->s.model, true);
    CkptMeta meta = {.step = t->step, .json = state_json(t)};
    char *host = t->s.dev->obtain ? host_room(&s) : NULL; // HDF5 reads host memory
    int status = host ? copy_to_host(t->s.dev, &s, host) : OK;
    if (status == OK)
        status = checkpoint_save(mesh->world, t->s.recipe.output, &meta, s.t, s.n, (int)t->s.recipe.checkpoint.keep);
    if (status == OK) t->failed_saves = 0;
    free(host);
    free(meta.json);
    names_free(&s);
    return status;
}

// ---- saving while the next steps run --------------------------------------------------------------------------------
// A snapshot of this rank's slabs in memory, and a thread that writes it. The thread has a communicator of its own: its collectives
// never meet the training loop's.
struct Saver {
    Comm *comm;
    const char *output;
    int keep;
    pthread_t thread;
    bool busy, threaded;
    bool last_try; // a failure ends the run and is told then
    Names names;
    CkptMeta meta;
    char *snapshot;
    int status;
    ErrorRecord error;
};

static void *write_snapshot(void *ctx)
{
    Saver *w = ctx;
    w->status = checkpoint_save(w->comm, w->output, &w->meta, w->names.t, w->names.n, w->keep);
    if (w->status < 0 && !w->last_try) warn_of_failed_save(w->meta.step);
    w->error = *error_last();
    error_clear(); // this thread may be the training loop's
    return NULL;
}

// Where all cores compute, what the writer takes of one holds up the step: it has the cores when nobody else wants them, and a tenth
// of one in any case.
static void *write_beside_steps(void *ctx)
{
    enum { NICE = 10 };
    (void)setpriority(PRIO_PROCESS, 0, NICE); // of this thread, on Linux
    return write_snapshot(ctx);
}

size_t state_snapshot_bytes(const Model *m)
{
    size_t bytes = 0;
    for (int i = 0; i < m->n_trained; i++)
        bytes += (size_t)rows_to_write(m, &m->trained[i]).rows * (size_t)m->trained[i].K * 3 * sizeof(float);
    return bytes;
}

// A block of whole rows, and the windows in which two ranks show each other what such blocks are made of.
size_t state_exchange_bytes(const Model *m)
{
    Names s = state_tensors(m, true);
    size_t block = 0;
    for (int i = 0; i < s.n; i++)
        if (s.t[i].cols < s.t[i].shape[1]) block = MAX(block, MIN(slab_bytes(&s.t[i]), (size_t)CKPT_BLOCK_BYTES));
    names_free(&s);
    return 3 * block;
}

int state_bytes(const Trainer *t, uint64_t *bytes)
{
    Names s = state_tensors(t->s.model, true);
    CkptMeta meta = {.step = t->total_steps, .json = state_json(t)};
    int status = checkpoint_measure(&meta, s.t, s.n, bytes);
    free(meta.json);
    names_free(&s);
    return status;
}

static int save_async(Trainer *t)
{
    const Mesh *mesh = &t->s.mesh;
    TRY(forgive(t, state_wait(t)));
    if (!t->saver) {
        t->saver = xcalloc(1, sizeof *t->saver);
        *t->saver = (Saver){.output = t->s.recipe.output, .keep = (int)t->s.recipe.checkpoint.keep};
        TRY(comm_split_host(&t->saver->comm, mesh->world, 0, comm_rank(mesh->world), 0));
    }
    Saver *w = t->saver;
    w->names = state_tensors(t->s.model, true);
    w->meta = (CkptMeta){.step = t->step, .json = state_json(t)};
    w->last_try = is_last_try(t);
    if (!w->snapshot) w->snapshot = host_room(&w->names); // the same size at every save
    int status = copy_to_host(t->s.dev, &w->names, w->snapshot);
    if (status < 0) {
        names_free(&w->names);
        free(w->meta.json);
        w->meta.json = NULL;
        return status;
    }
    w->busy = true;
    w->threaded = pthread_create(&w->thread, NULL, write_beside_steps, w) == 0;
    if (!w->threaded) write_snapshot(w); // no thread to be had: all ranks must still take part
    return OK;
}

int state_save_due(Trainer *t)
{
    if (t->s.recipe.checkpoint.async) return save_async(t);
    int status = state_save(t);
    if (status < 0 && !is_last_try(t)) warn_of_failed_save(t->step);
    return forgive(t, status);
}

int state_wait(Trainer *t)
{
    Saver *w = t->saver;
    if (!w || !w->busy) return OK;
    if (w->threaded) pthread_join(w->thread, NULL);
    w->busy = false;
    names_free(&w->names);
    free(w->meta.json);
    w->meta.json = NULL;
    if (w->status < 0)
        error_adopt(&w->error);
    else
        t->failed_saves = 0;
    return w->status;
}

void saver_close(Trainer *t)
{
    Saver *w = t->saver;
    const ErrorRecord cause = *error_last(); // why the run ends; how its last save ended comes after that
    if (!w) return;
    state_wait(t);
    if (cause.code) error_adopt(&cause);
    comm_close(w->comm);
    free(w->snapshot);
    free(w);
    t->saver = NULL;
}

// What must agree for a resumed run to be the run that was interrupted.
static int check_meta(void *ctx, const char *dir, const CkptMeta *meta)
{
    const Trainer *t = ctx;
    const Recipe *r = &t->s.recipe;
    json_t *j = json_loads(meta->json, 0, NULL);
    const char *method = json_string_value(json_object_get(j, "method"));
    const char *digest = json_string_value(json_object_get(j, "data_digest"));
    json_int_t seed = json_integer_value(json_object_get(j, "seed"));
    int status = OK;
    if (!method || !digest)
        status = fail(E_INPUT, dir, NULL, "the checkpoint's description is not one of a training run");
    else if (!streq(method, r->method))
        status = fail(E_INPUT, dir, "set method back, or use another output",
                      "written by method %s, the recipe says %s", method, r->method);
    else if (!streq(digest, tmpf("%016llx", (unsigned long long)dataset_digest(t->train))) &&
             comm_rank(t->s.mesh.world) == 0)
        log_warn("%s: data.train has changed since this checkpoint: the run goes on, but is not the one that was "
                 "interrupted",
                 r->data.train);
    if (status == OK && seed != r->seed && comm_rank(t->s.mesh.world) == 0)
        log_warn("the seed was %lld when this checkpoint was written", (long long)seed);
    json_decref(j);
    return status;
}

// Where the device's memory is its own, by way of the host's.
static int load_newest(Trainer *t, Names *s, int64_t *step, char **dir)
{
    Device *d = t->s.dev;
    Comm *world = t->s.mesh.world;
    const char *output = t->s.recipe.output;
    if (!d->obtain) return checkpoint_resume(world, output, check_meta, t, s->t, s->n, step, dir);
    char *host = host_room(s), *at = host;
    void **to = xcalloc((size_t)s->n + 1, sizeof *to);
    for (int i = 0; i < s->n; at += slab_bytes(&s->t[i++])) {
        to[i] = s->t[i].data;
        s->t[i].data = at;
    }
    int status = checkpoint_resume(world, output, check_meta, t, s->t, s->n, step, dir);
    for (int i = 0; i < s->n && status == OK && *step >= 0; i++)
        if (slab_bytes(&s->t[i])) status = d->upload(d, to[i], s->t[i].data, slab_bytes(&s->t[i]));
    free(to);
    free(host);
    return status;
}

int state_resume(Trainer *t, bool *found)
{
    Names s = state_tensors(t->s.model, false);
    char *dir = NULL;
    int64_t step = -1;
    int status = load_newest(t, &s, &step, &dir);
    *found = status == OK && step >= 0;
    if (*found) status = params_refresh(t->s.model);
    if (*found) json_object_set_new(t->provenance, "parent", provenance_of_checkpoint(dir));
    if (*found) t->step = step;
    names_free(&s);
    free(dir);
    return status;
}
