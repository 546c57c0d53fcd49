// grad: gradients of one optimizer step, summed over micro-batches and ranks.
//
// Where sums live. ZeRO 0 and 1: all of them, unit behind unit (`sums`); a unit's reduction starts when the last micro-batch has
// passed it. ZeRO 2 and 3: only this rank's parts (`mine`); a micro-batch adds to one of two work buffers, which is reduced and added
// to the part while backward goes on in the other. Units larger than a work buffer pass through in chunks.
//
// The reductions are jobs on the mesh's queue, in an order that is the same on all ranks: the order of units.
//
// Memory is the caller's arena. With a measuring arena every pointer is NULL.
#include "sharding.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORK_BUFFERS = 3 }; // two in turn, and one for the last unit, which stays open all through backward

typedef struct Work {
    GradSet *g;
    void *data;
    int unit, chunk; // what it holds; unit -1: nothing
    uint64_t ticket; // of the job that empties it
    bool last;
    Piece *piece;
    size_t *start;
} Work;

// A unit as it stands in `sums`: its pieces, and what it is reduced with.
typedef struct UnitState {
    GradSet *g;
    Piece *piece;
    size_t *start;
    size_t base; // elements before it in `sums`
    size_t own;  // elements before this rank's part of it in `mine`
    bool done;   // in this round
} UnitState;

struct GradSet {
    GradConfig c;
    Units units;
    int part, ranks;
    bool split; // ZeRO 2, 3: only parts are kept
    DType t;    // of sums: I64 when order-free, else F32
    int64_t limit;
    int overflow; // set by fix_add, cleared by grad_zero
    bool last;
    UnitState *unit;
    int *piece_of; // (n) index of tensor i among its unit's pieces of one part
    Comm *kv;
    char *sums, *mine;
    float *get; // order-free: what grad_get returns, as large as the largest part
    Work work[WORK_BUFFERS];
    int turn;
    uint64_t ticket;
    size_t bytes;
};

// ---- opening --------------------------------------------------------------------------------------------------------
static void alloc_layout(const Units *u, int tensors, Piece **piece, size_t **start)
{
    *piece = xcalloc((size_t)u->parts * (size_t)tensors + 1, sizeof **piece);
    *start = xcalloc((size_t)u->parts + 1, sizeof **start);
}

// Layout of all units; returns the elements of all, and in *own those of this rank's parts.
static size_t lay_out_units(GradSet *g, size_t *own)
{
    const Units *u = &g->units;
    size_t base = 0;
    *own = 0;
    for (int k = 0; k < u->n_units; k++) {
        UnitState *s = &g->unit[k];
        int n = u->first[k + 1] - u->first[k];
        *s = (UnitState){.g = g, .base = base, .own = *own};
        alloc_layout(u, n, &s->piece, &s->start);
        unit_whole(u, k, s->piece, s->start);
        for (int j = 0; j < n; j++) g->piece_of[s->piece[j].tensor] = j;
        base += s->start[u->parts];
        *own += s->start[g->part + 1] - s->start[g->part];
    }
    return base;
}

static void allocate(GradSet *g, Arena *run)
{
    const Units *u = &g->units;
    size_t own, all = lay_out_units(g, &own), size = dtype_size(g->t), largest = 0, mark = arena_mark(run);
    for (int i = 0; i < u->n; i++) largest = MAX(largest, (size_t)grad_rows(g, i).rows * (size_t)u->t[i].K);
    if (g->t == DT_I64) g->get = arena_alloc(run, largest * sizeof *g->get);
    if (!g->split) g->sums = arena_alloc(run, all * size);
    for (int i = 0; g->split && i < WORK_BUFFERS; i++) {
        bool vectors = i == WORK_BUFFERS - 1;
        size_t elements = vectors ? unit_elements(u, u->n_units - 1) : units_largest(u);
        g->work[i] = (Work){.g = g, .unit = -1, .data = arena_alloc(run, elements * size)};
        alloc_layout(u, u->most, &g->work[i].piece, &g->work[i].start);
    }
    if (g->split) g->mine = arena_alloc(run, own * size);
    g->bytes = arena_mark(run) - mark;
}

int grad_open(GradSet **out, Arena *run, const GradConfig *c)
{
    GradSet *g = xcalloc(1, sizeof *g);
    const Mesh *mesh = c->mesh;
    g->c = *c;
    g->ranks = mesh ? comm_size(mesh->world) : 1;
    const int parts = c->zero && mesh ? mesh->data_size : 1;
    g->part = parts > 1 ? mesh->data_rank : 0;
    g->split = c->zero >= 2 && parts > 1;
    g->t = c->order_free ? DT_I64 : DT_F32;
    units_open(&g->units, c->t, c->n, c->units, parts);
    g->unit = xcalloc((size_t)c->units + 1, sizeof *g->unit);
    g->piece_of = xcalloc((size_t)c->n + 1, sizeof *g->piece_of);
    allocate(g, run);
    if (mesh && c->kv_ranks) {
        int status = comm_split_range(&g->kv, mesh->tensor_bg, c->kv_first, c->kv_ranks);
        if (status < 0) {
            grad_close(g);
            return status;
        }
    }
    *out = g;
    return OK;
}

void grad_close(GradSet *g)
{
    if (!g) return;
    (void)g->c.device->sync(g->c.device); // fix_add may still have something to tell
    for (int k = 0; k < g->c.units; k++) {
        free(g->unit[k].piece);
        free(g->unit[k].start);
    }
    for (int i = 0; i < WORK_BUFFERS; i++) {
        free(g->work[i].piece);
        free(g->work[i].start);
    }
    comm_close(g->kv);
    units_close(&g->units);
    free(g->unit);
    free(g->piece_of);
    free(g);
}

size_t grad_bytes(const GradSet *g)
{
    return g->bytes;
}
CommStats grad_traffic(const GradSet *g)
{
    return g->kv && comm_size(g->kv) > 1 ? comm_stats(g->kv) : (CommStats){0};
}
size_t grad_footprint(const GradSet *g)
{
    return g->kv ? comm_footprint(g->kv) : 0;
}
bool grad_overflowed(const GradSet *g)
{
    return g->overflow != 0;
}
Rows grad_rows(const GradSet *g, int i)
{
    return part_rows(g->c.t[i].N, g->part, g->units.parts);
}

// ---- a step ---------------------------------------------------------------------------------------------------------
static char *at(const GradSet *g, char *base, size_t element)
{
    return base ? base + element * dtype_size(g->t) : NULL;
}

static void zero(GradSet *g, void *data, size_t elements)
{
    if (elements) (void)g->c.device->zero(g->c.device, data, elements * dtype_size(g->t));
}

int grad_rounds(const GradSet *g, int own, int most)
{
    return g->split ? MAX(most, 1) : MAX(own, 1);
}

void grad_zero(GradSet *g, int rounds)
{
    const UnitState *end = &g->unit[g->c.units - 1];
    g->overflow = 0;
    g->ticket = 0;
    g->last = false;
    // the sum over ranks, and over rounds of parts, must not wrap around
    g->limit = INT64_MAX / g->ranks / (g->split ? MAX(rounds, 1) : 1);
    zero(g, g->sums, g->split ? 0 : end->base + end->start[g->units.parts]);
    zero(g, g->mine, g->split ? end->own + end->start[g->part + 1] - end->start[g->part] : 0);
}

void grad_round(GradSet *g, bool last)
{
    g->last = last;
    for (int k = 0; k < g->c.units; k++) g->unit[k].done = false;
}

float *grad_direct(GradSet *g, int i)
{
    ASSERT(i >= 0 && i < g->c.n);
    if (g->t != DT_F32 || g->units.parts > 1 || !g->sums) return NULL;
    const UnitState *s = &g->unit[g->c.t[i].unit];
    return (float *)(void *)at(g, g->sums, s->base + s->piece[g->piece_of[i]].at);
}

static void add(GradSet *g, void *sum, const float *dw, size_t n)
{
    Device *d = g->c.device;
    if (g->t == DT_I64)
        d->op.fix_add(d, sum, dw, n, g->limit, &g->overflow);
    else
        d->op.acc_add(d, sum, dw, DT_F32, n);
}

// Adds the rows of tensor i that a layout has to the buffer laid out so.
static void add_pieces(GradSet *g, int i, char *base, const Piece *piece, int per_part, int index, const float *dw)
{
    const size_t K = (size_t)g->c.t[i].K;
    for (int part = 0; part < g->units.parts; part++) {
        const Piece *p = &piece[part * per_part + index];
        if (p->rows) add(g, at(g, base, p->at), dw ? dw + (size_t)p->row0 * K : NULL, (size_t)p->rows * K);
    }
}

// ---- reductions: jobs of the queue ----------------------------------------------------------------------------------
// The segment of this rank's part whose tensors are summed over tensor ranks in the same way; they lie together.
static int sum_over_tensor(GradSet *g, const UnitState *s, int unit, char *own)
{
    const Units *u = &g->units;
    const int n = u->first[unit + 1] - u->first[unit];
    const Piece *piece = &s->piece[g->part * n];
    for (int j = 0; j < n;) {
        const GradSum sum = u->t[piece[j].tensor].sum;
        size_t from = piece[j].at, to = from;
        for (; j < n && u->t[piece[j].tensor].sum == sum; j++)
            to = piece[j].at + (size_t)piece[j].rows * (size_t)u->t[piece[j].tensor].K;
        Comm *c = sum == SUM_TENSOR ? g->c.mesh->tensor_bg : sum == SUM_KV ? g->kv : NULL;
        if (c && to > from) TRY(comm_all_reduce(c, at(g, own, from - s->start[g->part]), to - from, g->t, REDUCE_SUM));
    }
    return OK;
}

static int reduce_unit(void *ctx)
{
    UnitState *s = ctx;
    GradSet *g = s->g;
    const Units *u = &g->units;
    Comm *data = g->c.mesh->data_bg;
    char *base = at(g, g->sums, s->base);
    if (u->parts > 1)
        TRY(comm_reduce_scatter_parts(data, base, s->start, g->t));
    else
        TRY(comm_all_reduce(data, base, s->start[1], g->t, REDUCE_SUM));
    return sum_over_tensor(g, s, (int)(s - g->unit), at(g, base, s->start[g->part]));
}

static int reduce_work(void *ctx)
{
    Work *w = ctx;
    GradSet *g = w->g;
    Device *d = g->c.device;
    const UnitState *s = &g->unit[w->unit];
    const int n = g->units.first[w->unit + 1] - g->units.first[w->unit];
    const size_t own = w->start[g->part], count = w->start[g->part + 1] - own;
    const Piece *chunk = &w->piece[g->part * n], *whole = &s->piece[g->part * n];
    // a chunk is of one tensor: it begins where its first row lies in the part
    const size_t to = s->own + (size_t)(chunk->row0 - whole->row0) * (size_t)g->c.t[chunk->tensor].K;
    TRY(comm_reduce_scatter_parts(g->c.mesh->data_bg, w->data, w->start, g->t));
    if (count) d->op.acc_add(d, at(g, g->mine, to), at(g, w->data, own), g->t, count);
    const bool ends = w->chunk == unit_chunks(&g->units, w->unit) - 1;
    return w->last && ends ? sum_over_tensor(g, s, w->unit, at(g, g->mine, s->own)) : OK;
}

// ---- work buffers ---------------------------------------------------------------------------------------------------
static int post_work(GradSet *g, Work *w)
{
    w->last = g->last;
    g->ticket = w->ticket = comm_queue_post(g->c.mesh->queue, reduce_work, w);
    return OK;
}

// The buffer in which chunk `chunk` of a unit is being summed, empty at first.
static int take_work(GradSet *g, int unit, int chunk, Work **out)
{
    const bool last_unit = unit == g->c.units - 1;
    Work *w = &g->work[last_unit ? WORK_BUFFERS - 1 : g->turn];
    if (w->unit == unit && w->chunk == chunk && !w->ticket) {
        *out = w;
        return OK;
    }
    ASSERT(last_unit || w->unit < 0 || w->ticket); // one unit at a time
    if (w->ticket) {                               // used before: its sums must have gone
        if (!last_unit) w = &g->work[g->turn = 1 - g->turn];
        if (w->ticket) TRY(comm_queue_wait(g->c.mesh->queue, w->ticket));
    }
    w->unit = unit;
    w->chunk = chunk;
    w->ticket = 0;
    unit_chunk(&g->units, unit, chunk, w->piece, w->start);
    zero(g, w->data, w->start[g->units.parts]);
    *out = w;
    return OK;
}

static int add_split(GradSet *g, int i, const float *dw)
{
    const int unit = g->c.t[i].unit, chunks = unit_chunks(&g->units, unit);
    const int n = g->units.first[unit + 1] - g->units.first[unit];
    for (int chunk = 0; chunk < chunks; chunk++) {
        Work *w;
        TRY(take_work(g, unit, chunk, &w));
        if (dw) add_pieces(g, i, w->data, w->piece, n, g->piece_of[i], dw);
        if (chunks > 1) TRY(post_work(g, w));
    }
    g->unit[unit].done = chunks > 1;
    return OK;
}

int grad_add(GradSet *g, int i, const float *dw)
{
    ASSERT(i >= 0 && i < g->c.n);
    if (g->split) return add_split(g, i, dw);
    const int unit = g->c.t[i].unit;
    const UnitState *s = &g->unit[unit];
    const int n = g->units.first[unit + 1] - g->units.first[unit];
    add_pieces(g, i, at(g, g->sums, s->base), s->piece, n, g->piece_of[i], dw);
    return OK;
}

static bool alone(const GradSet *g)
{
    return g->ranks == 1;
}

int grad_unit_done(GradSet *g, int unit)
{
    UnitState *s = &g->unit[unit];
    if (!s->start[g->units.parts] || s->done || alone(g)) return OK;
    if (!g->split) {
        if (!g->last) return OK;
        s->done = true;
        g->ticket = comm_queue_post(g->c.mesh->queue, reduce_unit, s);
        return OK;
    }
    if (unit_chunks(&g->units, unit) > 1)
        return add_split(g, s->piece->tensor, NULL); // nothing to add, but the others may have
    Work *w;
    s->done = true;
    TRY(take_work(g, unit, 0, &w));
    return post_work(g, w);
}

int grad_finish(GradSet *g)
{
    TRY(g->c.device->sync(g->c.device));
    int32_t overflow = g->overflow;
    if (!alone(g)) {
        if (g->ticket) TRY(comm_queue_wait(g->c.mesh->queue, g->ticket));
        TRY(comm_all_reduce(g->c.mesh->world, &overflow, 1, DT_I32, REDUCE_MAX));
    }
    for (int i = 0; i < WORK_BUFFERS; i++) g->work[i].unit = -1, g->work[i].ticket = 0;
    if (!overflow) return OK;
    return fail(E_FAILED, NULL, "lower train.lr, or look at the rows of this step with `attune data`",
                "a gradient is not finite, or larger than %.0f", ldexp((double)g->limit, -GRAD_FIX_BITS));
}

const float *grad_get(GradSet *g, int i)
{
    ASSERT(i >= 0 && i < g->c.n);
    const int unit = g->c.t[i].unit, n = g->units.first[unit + 1] - g->units.first[unit];
    const UnitState *s = &g->unit[unit];
    const Piece *p = &s->piece[g->part * n + g->piece_of[i]];
    const char *sum = g->split ? at(g, g->mine, s->own + p->at - s->start[g->part]) : at(g, g->sums, s->base + p->at);
    if (g->t == DT_F32) return (const float *)(const void *)sum;
    g->c.device->op.fix_read(g->c.device, g->get, (const int64_t *)(const void *)sum,
                             (size_t)p->rows * (size_t)g->c.t[i].K);
    return g->get;
}

// Row by row from the very values the optimizer will see: a row is never divided among data ranks.
int grad_norm(GradSet *g, double *out)
{
    ExactSum sum = {0};
    Device *d = g->c.device;
    size_t n = 0, done = 0;
    for (int i = 0; i < g->c.n; i++) n += g->c.t[i].counted ? (size_t)grad_rows(g, i).rows : 0;
    double *squares = xcalloc(n + 1, sizeof *squares);
    for (int i = 0; i < g->c.n; i++) {
        const int rows = grad_rows(g, i).rows;
        if (!rows || !g->c.t[i].counted) continue;
        d->op.row_squares(d, squares + done, grad_get(g, i), rows, g->c.t[i].K);
        done += (size_t)rows;
    }
    int status = d->sync(d);
    for (size_t r = 0; r < n; r++) exact_add(&sum, squares[r]);
    free(squares);
    TRY(status);
    if (!alone(g)) TRY(exact_reduce(&sum, g->units.parts > 1 ? g->c.mesh->world : g->c.mesh->tensor));
    *out = sqrt(exact_value(&sum));
    return OK;
}
