// rundir: the files of a run besides checkpoints: OUTPUT/.lock, recipe.yaml, metrics.jsonl, status.json.
// Only rank 0 touches the disk; calls on other ranks are no-ops that return OK.
#pragma once
#include "comm.h"

typedef struct RunDir RunDir;
// Creates the directory, takes its lock (flock), waiting up to 3 s for ranks of a run that is just ending, and removes what a killed
// run was about to write.
// E_INPUT when another run holds the lock, or when it holds another run's files and neither resume nor force is given.
int rundir_open(RunDir **out, Comm *c, const char *output, bool resume, bool force);
void rundir_close(RunDir *r);
const char *rundir_path(const RunDir *r);
int rundir_write(RunDir *r, const char *name, const void *data, size_t bytes); // atomic
// One line of metrics.jsonl from "key": value pairs already formatted as JSON members (no braces); flushed.
int rundir_metric(RunDir *r, const char *json_members);
// On resume: lines of metrics.jsonl with "step" > step are dropped, and those of evaluations ("eval/...") with "step" > evaluated, so
// that the file reads like the uninterrupted run's.
int rundir_rewind(RunDir *r, int64_t step, int64_t evaluated);
// status.json, replaced atomically: state is running, completed, preempted or failed
int rundir_status(RunDir *r, const char *state, int code, int rank, int64_t step, const char *reason);
// Collective when the error is agreed on (ErrorRecord.agreed): "preempted" or "failed", with the rank and the words of whoever
// found the fault.
int rundir_failed(RunDir *r, Comm *c, int status, int64_t step);
// From any rank and thread, just before the job is ended because of `rank` (comm_on_abort): "failed", for this reason.
int rundir_lost(const RunDir *r, int rank, int64_t step, const char *reason);

// Removes a file, or a directory with all that is in it; symbolic links are removed, not followed. OK when nothing is there.
int remove_tree(const char *path);
