// sample: a token from each row of logits, by the rule of sample.h.
//
// The reference sorts the vocabulary. The tuned version finds the least token that a filter keeps by its bits, from the highest on: sums
// of what is to be counted (tokens for top-k, their weights for top-p) by 11 bits of the logit's integer tell in which piece the
// filter's end lies, and three such passes tell the logit. kernels/cuda/sample.cu does the same.
#include "../sample.h"
#include "../sample_rule.h"
#include "isa_kernels.h"
#include <math.h>
#include <stdlib.h>

// ---- reference ------------------------------------------------------------------------------------------------------
typedef struct Token {
    float logit;
    int32_t id;
    uint64_t weight; // 0: dropped
} Token;

static int by_logit(const void *a, const void *b)
{
    const Token *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b)
{
    const Token *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

// How many of n sorted tokens top-p keeps
static int nucleus(const Token *token, int n, double top_p)
{
    uint64_t total = 0, sum = 0;
    int kept = 0;
    for (int i = 0; i < n; i++) total += token[i].weight;
    while (sum < sample_needed(total, top_p)) sum += token[kept++].weight;
    return kept;
}

static int32_t draw_sorted(const SamplerConfig *c, Token *token, int V, uint64_t draw)
{
    uint64_t total = 0, sum = 0;
    const float top = token[0].logit;
    int n = c->top_k > 0 ? MIN(c->top_k, V) : V;
    for (int i = 0; i < V; i++) token[i].weight = sample_weight(token[i].logit, top, SAMPLE_RATE(c->temperature));
    if (c->top_p < 1) n = nucleus(token, n, c->top_p);
    for (int i = 0; i < n; i++) total += token[i].weight;
    qsort(token, (size_t)n, sizeof *token, by_id);
    int i = -1;
    do sum += token[++i].weight;
    while (sum <= sample_high(draw, total));
    return token[i].id;
}

void sample_ref(Device *d, int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V, int n)
{
    (void)d;
    Token *token = xcalloc((size_t)V + 1, sizeof *token);
    for (int r = 0; r < n; r++) {
        bool sound = V > 0;
        for (int i = 0; i < V; i++) {
            const float z = logits[(int64_t)r * V + i];
            token[i] = (Token){z, i, 0};
            sound &= !isnan(z);
        }
        if (sound) qsort(token, (size_t)V, sizeof *token, by_logit);
        if (!sound || !isfinite(token[0].logit))
            id[r] = -1;
        else
            id[r] = c->temperature > 0 ? draw_sorted(c, token, V, draw[r]) : token[0].id;
    }
    free(token);
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
enum { DIGITS = 3, BINS = 1 << 11 };
static const int shifts[DIGITS + 1] = {21, 10, 0}, above[DIGITS] = {32, 21, 10};

// Tokens with larger keys are kept, and the first `equal` ones of this key. {0, 0}: all
typedef struct Cut {
    uint32_t key;
    uint64_t equal;
} Cut;

typedef struct Row {
    const float *logits;
    const uint64_t *weight; // (V)
    int V;
    float top, rate;
} Row;

static uint64_t weight_of(const Row *r, uint32_t key)
{
    return sample_weight(sample_value(key), r->top, r->rate);
}

// Goes over the tokens that `kept` keeps, from the best on, adding weights, or ones, until the sum exceeds target: the key it came
// to. *before: the sum before any token of that key.
static uint32_t where_sum_exceeds(const Row *r, Cut kept, bool weights, uint64_t target, uint64_t *before)
{
    uint32_t found = 0;
    *before = 0;
    for (int digit = 0; digit < DIGITS; digit++) {
        uint64_t sum[BINS] = {0};
        const uint64_t prefix = (uint64_t)found >> above[digit];
        for (int i = 0; i < r->V; i++) {
            const uint32_t key = sample_key(r->logits[i]);
            if (key > kept.key && (uint64_t)key >> above[digit] == prefix)
                sum[(key >> shifts[digit]) % BINS] += weights ? r->weight[i] : 1;
        }
        if (kept.equal && (uint64_t)kept.key >> above[digit] == prefix)
            sum[(kept.key >> shifts[digit]) % BINS] += kept.equal * (weights ? weight_of(r, kept.key) : 1);
        uint32_t bin = BINS - 1;
        while (target - *before >= sum[bin]) *before += sum[bin--];
        found |= bin << shifts[digit];
    }
    return found;
}

static uint64_t kept_weight(const Row *r, Cut kept)
{
    uint64_t sum = kept.equal ? kept.equal * weight_of(r, kept.key) : 0;
    for (int i = 0; i < r->V; i++)
        if (sample_key(r->logits[i]) > kept.key) sum += r->weight[i];
    return sum;
}

// *total: the weight of what is kept
static Cut filter(const Row *r, const SamplerConfig *c, uint64_t *total)
{
    Cut kept = {0, 0};
    uint64_t before;
    if (c->top_k > 0 && c->top_k < r->V) {
        kept.key = where_sum_exceeds(r, kept, false, (uint64_t)c->top_k - 1, &before);
        kept.equal = (uint64_t)c->top_k - before;
    }
    *total = kept_weight(r, kept);
    if (c->top_p < 1) {
        const uint64_t needed = sample_needed(*total, c->top_p);
        kept.key = where_sum_exceeds(r, kept, true, needed - 1, &before);
        const uint64_t each = weight_of(r, kept.key);
        ASSERT(each > 0); // it made the sum exceed
        kept.equal = (needed - before + each - 1) / each;
        *total = before + kept.equal * each;
    }
    return kept;
}

// The first finite maximum; -1: there is none, or a logit is not a number or infinite
static int32_t best_token(const float *logits, int V)
{
    int32_t best = -1;
    for (int i = 0; i < V; i++) {
        if (isnan(logits[i])) return -1;
        if (best < 0 || logits[i] > logits[best]) best = i;
    }
    return best >= 0 && isfinite(logits[best]) ? best : -1;
}

static int32_t sample_with(const SamplerConfig *c, const float *logits, int V, uint64_t draw, uint64_t *weight)
{
    const int32_t best = best_token(logits, V);
    if (best < 0 || !(c->temperature > 0)) return best;
    const Row r = {logits, weight, V, logits[best], SAMPLE_RATE(c->temperature)};
    uint64_t total;
    for (int i = 0; i < V; i++) weight[i] = sample_weight(logits[i], r.top, r.rate);
    Cut kept = filter(&r, c, &total);
    uint64_t left = sample_high(draw, total);
    for (int i = 0; i < V; i++) {
        const uint32_t key = sample_key(logits[i]);
        if (key < kept.key || (key == kept.key && !kept.equal)) continue;
        kept.equal -= key == kept.key;
        if (left < weight[i]) return i;
        left -= weight[i];
    }
    return best; // is not reached: left was less than all weights together
}

int32_t sample_row(const SamplerConfig *c, const float *logits, int V, uint64_t draw)
{
    ASSERT(V <= SAMPLE_MOST_TOKENS);
    uint64_t *weight = c->temperature > 0 ? xmalloc((size_t)V * sizeof *weight + 1) : NULL;
    const int32_t id = sample_with(c, logits, V, draw, weight);
    free(weight);
    return id;
}

void sample(Device *d, int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V, int n)
{
    const size_t bytes = c->temperature > 0 ? (size_t)V * sizeof(uint64_t) : 0;
    ASSERT(V <= SAMPLE_MOST_TOKENS);
    if (cpu_only_notes(d, bytes, 0)) return;
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(d, (int64_t)n *V))
    for (int r = 0; r < n; r++)
        id[r] = sample_with(c, logits + (int64_t)r * V, V, bytes ? draw[r] : 0, cpu_thread_scratch(d, bytes));
}
