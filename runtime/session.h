// session: what a verb needs open before it can work: recipe, ranks, device, tokenizer, data, model, memory. Opened once, in this
// order, by session_open_*; closed as a whole. Private to runtime/.
#pragma once
#include "config/recipe.h"
#include "data/data.h"
#include "model/model.h"
#include "runtime.h"

typedef struct FromCheckpoint FromCheckpoint;

typedef struct Session {
    Recipe recipe;
    Mesh mesh;
    Device *dev;
    DType precision;
    Tokenizer *tok;  // NULL: the model has none
    PeftConfig peft; // method lora: the adapter's shape
    TrainSpec spec;
    Arena *run, *step;
    Model *model;
    FromCheckpoint *from; // the model is a run's checkpoint; else NULL
    bool on_paper;        // set before session_open: a configuration without weights will do, nothing is to be read
} Session;

// From a recipe: everything but the model (whose memory depends on the data, see session_model).
int session_open(Session *s, Comm *world, const Recipe *r);
// From a command line's model and adapter (score, generate).
int session_open_model(Session *s, Comm *world, const ModelArgs *a);
void session_close(Session *s);

int session_tokenizer(Session *s, const char *model); // the tokenizer alone; s->tok stays NULL when the model has none

// What the rows of a file are wanted for: training and evaluation, scoring (plain text as it is), or prompts to be answered.
typedef enum RowUse { ROWS_TRAINED, ROWS_SCORED, ROWS_PROMPTS } RowUse;
int session_dataset(Session *s, Dataset **out, const char *path, const char *key, RowUse use);

// Opens a measuring model: its run arena's peak is what session_model will use.
int session_measure(Session *s, int positions, bool optimizer, size_t *run_bytes, Model **measured, Arena **counter);
// Allocates `extra` bytes more in the run arena than the model needs (gradients, caches), then opens the model.
int session_model(Session *s, int positions, bool optimizer, size_t extra);
// Model and activations for forward passes only, micro-batches of at most T tokens, S sequences and M head rows.
int session_inference(Session *s, Activations **out, int T, int S, int M, int positions);

// "AMD EPYC, avx512-bf16, 2 ranks": where a run's figures come from. Valid until the next few tmpf.
const char *session_machine(const Session *s);
