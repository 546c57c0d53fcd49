// export.c: what a run leaves for others. A PEFT directory that Hugging Face PEFT loads, or a Hugging Face model directory that
// transformers loads: config.json, weights in safetensors, and the tokenizer's files.
#include "export.h"
#include "io/checkpoint.h"
#include "io/peft.h"
#include "text/tokenizer.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

// ---- where values come from -----------------------------------------------------------------------------------------
// A tensor to be written. With a checkpoint: what was trained is read from it and the rest from the base model's files, whatever ranks
// hold the tensors. Without: from the model in memory, which is whole on this rank.
typedef struct Source {
    Model *m;
    CkptReader *state;
    Weights *base;
    const Param *p;     // a parameter of the model
    const Trainable *t; // or a tensor of an adapter
    bool merge;
    DType dtype;
    char in_state[160]; // its name in the checkpoint
} Source;

static int read_state(const Source *r, int64_t row0, int64_t rows, void *dst)
{
    CkptTensor slab;
    const int found = checkpoint_find_tensor(r->state, r->in_state, &slab);
    if (found <= 0) return found;
    const size_t n = (size_t)rows * (size_t)slab.shape[1];
    float *f = r->dtype == DT_F32 ? dst : xmalloc(n * sizeof *f);
    slab.row0 = row0;
    slab.rows = rows;
    slab.col0 = 0;
    slab.cols = slab.shape[1];
    slab.data = f;
    int status = checkpoint_read(r->state, &slab);
    if (status == OK && r->dtype == DT_BF16)
        for (size_t i = 0; i < n; i++) ((bf16_t *)dst)[i] = f32_to_bf16(f[i]);
    if (f != dst) free(f);
    return status < 0 ? status : 1;
}

static int read_source(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const Source *r = ctx;
    Model *m = r->m;
    if (r->state) {
        const int found = read_state(r, row0, rows, dst);
        if (found) return found < 0 ? found : OK;
        return weights_read(r->base, weights_find(r->base, r->p->name), row0, rows, r->dtype, dst);
    }
    if (r->p) return param_read(m, r->p, r->merge, row0, rows, r->dtype, dst);
    const size_t K = (size_t)r->t->K;
    return m->dev->download(m->dev, dst, r->t->master + (size_t)row0 * K, (size_t)rows * K * sizeof(float));
}

// Tensors as they are written; names of adapters' are malloc'ed (outputs_free).
static TensorOut *outputs_of(Source *source, int n)
{
    TensorOut *out = xcalloc((size_t)n + 1, sizeof *out);
    for (int i = 0; i < n; i++) {
        Source *s = &source[i];
        ASSERT(s->p || s->t);
        const int N = s->p ? s->p->full_N : s->t->full_N, K = s->p ? s->p->full_K : s->t->full_K;
        const bool vector = s->p ? K == 1 : !s->t->packed;
        out[i] = (TensorOut){.name = s->p ? s->p->name : xasprintf("base_model.model.%s", s->t->name),
                             .t = s->dtype,
                             .ndim = vector ? 1 : 2,
                             .shape = {N, K},
                             .read = read_source,
                             .ctx = s};
    }
    return out;
}

static void outputs_free(TensorOut *out, const Source *source, int n)
{
    for (int i = 0; i < n; i++)
        if (!source[i].p) free((char *)out[i].name);
    free(out);
}

static int write_sources(Source *source, int n, const char *state, const char *dir, const char *name)
{
    char *file = xasprintf("%s/%s", dir, name);
    TensorOut *out = outputs_of(source, n);
    CkptReader *reader = NULL;
    Weights *base = NULL;
    int status = OK;
    if (state) TRY_DONE(checkpoint_open(&reader, state));
    if (state) TRY_DONE(weights_open(&base, source->m->base));
    for (int i = 0; i < n; i++) {
        Source *s = &source[i];
        s->state = reader;
        s->base = base;
        snprintf(s->in_state, sizeof s->in_state, "%s/%s", s->p ? "model" : "adapter", s->p ? s->p->name : s->t->name);
    }
    status = safetensors_write(file, out, n);
done:
    outputs_free(out, source, n);
    free(file);
    weights_close(base);
    checkpoint_close(reader);
    return status;
}

static Source *sources_of_adapter(Model *m)
{
    Source *source = xcalloc((size_t)m->n_trained + 1, sizeof *source);
    for (int i = 0; i < m->n_trained; i++) source[i] = (Source){.m = m, .t = &m->trained[i], .dtype = DT_F32};
    return source;
}

static Source *sources_of_model(Model *m, DType t, bool merge)
{
    Source *source = xcalloc((size_t)m->n_param + 1, sizeof *source);
    for (int i = 0; i < m->n_param; i++) source[i] = (Source){.m = m, .p = &m->param[i], .merge = merge, .dtype = t};
    return source;
}

uint64_t export_bytes(const Session *s)
{
    Model *m = s->model;
    const bool lora = streq(s->recipe.method, "lora");
    const int n = lora ? m->n_trained : m->n_param;
    Source *source = lora ? sources_of_adapter(m) : sources_of_model(m, s->precision, false);
    TensorOut *out = outputs_of(source, n);
    const uint64_t bytes = safetensors_bytes(out, n);
    outputs_free(out, source, n);
    free(source);
    return bytes;
}

// ---- adapter --------------------------------------------------------------------------------------------------------
int export_adapter(Session *s, const char *state, const char *dir)
{
    Model *m = s->model;
    Source *source = sources_of_adapter(m);
    int status = make_dirs(dir);
    if (status == OK) status = write_sources(source, m->n_trained, state, dir, "adapter_model.safetensors");
    if (status == OK) status = peft_config_write(&s->peft, dir);
    free(source);
    return status;
}

// ---- model ----------------------------------------------------------------------------------------------------------
static int write_weights(Model *m, const char *state, const char *dir, DType t, bool merge)
{
    Source *source = sources_of_model(m, t, merge);
    int status = write_sources(source, m->n_param, state, dir, "model.safetensors");
    free(source);
    return status;
}

static int write_config(const Session *s, const char *dir, DType t)
{
    Weights *w;
    TRY(weights_open(&w, s->model->base));
    json_t *config = model_config_json(s->model->base, w);
    weights_close(w);
    if (!config) return E_INPUT;
    json_object_del(config, "dtype");
    json_object_set_new(config, "torch_dtype", json_string(t == DT_F32 ? "float32" : "bfloat16"));
    char *text = json_dumps(config, JSON_INDENT(2));
    int status = file_write_atomic(tmpf("%s/config.json", dir), text, strlen(text));
    free(text);
    json_decref(config);
    return status;
}

// Files that belong to the tokenizer and to generation go along unchanged.
static int copy_companions(const char *from, const char *to)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "generation_config.json",
                                        "chat_template.jinja",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *data;
        size_t bytes;
        const char *file = tmpf("%s/%s", from, names[i]);
        if (!path_exists(file)) continue;
        TRY(file_read(file, (size_t)1 << 30, &data, &bytes));
        int status = file_write_atomic(tmpf("%s/%s", to, names[i]), data, bytes);
        free(data);
        TRY(status);
    }
    return OK;
}

int export_model(Session *s, const char *state, const char *dir, DType t, bool merge)
{
    TRY(make_dirs(dir));
    TRY(write_weights(s->model, state, dir, t, merge));
    if (path_is_dir(s->model->base))
        TRY(copy_companions(s->model->base, dir));
    else
        TRY(tokenizer_export_gguf(s->model->base, dir));
    return write_config(s, dir, t); // last: a directory with a config.json is complete
}
