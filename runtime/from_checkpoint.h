// from_checkpoint: a checkpoint of a run as a model. Its base model is opened as ever; what the run trained is put over it. Private to
// runtime/.
#pragma once
#include "session.h"

bool checkpoint_is(const char *path); // a step directory, or a run's directory with checkpoints in it
// Reads what the checkpoint says of itself into s: the base model becomes s->recipe.model; a checkpoint of adapters gives the session
// its adapter (E_INPUT for a method other than lora, which cannot start from one). Digests are verified.
int from_checkpoint_open(Session *s, const char *path, const char *method);
int from_checkpoint_load(Session *s);              // after the model has been opened
const char *from_checkpoint_dir(const Session *s); // the step directory; NULL when the model is no checkpoint
void from_checkpoint_close(Session *s);
