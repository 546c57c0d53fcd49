// export: what a run leaves for others. Private to runtime/.
#pragma once
#include "session.h"

// Both write what the checkpoint directory `state` of this run holds, in slices, so that no rank needs the whole model; one rank calls
// them. state NULL: the model in memory, which must be whole (model_whole).
uint64_t export_bytes(const Session *s); // of the weights that a run leaves; s->model may be measured
int export_adapter(Session *s, const char *state, const char *dir); // PEFT directory
// HF directory; merge (of a model in memory): adapters added in f32, rounded once
int export_model(Session *s, const char *state, const char *dir, DType t, bool merge);
