#include "from_checkpoint.h"
#include "io/checkpoint.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct FromCheckpoint {
    Comm *self; // the file is read by each rank for itself
    char *dir, *base;
    bool adapters;
};

bool checkpoint_is(const char *path)
{
    return path_exists(tmpf("%s/MANIFEST", path)) || path_is_dir(tmpf("%s/checkpoints", path));
}

static int find_dir(FromCheckpoint *f, const char *path)
{
    if (path_exists(tmpf("%s/MANIFEST", path))) {
        f->dir = xstrdup(path);
        return OK;
    }
    int64_t step;
    TRY(checkpoint_find(f->self, path, &step, &f->dir));
    return step >= 0 ? OK : fail(E_INPUT, path, NULL, "no checkpoint in it verifies");
}

// As state.c writes them: [name, rank or 0, alpha or null]
static void read_patterns(PeftConfig *c, const json_t *patterns)
{
    const size_t n = json_array_size(patterns);
    c->pattern = xcalloc(n + 1, sizeof *c->pattern);
    c->pattern_rank = xcalloc(n + 1, sizeof *c->pattern_rank);
    c->pattern_alpha = xcalloc(n + 1, sizeof *c->pattern_alpha);
    c->n_pattern = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(patterns, i), *alpha = json_array_get(row, 2);
        const char *name = json_string_value(json_array_get(row, 0));
        c->pattern[i] = xstrdup(name ? name : "");
        c->pattern_rank[i] = (int)json_integer_value(json_array_get(row, 1));
        c->pattern_alpha[i] = json_is_number(alpha) ? json_number_value(alpha) : NAN;
    }
}

static int read_adapter_shape(PeftConfig *c, const json_t *lora, const char *base, const char *place)
{
    const json_t *targets = json_object_get(lora, "targets");
    const size_t n = json_array_size(targets);
    int rank = (int)json_integer_value(json_object_get(lora, "rank"));
    if (rank < 1 || !n) return fail(E_INPUT, place, NULL, "the checkpoint does not say what its adapters are");
    *c = (PeftConfig){.rank = rank,
                      .alpha = json_number_value(json_object_get(lora, "alpha")),
                      .use_rslora = json_is_true(json_object_get(lora, "rslora")),
                      .use_dora = json_is_true(json_object_get(lora, "dora")),
                      .base_model = xstrdup(base),
                      .targets = xcalloc(n + 1, sizeof *c->targets)};
    for (size_t i = 0; i < n; i++) c->targets[i] = xstrdup(json_string_value(json_array_get(targets, i)));
    read_patterns(c, json_object_get(lora, "patterns"));
    return OK;
}

static int read_meta(Session *s, const char *method)
{
    FromCheckpoint *f = s->from;
    CkptMeta meta = {0};
    TRY(checkpoint_load_meta(f->self, f->dir, &meta));
    json_t *j = json_loads(meta.json, 0, NULL);
    const char *base = json_string_value(json_object_get(j, "base")),
               *made_by = json_string_value(json_object_get(j, "method"));
    int status = OK;
    if (!base || !made_by) {
        status = fail(E_INPUT, f->dir, NULL, "the checkpoint does not name its base model");
    } else {
        f->base = xstrdup(base);
        f->adapters = streq(made_by, "lora");
        const char *fits = f->adapters ? "lora" : "full"; // a new run's checkpoints must not need this one to be read
        if (!streq(method, fits) && !streq(method, "none"))
            status = fail(E_INPUT, f->dir, "attune convert it first, and start from the result",
                          "a checkpoint of method %s, which method %s cannot start from", made_by, method);
        else if (f->adapters)
            status = read_adapter_shape(&s->peft, json_object_get(j, "lora"), base, f->dir);
    }
    json_decref(j);
    checkpoint_meta_free(&meta);
    return status;
}

int from_checkpoint_open(Session *s, const char *path, const char *method)
{
    s->from = xcalloc(1, sizeof *s->from);
    TRY(comm_open(&s->from->self, &(CommConfig){.kind = "self"}));
    TRY(find_dir(s->from, path));
    TRY(read_meta(s, method));
    s->recipe.model = s->from->base;
    if (!s->from->adapters) return OK;
    s->spec.method = "lora";
    s->spec.lora = &s->peft;
    return OK;
}

const char *from_checkpoint_dir(const Session *s)
{
    return s->from ? s->from->dir : NULL;
}

void from_checkpoint_close(Session *s)
{
    if (!s->from) return;
    comm_close(s->from->self);
    free(s->from->dir);
    free(s->from->base);
    free(s->from);
}

// ---- values ---------------------------------------------------------------------------------------------------------
typedef struct Overlay {
    Session *s;
    CkptReader *state;
    int placed;
} Overlay;

// Rows [row0, row0+rows) and columns [col0, col0+cols) of a tensor that is N by K here, as f32 (malloc'ed).
static int read_slab(Overlay *o, const CkptTensor *found, int N, int K, TpSlab slab, float **out)
{
    CkptTensor t = *found;
    if (t.shape[0] != N || t.shape[1] != K)
        return fail(E_INPUT, t.name, "has the base model been replaced?",
                    "the checkpoint's shape is [%lld, %lld], the model's [%d, %d]", (long long)t.shape[0],
                    (long long)t.shape[1], N, K);
    if (t.t != DT_F32) return fail(E_INPUT, found->name, NULL, "not an f32 tensor");
    t.row0 = slab.row0;
    t.rows = slab.rows;
    t.col0 = slab.col0;
    t.cols = slab.cols;
    t.data = *out = xmalloc((size_t)t.rows * (size_t)t.cols * sizeof(float) + 1);
    return checkpoint_read(o->state, &t);
}

static int place_param(Overlay *o, Param *p, const CkptTensor *t)
{
    float *value = NULL;
    int status = read_slab(o, t, p->full_N, p->full_K, (TpSlab){p->row0, p->N, p->col0, p->K}, &value);
    if (status == OK) status = param_store(o->s->model, p, 0, p->N, value, DT_F32, p->K);
    free(value);
    return status;
}

static int place_adapter(Overlay *o, int i, const CkptTensor *t)
{
    const Trainable *to = &o->s->model->trained[i];
    float *value = NULL;
    int status = read_slab(o, t, to->full_N, to->full_K, (TpSlab){to->row0, to->N, to->col0, to->K}, &value);
    if (status == OK) status = adapter_store(o->s->model, i, value, to->K);
    free(value);
    return status;
}

static int place(void *ctx, const CkptTensor *t)
{
    Overlay *o = ctx;
    Model *m = o->s->model;
    const bool adapter = strncmp(t->name, "adapter/", 8) == 0;
    if (!adapter && strncmp(t->name, "model/", 6) != 0) return OK; // moments and the description
    const char *name = strchr(t->name, '/') + 1;
    o->placed++;
    for (int i = 0; adapter && i < m->n_trained; i++)
        if (streq(m->trained[i].name, name)) return place_adapter(o, i, t);
    for (int i = 0; !adapter && i < m->n_param; i++)
        if (streq(m->param[i].name, name)) return place_param(o, &m->param[i], t);
    return fail(E_INPUT, t->name, NULL, "the checkpoint holds a tensor that its base model does not have");
}

int from_checkpoint_load(Session *s)
{
    if (!s->from) return OK;
    Overlay o = {.s = s};
    TRY(checkpoint_open(&o.state, s->from->dir));
    int status = checkpoint_list(s->from->dir, place, &o);
    checkpoint_close(o.state);
    TRY(status);
    return o.placed ? OK : fail(E_INPUT, s->from->dir, NULL, "the checkpoint holds no weights");
}
