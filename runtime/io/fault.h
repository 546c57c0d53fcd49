// fault: faults on demand, so that tests can have them at an exact place of a run. Off unless the environment asks:
//
//   ATTUNE_FAULT=KIND@step=N,rank=R[,at=PLACE]
//     kill  the process dies of SIGKILL         hang  it stops answering         nan  the caller spoils its numbers
//   PLACE: where the caller stands. train.c: step (the default), evaluate; checkpoint_save.c: create, write, digest, publish,
//   published. N is the step that is being computed or saved, R the rank in the world.
#pragma once
#include "kernels.h"

// Kills or hangs this process when that was asked for here; true when the caller should produce a NaN.
bool fault_here(const char *place, int64_t step, int rank);
