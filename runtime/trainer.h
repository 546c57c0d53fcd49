// trainer: the state of one training run, shared by train.c (the loop), step.c, state.c (checkpoints), evaluate.c and plan.c. Private to runtime/.
#pragma once
#include "evaluate.h"
#include "export.h"
#include "io/checkpoint.h"
#include "io/rundir.h"
#include "objective/objective.h"
#include "optim/optimizer.h"
#include "session.h"
#include <jansson.h>

typedef struct Saver Saver;

typedef struct Trainer {
    Session s;
    Dataset *train, *valid;
    LoaderConfig loader_config;
    Loader *loader;
    Activations *act;
    GradSet *grads;
    const Objective *objective;
    Schedule schedule;
    AdamW adamw;
    RunDir *dir;
    json_t *provenance;        // for the checkpoints' descriptions
    Saver *saver;              // the asynchronous checkpoint writer; NULL until the first one
    int failed_saves;          // in a row, until now
    double save_ms;            // the steps have stood still for checkpoints, since a line of metrics told
    int64_t step, total_steps; // optimizer steps done; to do
    double run_ms;             // since the process began to train
    float *logp, *weight;      // (largest M) host
} Trainer;

// ---- step.c ----
typedef struct StepResult {
    double loss, grad_norm, lr, step_ms;
    int64_t tokens, trained_tokens;
    Traffic traffic; // of this rank
} StepResult;
int train_step(Trainer *t, StepResult *r);
Traffic step_traffic(const Trainer *t); // of all groups, so far

// ---- trainer.c ----
int trainer_open_data(Trainer *t, Comm *world, const Recipe *r); // recipe, device, data, schedule
int trainer_open_memory(Trainer *t);                             // model, gradients, activations
LoaderBounds trainer_bounds(const Trainer *t);                   // of training and validation together
// The same as trainer_open_memory, over measuring arenas: for micro-batches within b, on the device and as the rank that t has now.
int trainer_measure(Trainer *t, const LoaderBounds *b);
void trainer_close_memory(Trainer *t);

// ---- footprint.c: what this rank of a run holds, of a trainer that is measured and has made a step ----
typedef struct Footprint { // bytes
    size_t program, weights, masters, moments, exchange, gradients, activations, scratch, batches, evaluation, snapshot,
        comm;
    size_t total;
} Footprint;
// program: what is resident without any of this
int footprint_read(const Trainer *t, const LoaderBounds *b, size_t program, Footprint *out);

// ---- evaluate.c ----
// {"name": value, ...} members for metrics.jsonl
int trainer_evaluate(Trainer *t, Buf *members);

// ---- state.c: a run's state as a checkpoint, and back ----
int state_save(Trainer *t); // returns when it is published
int state_save_due(
    Trainer *t);            // as the recipe says, beside the next steps; fails only when several have failed in a row
int state_wait(Trainer *t); // for the save under way
void saver_close(Trainer *t);
size_t state_snapshot_bytes(const Model *m);        // of this rank
size_t state_exchange_bytes(const Model *m);        // what saving takes on this rank for columns
int state_bytes(const Trainer *t, uint64_t *bytes); // of a checkpoint's files; the model may be measured
int state_resume(Trainer *t, bool *found);
