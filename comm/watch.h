// watch: what the ranks tell of themselves once per second, and who of them is to blame when a run stands still. No MPI here:
// comm_mpi_watch.c carries the beats.
#pragma once
#include "comm.h"

enum { WATCH_GROUPS = 16, WATCH_CULPRITS = 4 };

// What a rank does in one group (communicator).
typedef struct WatchGroup {
    uint64_t group;     // the same number on all its ranks
    uint64_t entered;   // collectives that this rank has begun there
    int32_t waiting_ms; // how long it has been inside the last of them; -1: it is not
    int32_t main;       // the main thread began it
    char what[16];      // its name
} WatchGroup;

typedef struct Beat {
    int32_t n;
    int32_t in_queue;   // the main thread waits for a queue's jobs
    int32_t outside_ms; // how long no thread has been in a collective
    WatchGroup group[WATCH_GROUPS];
} Beat;

// What a watcher knows of a rank.
typedef struct WatchRank {
    bool watched;
    double heard_ms; // when its last beat came
    Beat beat;
} WatchRank;

typedef struct WatchLimits {
    double silent_ms;  // a rank that sends no beat is lost
    double waiting_ms; // ranks have been in a collective that others have not come to
    double fresh_ms;   // a beat older than this says nothing about what its rank does now
} WatchLimits;

typedef struct Verdict {
    int rank[WATCH_CULPRITS], n, more; // the culprits, and how many more there are
    char what[512];                    // what they did, and who waits for them
    const char *hint;
} Verdict;

// Whether the run stands still for longer than it may; *out then says why.
bool watch_judge(const WatchRank *ranks, int size, double at_ms, const WatchLimits *limits, Verdict *out);

// ---- activity.c ----
// What this rank does now. Time before `since_ms` does not count: the process was not running then.
void comm_tell(Beat *out, double since_ms);
extern _Atomic int comm_in_queue; // counts the main thread in comm_queue_wait
