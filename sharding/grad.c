// grad: gradients of one optimizer step, summed over micro-batches and data-parallel ranks. One buffer holds
// the sums of all tensors back to back, so that the reduction over ranks is one collective: int64 fixed point
// when the result must not depend on who did which micro-batch (integer addition is associative), f32
// otherwise.
//
// Memory is the caller's arena. With a measuring arena every pointer is NULL; only grad_bytes may then be
// asked.
#include "sharding.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct GradSet {
    Device *device;
    int n;
    bool order_free;
    int overflow;   // set by fix_add, cleared by grad_zero
    size_t *start;  // (n + 1): elements before tensor i
    int64_t *fixed; // order-free sums
    float *sum;     // or plain ones
    float *get;     // order-free: what grad_get returns, as large as the largest tensor
    size_t bytes;
};

int grad_open(GradSet **out, Device *d, Arena *run, const size_t *sizes, int n, bool order_free)
{
    GradSet *g = xcalloc(1, sizeof *g);
    g->device = d;
    g->n = n;
    g->order_free = order_free;
    g->start = xcalloc((size_t)n + 1, sizeof *g->start);
    size_t largest = 0;
    for (int i = 0; i < n; i++) {
        g->start[i + 1] = g->start[i] + sizes[i];
        largest = MAX(largest, sizes[i]);
    }
    size_t mark = arena_mark(run);
    if (order_free) {
        g->fixed = arena_alloc(run, g->start[n] * sizeof *g->fixed);
        g->get = arena_alloc(run, largest * sizeof *g->get);
    } else {
        g->sum = arena_alloc(run, g->start[n] * sizeof *g->sum);
    }
    g->bytes = arena_mark(run) - mark;
    if (g->fixed || g->sum) grad_zero(g);
    *out = g;
    return OK;
}

void grad_close(GradSet *g)
{
    if (!g) return;
    free(g->start);
    free(g);
}

size_t grad_bytes(const GradSet *g)
{
    return g->bytes;
}
bool grad_overflowed(const GradSet *g)
{
    return g->overflow != 0;
}
static size_t size_of(const GradSet *g, int i)
{
    return g->start[i + 1] - g->start[i];
}

void grad_zero(GradSet *g)
{
    size_t all = g->start[g->n];
    g->overflow = 0;
    if (g->fixed) (void)g->device->zero(g->device, g->fixed, all * sizeof *g->fixed);
    if (g->sum) (void)g->device->zero(g->device, g->sum, all * sizeof *g->sum);
}

float *grad_direct(GradSet *g, int i)
{
    ASSERT(i >= 0 && i < g->n);
    return g->order_free || !g->sum ? NULL : g->sum + g->start[i];
}

void grad_add(GradSet *g, int i, const float *dw)
{
    ASSERT(i >= 0 && i < g->n);
    size_t n = size_of(g, i);
    if (g->order_free) {
        g->device->op.fix_add(g->device, g->fixed + g->start[i], dw, n, &g->overflow);
        return;
    }
    float *sum = g->sum + g->start[i];
    for (size_t j = 0; j < n; j++) sum[j] += dw[j];
}

// Each value that was added fits (fix_add saw to it), but the ranks' sums must not wrap around when they are
// added up.
static bool sums_fit(const GradSet *g, int ranks)
{
    int64_t limit = INT64_MAX / ranks, largest = 0;
    for (size_t j = 0; j < g->start[g->n]; j++) {
        int64_t size = g->fixed[j] < 0 ? ~g->fixed[j] : g->fixed[j]; // |x| or |x| - 1: no overflow at INT64_MIN
        largest = MAX(largest, size);
    }
    return largest < limit;
}

int grad_reduce(GradSet *g, Comm *data)
{
    if (!g->order_free) return comm_all_reduce(data, g->sum, g->start[g->n], DT_F32, REDUCE_SUM);
    int32_t overflow = g->overflow || !sums_fit(g, comm_size(data));
    TRY(comm_all_reduce(data, &overflow, 1, DT_I32, REDUCE_MAX));
    if (overflow)
        return fail(E_FAILED, NULL, "lower train.lr, or look at the rows of this step with `attune data`",
                    "a gradient is not finite, or larger than 5e5");
    return comm_all_reduce(data, g->fixed, g->start[g->n], DT_I64, REDUCE_SUM);
}

const float *grad_get(GradSet *g, int i)
{
    ASSERT(i >= 0 && i < g->n);
    if (!g->order_free) return g->sum + g->start[i];
    g->device->op.fix_read(g->device, g->get, g->fixed + g->start[i], size_of(g, i));
    return g->get;
}

// In index order, in double, from the very values the optimizer will see: the same bits on every rank.
double grad_norm(GradSet *g)
{
    double sum = 0;
    for (int i = 0; i < g->n; i++) {
        double part = 0;
        if (size_of(g, i)) g->device->op.sum_squares(g->device, &part, grad_get(g, i), size_of(g, i));
        sum += part;
    }
    return sqrt(sum);
}
