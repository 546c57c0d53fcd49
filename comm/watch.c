#include "watch.h"
#include <string.h>

// ---- who waits where ------------------------------------------------------------------------------------------------
static const WatchGroup *find_group(const Beat *b, uint64_t group)
{
    for (int i = 0; i < b->n; i++)
        if (b->group[i].group == group) return &b->group[i];
    return NULL;
}

// The collective that a rank stands in: the main thread's, or that of the queue for which the main thread waits. A rank whose
// main thread is elsewhere works, whatever goes on beside it.
static const WatchGroup *stands_in(const Beat *b)
{
    const WatchGroup *beside = NULL;
    for (int i = 0; i < b->n; i++) {
        const WatchGroup *g = &b->group[i];
        if (g->waiting_ms < 0) continue;
        if (g->main) return g;
        if (!beside || g->waiting_ms > beside->waiting_ms) beside = g;
    }
    return b->in_queue ? beside : NULL;
}

static bool is_missing(const WatchRank *r, const WatchGroup *g)
{
    const WatchGroup *his = r->watched ? find_group(&r->beat, g->group) : NULL;
    return his && his->entered < g->entered;
}

static void blame(Verdict *v, int rank)
{
    if (v->n < WATCH_CULPRITS)
        v->rank[v->n++] = rank;
    else
        v->more++;
}

static bool is_blamed(const Verdict *v, int rank)
{
    for (int i = 0; i < v->n; i++)
        if (v->rank[i] == rank) return true;
    return false;
}

// "; ranks 0, 1 have waited up to 61 s for it in all_reduce"
static void say_who_waits(Verdict *v, const WatchRank *ranks, int size)
{
    const char *what = NULL;
    Buf list = {0};
    int n = 0, longest = 0;
    for (int r = 0; r < size; r++) {
        const WatchGroup *g = ranks[r].watched && !is_blamed(v, r) ? stands_in(&ranks[r].beat) : NULL;
        if (!g) continue;
        if (n < 8) buf_printf(&list, "%s%d", n ? ", " : "", r);
        if (g->waiting_ms >= longest) what = g->what;
        longest = MAX(longest, g->waiting_ms);
        n++;
    }
    if (n > 8) buf_printf(&list, " and %d more", n - 8);
    const size_t used = strlen(v->what);
    if (n)
        snprintf(v->what + used, sizeof v->what - used, "; rank%s %s wait%s in %s for %d s", n > 1 ? "s" : "",
                 list.data, n > 1 ? "" : "s", what, longest / 1000);
    buf_free(&list);
}

// ---- judgements -----------------------------------------------------------------------------------------------------
static bool judge_silence(const WatchRank *ranks, int size, double at_ms, const WatchLimits *limits, Verdict *out)
{
    double longest = 0;
    for (int r = 0; r < size; r++) {
        const double silent_ms = at_ms - ranks[r].heard_ms;
        if (!ranks[r].watched || silent_ms < limits->silent_ms) continue;
        blame(out, r);
        longest = MAX(longest, silent_ms);
    }
    if (!out->n) return false;
    snprintf(out->what, sizeof out->what, "no sign of life for %.0f s", longest * 1e-3);
    say_who_waits(out, ranks, size);
    out->hint = "the process is stopped, or its machine or network is down";
    return true;
}

// The rank that has waited longest, if that is too long.
static int longest_waiter(const WatchRank *ranks, int size, const WatchLimits *limits, const WatchGroup **g)
{
    int waiter = -1;
    double longest = limits->waiting_ms;
    for (int r = 0; r < size; r++)
        for (int i = 0; ranks[r].watched && i < ranks[r].beat.n; i++) {
            const WatchGroup *his = &ranks[r].beat.group[i];
            if (his->waiting_ms < longest) continue;
            longest = his->waiting_ms;
            waiter = r;
            *g = his;
        }
    return waiter;
}

// Who is missing from a collective may itself wait in another one: the blame goes on to those who are missing there, up to
// ranks that wait for nobody. A chain that is longer than there are ranks is a ring, of which the one that has waited longest is named.
static bool judge_waiting(const WatchRank *ranks, int size, double at_ms, const WatchLimits *limits, Verdict *out)
{
    const WatchGroup *longest = NULL;
    const int waiter = longest_waiter(ranks, size, limits, &longest);
    if (waiter < 0) return false;
    for (int r = 0; r < size; r++)
        if (ranks[r].watched && at_ms - ranks[r].heard_ms > limits->fresh_ms) return false; // its next beat may tell
    const WatchGroup *g = longest;
    for (int links = 0; links <= size; links++) {
        const WatchGroup *next = NULL;
        for (int r = 0; r < size; r++) {
            if (!is_missing(&ranks[r], g)) continue;
            const WatchGroup *his = stands_in(&ranks[r].beat);
            if (!his)
                blame(out, r);
            else if (!next)
                next = his;
        }
        if (out->n) {
            snprintf(out->what, sizeof out->what, "in no collective for %d s",
                     ranks[out->rank[0]].beat.outside_ms / 1000);
            say_who_waits(out, ranks, size);
            out->hint = "a debugger on its pid tells what it does; its disk may be slow, or its machine out of memory";
            return true;
        }
        if (!next) break;
        g = next;
    }
    blame(out, waiter);
    snprintf(out->what, sizeof out->what,
             "waits in %s for %d s, and so do the others, for each other or for their network", longest->what,
             longest->waiting_ms / 1000);
    out->hint = "ranks that differ in their input or recipe may do different things";
    return true;
}

bool watch_judge(const WatchRank *ranks, int size, double at_ms, const WatchLimits *limits, Verdict *out)
{
    *out = (Verdict){0};
    return judge_silence(ranks, size, at_ms, limits, out) || judge_waiting(ranks, size, at_ms, limits, out);
}
