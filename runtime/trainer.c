// trainer.c opens what a run needs, in the order in which mistakes are cheapest to find: recipe, tokenizer, data, then memory.
#include "trainer.h"
#include <stdlib.h>
#include <string.h>

static int64_t steps_wanted(const Recipe *r, const Dataset *d)
{
    if (r->train.steps > 0) return r->train.steps;
    double steps = (double)dataset_rows(d) * r->train.epochs / (double)r->train.batch;
    return MAX((int64_t)(steps + 0.999999), 1);
}

int trainer_open_data(Trainer *t, Comm *world, const Recipe *r)
{
    TRY(session_open(&t->s, world, r));
    TRY(session_dataset(&t->s, &t->train, r->data.train, "data.train", ROWS_TRAINED));
    if (*r->data.valid) TRY(session_dataset(&t->s, &t->valid, r->data.valid, "data.valid", ROWS_TRAINED));
    t->objective = objective_find(r->objective);
    if (!t->objective) return fail(E_INPUT, r->file, NULL, "objective \"%s\"", r->objective);
    t->total_steps = steps_wanted(r, t->train);
    t->schedule = schedule_make(r->train.schedule, r->train.lr, r->train.min_lr, r->train.warmup, t->total_steps);
    t->adamw = (AdamW){r->train.beta1, r->train.beta2, r->train.eps, r->train.weight_decay, r->train.clip};
    t->loader_config = (LoaderConfig){.data = t->train,
                                      .seed = (uint64_t)r->seed,
                                      .shuffle = r->data.shuffle,
                                      .pack = r->data.pack,
                                      .batch = (int)r->train.batch,
                                      .micro_tokens = (int)r->train.micro_tokens,
                                      .data_rank = t->s.mesh.data_rank,
                                      .data_size = t->s.mesh.data_size,
                                      .steps = t->total_steps};
    return OK;
}

LoaderBounds trainer_bounds(const Trainer *t)
{
    LoaderBounds b = loader_bounds(&t->loader_config);
    if (!t->valid) return b;
    LoaderBounds v = evaluate_bounds(t->valid, (int)t->s.recipe.train.micro_tokens, t->s.recipe.eval.rows, &t->s.mesh);
    return (LoaderBounds){MAX(b.T, v.T), MAX(b.S, v.S), MAX(b.M, v.M), MAX(b.micros, v.micros), b.memory + v.memory};
}

static int open_gradients(Trainer *t)
{
    Model *m = t->s.model;
    const bool shared_heads = m->mesh && m->mesh->tensor_size > m->cfg.KV;
    const GradConfig c = {.device = m->dev,
                          .mesh = m->mesh,
                          .t = m->shard,
                          .n = m->n_trained,
                          .units = m->n_units,
                          .zero = m->zero,
                          .order_free = t->s.recipe.deterministic,
                          .kv_first = m->cut.kv_first,
                          .kv_ranks = shared_heads ? m->cut.kv_ranks : 0};
    return grad_open(&t->grads, t->s.run, &c);
}

static int open_passes(Trainer *t, const LoaderBounds *b)
{
    Session *s = &t->s;
    TRY(activations_open(&t->act, s->model, s->step, b->T, b->S, b->M, true, s->recipe.train.recompute));
    t->logp = xcalloc((size_t)b->M, sizeof *t->logp);
    t->weight = xcalloc((size_t)b->M, sizeof *t->weight);
    return OK;
}

static int positions_of(const Trainer *t, const LoaderBounds *b)
{
    return t->valid ? evaluate_positions(&t->s.recipe, b->T) : b->T;
}

int trainer_measure(Trainer *t, const LoaderBounds *b)
{
    Session *s = &t->s;
    size_t bytes;
    TRY(session_measure(s, positions_of(t, b), true, &bytes, &s->model, &s->run));
    TRY(open_gradients(t));
    TRY(arena_open(&s->step, "step", 0, true));
    return open_passes(t, b);
}

int trainer_open_memory(Trainer *t)
{
    Session *s = &t->s;
    const LoaderBounds b = trainer_bounds(t);
    int status = trainer_measure(t, &b);
    const size_t gradients = status == OK ? grad_bytes(t->grads) : 0, step = status == OK ? arena_peak(s->step) : 0;
    trainer_close_memory(t);
    TRY(status);
    TRY(session_model(s, positions_of(t, &b), true, gradients));
    TRY(open_gradients(t));
    TRY(device_arena(&s->step, s->dev, "step", step));
    return open_passes(t, &b);
}

void trainer_close_memory(Trainer *t)
{
    Session *s = &t->s;
    activations_close(t->act);
    grad_close(t->grads);
    model_close(s->model);
    arena_free(s->step);
    arena_free(s->run);
    free(t->logp);
    free(t->weight);
    t->act = NULL;
    t->grads = NULL;
    s->model = NULL;
    s->step = s->run = NULL;
    t->logp = t->weight = NULL;
}
