// Implementation of sampler.h. Weights (unnormalised probabilities relative to the best token) replace the
// logits in place; filters set the weight of what they drop to 0; the draw then walks the ids in order, so
// that filters that drop nothing change nothing.
#include "eval/sampler.h"
#include <math.h>
#include <stdlib.h>

typedef struct Candidate {
    float weight;
    int32_t id;
} Candidate;

static int32_t best_token(const float *logits, int V)
{
    int32_t best = -1;
    for (int i = 0; i < V; i++) {
        if (isnan(logits[i])) return -1;
        if (best < 0 || logits[i] > logits[best]) best = i;
    }
    return best >= 0 && isfinite(logits[best]) ? best : -1;
}

static double sum(const float *weight, int V)
{
    double total = 0;
    for (int i = 0; i < V; i++) total += weight[i];
    return total;
}

// Most likely first, the lower id first among equals: a total order, so that selection is unambiguous.
static int by_weight(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

// Quickselect (Hoare 1961): moves the k first of that order to c[0..k)
static void select_first(Candidate *c, int n, int k)
{
    for (int low = 0, high = n - 1; low < high;) {
        Candidate pivot = c[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (by_weight(&c[i], &pivot) < 0) i++;
            while (by_weight(&c[j], &pivot) > 0) j--;
            if (i > j) break;
            Candidate t = c[i];
            c[i++] = c[j];
            c[j--] = t;
        }
        if (k <= j)
            high = j;
        else if (k > i)
            low = i;
        else
            return;
    }
}

// How many of n sorted candidates top-p keeps: as long as those before have not reached `need`, and one at
// least
static int nucleus(const Candidate *c, int n, double need)
{
    int kept = 0;
    double before = 0;
    do before += c[kept++].weight;
    while (kept < n && before < need);
    return kept;
}

// Moves the tokens that may be needed from weight (V) to the list, leaving zeros; returns their number
static int collect(Candidate *list, float *weight, int V, double least)
{
    int n = 0;
    for (int i = 0; i < V; i++) {
        if (weight[i] > 0 && weight[i] >= least) list[n++] = (Candidate){weight[i], i};
        weight[i] = 0;
    }
    return n;
}

static void filter(const SamplerConfig *c, float *weight, int V)
{
    bool cut_k = c->top_k > 0 && c->top_k < V, cut_p = c->top_p < 1;
    if (!cut_k && !cut_p) return;
    double total = sum(weight, V);
    // Tokens below (1 - top_p) / V have less than 1 - top_p in all, so that none of them is needed to reach
    // top_p, and most of the vocabulary is never sorted. Half of that leaves room for rounding. (top-k
    // changes the total, so not before it.)
    Candidate *list = xmalloc((size_t)V * sizeof *list);
    int n = collect(list, weight, V, cut_k ? 0 : 0.5 * (1 - c->top_p) * total / V);
    if (cut_k && c->top_k < n) {
        select_first(list, n, c->top_k);
        n = c->top_k;
        total = 0;
        for (int i = 0; i < n; i++) total += list[i].weight;
    }
    if (cut_p) {
        qsort(list, (size_t)n, sizeof *list, by_weight);
        n = nucleus(list, n, c->top_p * total);
    }
    for (int i = 0; i < n; i++) weight[list[i].id] = list[i].weight;
    free(list);
}

static double unit_draw(uint64_t seed, uint64_t sequence, uint64_t position) // [0, 1), 53 bits
{
    uint32_t r[4];
    philox(hash64("sampler", 7, seed), sequence, position, r);
    return (double)(((uint64_t)r[0] << 32 | r[1]) >> 11) * 0x1p-53;
}

int32_t sample_token(const SamplerConfig *c, float *logits, int V, uint64_t sequence, uint64_t position)
{
    int32_t best = best_token(logits, V);
    if (best < 0 || c->temperature <= 0) return best;
    double top = logits[best];
    for (int i = 0; i < V; i++) logits[i] = (float)exp((logits[i] - top) / c->temperature);
    filter(c, logits, V);
    double left = unit_draw(c->seed, sequence, position) * sum(logits, V);
    int32_t last = best;
    for (int i = 0; i < V; i++) {
        if (!(logits[i] > 0)) continue;
        last = i;
        if ((left -= logits[i]) < 0) break;
    }
    return last; // rounding may leave a trace of `left` at the end: then the last token that was kept
}
