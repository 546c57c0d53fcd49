// export.c: what a run leaves for others. A PEFT directory that Hugging Face PEFT loads, or a Hugging Face model directory that
// transformers loads: config.json, weights in safetensors, and the tokenizer's files.
#include "export.h"
#include "io/peft.h"
#include "text/tokenizer.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

// ---- adapter --------------------------------------------------------------------------------------------------------
typedef struct MasterReader {
    const Model *m;
    const Trainable *t;
} MasterReader;

static int read_master(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const MasterReader *r = ctx;
    const size_t K = (size_t)r->t->K;
    return r->m->dev->download(r->m->dev, dst, r->t->master + (size_t)row0 * K, (size_t)rows * K * sizeof(float));
}

int export_adapter(Session *s, const char *dir)
{
    const Model *m = s->model;
    const size_t n = (size_t)m->n_trained;
    TensorOut *out = xcalloc(n + 1, sizeof *out);
    MasterReader *readers = xcalloc(n + 1, sizeof *readers);
    int status = make_dirs(dir);
    for (size_t i = 0; i < n; i++) {
        const Trainable *t = &m->trained[i];
        readers[i] = (MasterReader){m, t};
        out[i] = (TensorOut){.name = xasprintf("base_model.model.%s", t->name),
                             .t = DT_F32,
                             .ndim = 2,
                             .shape = {t->N, t->K},
                             .read = read_master,
                             .ctx = &readers[i]};
    }
    if (status == OK) status = safetensors_write(tmpf("%s/adapter_model.safetensors", dir), out, (int)n);
    if (status == OK) status = peft_config_write(&s->peft, dir);
    for (size_t i = 0; i < n; i++) free((char *)out[i].name);
    free(out);
    free(readers);
    return status;
}

// ---- model ----------------------------------------------------------------------------------------------------------
typedef struct ParamReader {
    Model *m;
    const Param *p;
    bool merge;
    DType t;
} ParamReader;

static int read_param(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const ParamReader *r = ctx;
    return param_read(r->m, r->p, r->merge, row0, rows, r->t, dst);
}

static int write_weights(Model *m, const char *dir, DType t, bool merge)
{
    TensorOut *out = xcalloc((size_t)m->n_param, sizeof *out);
    ParamReader *readers = xcalloc((size_t)m->n_param, sizeof *readers);
    for (int i = 0; i < m->n_param; i++) {
        const Param *p = &m->param[i];
        readers[i] = (ParamReader){m, p, merge, t};
        out[i] = (TensorOut){.name = p->name,
                             .t = t,
                             .ndim = p->K > 1 ? 2 : 1,
                             .shape = {p->N, p->K},
                             .read = read_param,
                             .ctx = &readers[i]};
    }
    int status = safetensors_write(tmpf("%s/model.safetensors", dir), out, m->n_param);
    free(out);
    free(readers);
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

int export_model(Session *s, const char *dir, DType t, bool merge)
{
    TRY(make_dirs(dir));
    TRY(write_weights(s->model, dir, t, merge));
    if (path_is_dir(s->model->base))
        TRY(copy_companions(s->model->base, dir));
    else
        TRY(tokenizer_export_gguf(s->model->base, dir));
    return write_config(s, dir, t); // last: a directory with a config.json is complete
}
