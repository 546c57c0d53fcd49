#include "session.h"
#include "from_checkpoint.h"
#include <stdlib.h>
#include <string.h>

enum { ARENA_SLACK = 1 << 20 };

static int open_device(Session *s, Comm *world, const char *device)
{
    const DeviceConfig c = {.name = device, .index = comm_local_rank(world)};
    TRY(comm_agree(world, device_open(&s->dev, &c))); // one without a device must not leave the others waiting
    return mesh_use_device(&s->mesh, s->dev);
}

// A model without a tokenizer can still be trained and scored on {"tokens"} rows.
static bool has_tokenizer(const char *model)
{
    return !path_is_dir(model) || path_exists(tmpf("%s/tokenizer.json", model));
}

int session_tokenizer(Session *s, const char *model)
{
    if (!path_exists(model))
        return fail(E_INPUT, model, "`model` is a Hugging Face directory or a .gguf file", "no such file or directory");
    return has_tokenizer(model) ? tokenizer_open(&s->tok, model) : OK;
}

static char **copy_list(const RecipeList *l)
{
    char **out = xcalloc((size_t)l->n + 1, sizeof *out);
    for (int i = 0; i < l->n; i++) out[i] = xstrdup(l->item[i]);
    return out;
}

// The adapter's shape: from the directory it starts from, else from the recipe.
static int adapter_shape(Session *s, const char *dir)
{
    const Recipe *r = &s->recipe;
    if (dir && *dir) {
        TRY(peft_config_read(&s->peft, dir));
        if (s->peft.modules_to_save && s->peft.modules_to_save[0])
            return fail(E_INPUT, tmpf("%s/adapter_config.json", dir), NULL, "modules_to_save is not supported");
        return OK;
    }
    s->peft = (PeftConfig){.rank = (int)r->lora.rank,
                           .alpha = r->lora.alpha,
                           .dropout = r->lora.dropout,
                           .use_rslora = streq(r->lora.variant, "rslora"),
                           .use_dora = streq(r->lora.variant, "dora"),
                           .base_model = xstrdup(r->model),
                           .targets = copy_list(&r->lora.targets)};
    return OK;
}

int session_open(Session *s, Comm *world, const Recipe *r)
{
    s->recipe = *r;
    TRY(mesh_open(&s->mesh, world, (int)r->parallel.tensor));
    TRY(open_device(s, world, r->device));
    s->precision = streq(r->precision, "f32") ? DT_F32 : DT_BF16;
    s->spec = (TrainSpec){.method = r->method,
                          .freeze_train = r->freeze.train.item,
                          .n_freeze_train = r->freeze.train.n,
                          .adapter_dir = *r->adapter ? r->adapter : NULL,
                          .seed = (uint64_t)r->seed,
                          .mesh = &s->mesh,
                          .zero = (int)r->parallel.zero,
                          .sequence = r->parallel.sequence,
                          .on_paper = s->on_paper && weights_on_paper(r->model)};
    if (checkpoint_is(r->model)) TRY(from_checkpoint_open(s, r->model, r->method));
    TRY(session_tokenizer(s, s->recipe.model));
    if (s->spec.lora) { // the adapter that the checkpoint continues
        s->peft.dropout = r->lora.dropout;
        return *r->adapter ? fail(E_INPUT, "adapter", "leave one of the two away",
                                  "the model is a checkpoint that has its own adapter")
                           : OK;
    }
    if (!streq(r->method, "lora")) {
        if (*r->adapter)
            return fail(E_INPUT, "adapter", "merge it first: attune convert MODEL DST --adapter DIR",
                        "method %s does not start from an adapter", r->method);
        return OK;
    }
    TRY(adapter_shape(s, r->adapter));
    if (*r->adapter) s->peft.dropout = r->lora.dropout;
    s->spec.lora = &s->peft;
    return OK;
}

int session_open_model(Session *s, Comm *world, const ModelArgs *a)
{
    TRY(mesh_open(&s->mesh, world, 1));
    TRY(open_device(s, world, a->device && *a->device ? a->device : "auto"));
    const char *p = a->precision && *a->precision ? a->precision : s->dev->fast_bf16 ? "bf16" : "f32";
    if (!streq(p, "bf16") && !streq(p, "f32")) return fail(E_INPUT, "--precision", "bf16 or f32", "\"%s\"", p);
    s->precision = streq(p, "f32") ? DT_F32 : DT_BF16;
    s->recipe.model = a->model;
    s->recipe.data.template = "auto";
    s->spec = (TrainSpec){.method = a->adapter ? "lora" : "none", .adapter_dir = a->adapter, .mesh = &s->mesh};
    if (checkpoint_is(a->model)) TRY(from_checkpoint_open(s, a->model, "none"));
    TRY(session_tokenizer(s, s->recipe.model));
    if (!a->adapter) return OK;
    if (s->spec.lora)
        return fail(E_INPUT, "--adapter", "leave it away", "the model is a checkpoint that has its own adapter");
    TRY(adapter_shape(s, a->adapter));
    s->spec.lora = &s->peft;
    return OK;
}

void session_close(Session *s)
{
    model_close(s->model);
    from_checkpoint_close(s);
    arena_free(s->step);
    arena_free(s->run);
    peft_config_free(&s->peft);
    tokenizer_free(s->tok);
    mesh_close(&s->mesh); // its groups may carry the device's memory
    device_close(s->dev);
}

int session_dataset(Session *s, Dataset **out, const char *path, const char *key, RowUse use)
{
    const Recipe *r = &s->recipe;
    if (!path || !*path) return fail(E_INPUT, *r->file ? r->file : "recipe", NULL, "%s is not set", key);
    Weights *w = NULL;
    ModelConfig c;
    if (!s->spec.on_paper) TRY(weights_open(&w, r->model));
    int status = model_config_read(&c, r->model, w);
    weights_close(w);
    TRY(status);
    const bool all = r->objective && streq(r->objective, "pretrain");
    DataConfig d = {.path = path,
                    .format = r->data.format ? r->data.format : "auto",
                    .loss_on = all || !r->data.loss_on ? (all ? "all" : "completion") : r->data.loss_on,
                    .overlong = r->data.overlong ? r->data.overlong : "drop",
                    .max_tokens = r->data.max_tokens ? (int)r->data.max_tokens : 1 << 20,
                    .template_path = r->data.template,
                    .model_path = r->model,
                    .vocab = c.V,
                    .allow_prompt_only = use == ROWS_PROMPTS,
                    .scoring = use == ROWS_SCORED};
    return dataset_open(out, &d, s->tok);
}

int session_measure(Session *s, int positions, bool optimizer, size_t *run_bytes, Model **measured, Arena **counter)
{
    TrainSpec spec = s->spec;
    spec.optimizer = optimizer;
    TRY(arena_open(counter, "run", 0, true));
    TRY(model_open(measured, s->dev, s->precision, *counter, s->recipe.model, positions, &spec));
    *run_bytes = arena_peak(*counter);
    return OK;
}

int session_model(Session *s, int positions, bool optimizer, size_t extra)
{
    Model *measured = NULL;
    Arena *counter = NULL;
    size_t bytes;
    int status = session_measure(s, positions, optimizer, &bytes, &measured, &counter);
    model_close(measured);
    arena_free(counter);
    TRY(status);
    TRY(device_arena(&s->run, s->dev, "run", bytes + extra + ARENA_SLACK));
    TrainSpec spec = s->spec;
    spec.optimizer = optimizer;
    TRY(model_open(&s->model, s->dev, s->precision, s->run, s->recipe.model, positions, &spec));
    TRY(from_checkpoint_load(s));
    return s->tok ? model_tokens_check(s->model, tokenizer_vocab_size(s->tok), s->recipe.model) : OK;
}

int session_inference(Session *s, Activations **out, int T, int S, int M, int positions)
{
    TRY(session_model(s, positions, false, 0));
    TRY(device_arena(&s->step, s->dev, "step", activations_bytes(s->model, T, M, false, false) + ARENA_SLACK));
    return activations_open(out, s->model, s->step, T, S, M, false, false);
}

const char *session_machine(const Session *s)
{
    Topo topo = {0};
    const int ranks = comm_size(s->mesh.world);
    if (topo_read(&topo) < 0) error_clear();
    return tmpf("%s, %s, %d rank%s", *topo.cpu_model ? topo.cpu_model : "unknown processor", s->dev->about, ranks,
                ranks > 1 ? "s" : "");
}
