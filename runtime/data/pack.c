// pack: the rows of one step laid out in micro-batches, and micro-batches dealt to data-parallel ranks. Both are functions of
// the lengths alone: every rank computes the same plan, and the plan does not know how many ranks there are.
//
// Packing is best-fit decreasing: rows from long to short, each into the fullest micro-batch that still takes it. It needs at
// most 11/9 of the fewest micro-batches possible, and a comparison per row and open micro-batch: nothing beside a step.
#include "data/data.h"
#include <stdlib.h>

static void plan_reserve(PackPlan *p, int n)
{
    if (n <= p->cap) return;
    p->cap = MAX(n, 2 * p->cap);
    p->order = xrealloc(p->order, (size_t)p->cap * sizeof *p->order);
    p->micro = xrealloc(p->micro, (size_t)p->cap * sizeof *p->micro);
    p->key = xrealloc(p->key, (size_t)p->cap * sizeof *p->key);
    p->home = xrealloc(p->home, (size_t)p->cap * sizeof *p->home);
    p->load = xrealloc(p->load, (size_t)p->cap * sizeof *p->load);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Sort keys whose ascending order is "longest first, then by position": no comparison context, no unstable ties.
static uint64_t longest_first(int length, int position)
{
    return (uint64_t)(UINT32_MAX - (uint32_t)length) << 32 | (uint32_t)position;
}

// The micro-batch from `first` on with the least room left that still takes `length`; n_micro when none does.
static int best_fit(const PackPlan *p, int first, int length, int capacity)
{
    int best = p->n_micro;
    for (int m = first; m < p->n_micro; m++)
        if (p->micro[m].tokens <= capacity - length &&
            (best == p->n_micro || p->micro[m].tokens > p->micro[best].tokens))
            best = m;
    return best;
}

static void assign_rows(PackPlan *p, const int *lengths, int n, int capacity)
{
    for (int i = 0; i < n; i++) p->key[i] = longest_first(lengths[i], i);
    qsort(p->key, (size_t)n, sizeof *p->key, by_value);
    int shortest = n ? lengths[(uint32_t)p->key[n - 1]] : 0,
        open = 0; // micro-batches before `open` take no row any more
    for (int k = 0; k < n; k++) {
        while (open < p->n_micro && p->micro[open].tokens > capacity - shortest) open++;
        int row = (int)(uint32_t)p->key[k], m = best_fit(p, open, lengths[row], capacity);
        if (m == p->n_micro) p->micro[p->n_micro++] = (Micro){0};
        p->micro[m].rows++;
        p->micro[m].tokens += lengths[row];
        p->home[row] = m;
    }
}

void pack_rows(PackPlan *p, const int *lengths, int n, int capacity, bool pack)
{
    plan_reserve(p, n);
    p->n_micro = 0;
    if (pack) {
        assign_rows(p, lengths, n, capacity);
    } else {
        for (int i = 0; i < n; i++) {
            p->micro[i] = (Micro){.rows = 1, .tokens = lengths[i]};
            p->home[i] = i;
        }
        p->n_micro = n;
    }
    // Within a micro-batch rows keep the order of the step.
    for (int m = 0, first = 0; m < p->n_micro; first += p->micro[m++].rows) p->micro[m].first = first;
    for (int i = 0; i < n; i++) p->order[p->micro[p->home[i]].first++] = i;
    for (int m = 0; m < p->n_micro; m++) p->micro[m].first -= p->micro[m].rows;
}

void pack_deal(const PackPlan *p, int ranks, int *owner)
{
    int busy = MIN(ranks, p->n_micro); // ties go to the lower rank: the others get nothing
    for (int r = 0; r < busy; r++) p->load[r] = 0;
    uint64_t *key = p->key; // of the rows; they are placed by now, and there are at least as many as micro-batches
    for (int m = 0; m < p->n_micro; m++) key[m] = longest_first(p->micro[m].tokens, m);
    qsort(key, (size_t)p->n_micro, sizeof *key, by_value);
    for (int k = 0; k < p->n_micro; k++) {
        int m = (int)(uint32_t)key[k], least = 0;
        for (int r = 1; r < busy; r++)
            if (p->load[r] < p->load[least]) least = r;
        owner[m] = least;
        p->load[least] += p->micro[m].tokens;
    }
}

void pack_free(PackPlan *p)
{
    free(p->order);
    free(p->micro);
    free(p->key);
    free(p->home);
    free(p->load);
    *p = (PackPlan){0};
}
