// progress: how far a run is, on stderr. On a terminal one line that is redrawn in place; elsewhere plain
// lines, at the first and last step and about every 10 seconds or 5 % between. Only rank 0 opens one. Not
// thread-safe.
//
//   train  42% ━━━━━━━━━━━╸               42/100  loss 1.873 (now 1.791)  612 tok/s  lr 1.8e-04  0:41 left
#pragma once
#include "kernels.h"

typedef struct Progress Progress;
// verb: "train", "eval", "generate": what the line begins with. total_steps 0: not known.
Progress *progress_open(const char *verb, int64_t total_steps);
// A resumed run starts at step `done`: the time left is estimated from the steps made since.
void progress_start_at(Progress *p, int64_t done);
// After step number `step` (1-based). loss: smoothed for display; NaN: not shown. tokens_per_s <= 0: not
// shown. extra: more to show ("lr 1.8e-04"), or NULL. All with p == NULL do nothing.
void progress_step(Progress *p, int64_t step, double loss, double tokens_per_s, const char *extra);
// A line of its own that stays ("checkpoint written"), above the redrawn one.
void progress_note(Progress *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
void progress_close(Progress *p); // leaves the last state on the terminal; NULL is fine
