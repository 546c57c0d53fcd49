// report: OUTPUT/report.html, one page that loads nothing from elsewhere: curves, evaluation, samples,
// recipe, machine.
#pragma once
#include "kernels.h"

// Builds the page from what the run directory holds: metrics.jsonl, status.json, eval-base.json and eval.json
// (metrics and samples), recipe.yaml. What is missing is left out; lines that are not JSON (a torn last one) are
// skipped. machine: a description for people, may be "". Written atomically, so that it can be written again when
// there is more to tell. state: what the run is about to become, "completed" and the like; NULL: what status.json says.
// Rank 0 only.
int report_write(const char *output_dir, const char *state, const char *machine);
