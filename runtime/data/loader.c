// loader: which rows step i trains, in which micro-batches, and their tokens laid out in memory, one or two steps ahead of the
// training loop on a thread of its own.
//
// Position p = step * batch + i of a run is a row: p mod rows, or, shuffled, the image of p mod rows under the permutation of
// epoch p / rows. Nothing is remembered from step to step, so a run resumes at any step, on any number of ranks, with the rows
// an uninterrupted one would have seen.
//
// Permutations are swap-or-not (Hoang, Morris, Rogaway, CRYPTO 2012): x becomes pivot - x or stays, as a coin for the pair says,
// round after round. That is a bijection on [0, rows) for any rows, computed for one x without touching the others.
//
// Memory: three slots, one with the caller and two ahead; each owns an arena that is reset per step, so a step allocates nothing.
#include "data/data.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SHUFFLE_ROUNDS    48
#define SLOTS             3
#define SCANNED_POSITIONS ((int64_t)1 << 20) // loader_bounds is exact for runs of up to that many rows
#define SAMPLED_STEPS     32

// ---- order ----------------------------------------------------------------------------------------------------------
typedef struct Shuffle {
    uint64_t rows; // 0: not keyed yet
    uint64_t epoch;
    uint64_t coin[SHUFFLE_ROUNDS], pivot[SHUFFLE_ROUNDS];
} Shuffle;

static uint64_t mix64(uint64_t x) // the finaliser of splitmix64
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static void shuffle_key(Shuffle *s, uint64_t seed, uint64_t rows, uint64_t epoch)
{
    uint64_t key = hash64("data.shuffle", 12, seed);
    s->rows = rows;
    s->epoch = epoch;
    for (int r = 0; r < SHUFFLE_ROUNDS; r++) {
        uint32_t u[4];
        philox(key, epoch, (uint64_t)r, u);
        s->coin[r] = (uint64_t)u[1] << 32 | u[0];
        s->pivot[r] = ((uint64_t)u[3] << 32 | u[2]) % rows;
    }
}

static uint64_t shuffle_at(const Shuffle *s, uint64_t x)
{
    for (int r = 0; r < SHUFFLE_ROUNDS; r++) {
        uint64_t other = (s->pivot[r] + s->rows - x) % s->rows;
        if (mix64(s->coin[r] ^ mix64(MAX(x, other))) & 1) x = other;
    }
    return x;
}

static int64_t row_at(const LoaderConfig *c, Shuffle *s, int64_t step, int i)
{
    uint64_t rows = (uint64_t)dataset_rows(c->data);
    unsigned __int128 position = (unsigned __int128)step * (unsigned)c->batch + (unsigned)i;
    uint64_t epoch = (uint64_t)(position / rows), row = (uint64_t)(position % rows);
    if (!c->shuffle) return (int64_t)row;
    if (s->rows != rows || s->epoch != epoch) shuffle_key(s, c->seed, rows, epoch);
    return (int64_t)shuffle_at(s, row);
}

int64_t loader_row(const LoaderConfig *c, int64_t step, int i)
{
    Shuffle s = {0};
    return row_at(c, &s, step, i);
}

int64_t loader_steps_per_epoch(const Dataset *d, int batch)
{
    return (dataset_rows(d) + batch - 1) / batch;
}

// ---- a step's rows and their plan -----------------------------------------------------------------------------------
typedef struct StepPlan {
    int64_t *row; // (batch)
    int *length;  // (batch)
    int *owner;   // (micro-batches <= batch)
    PackPlan pack;
    Shuffle shuffle;
} StepPlan;

static void plan_init(StepPlan *p, int batch)
{
    *p = (StepPlan){.row = xmalloc((size_t)batch * sizeof *p->row),
                    .length = xmalloc((size_t)batch * sizeof *p->length),
                    .owner = xmalloc((size_t)batch * sizeof *p->owner)};
}

static void plan_step(StepPlan *p, const LoaderConfig *c, int64_t step)
{
    for (int i = 0; i < c->batch; i++) {
        p->row[i] = row_at(c, &p->shuffle, step, i);
        p->length[i] = dataset_row(c->data, p->row[i])->n;
    }
    pack_rows(&p->pack, p->length, c->batch, c->micro_tokens, c->pack);
    pack_deal(&p->pack, c->data_size, p->owner);
}

static int count_owned(const StepPlan *p, int rank)
{
    int n = 0;
    for (int m = 0; m < p->pack.n_micro; m++) n += p->owner[m] == rank;
    return n;
}

static void plan_free(StepPlan *p)
{
    free(p->row);
    free(p->length);
    free(p->owner);
    pack_free(&p->pack);
}

// ---- a step laid out in memory --------------------------------------------------------------------------------------
static void fill_sequence(Batch *b, const Row *r, uint64_t key)
{
    int first = b->T, s = b->S;
    b->seq_start[s] = first;
    b->seq_len[s] = r->n;
    if (r->n) memcpy(b->tokens + first, r->ids, (size_t)r->n * sizeof *b->tokens);
    for (int t = 0; t < r->n; t++) {
        b->pos[first + t] = t;
        b->row_key[first + t] = mix64(key + (uint64_t)t * 0x9E3779B97F4A7C15u);
        if (!r->train[t]) continue;
        b->head_row[b->M] = first + t - 1;
        b->target[b->M] = r->ids[t];
        b->head_seq[b->M++] = s;
    }
    b->T += r->n;
    b->S++;
}

static int trained_tokens(const LoaderConfig *c, const StepPlan *p, const Micro *micro)
{
    int M = 0;
    for (int s = 0; s < micro->rows; s++) M += dataset_row(c->data, p->row[p->pack.order[micro->first + s]])->trained;
    return M;
}

static void carve_micro(Batch *b, Arena *a, const LoaderConfig *c, const StepPlan *p, const Micro *micro)
{
    const size_t T = (size_t)micro->tokens, S = (size_t)micro->rows, M = (size_t)trained_tokens(c, p, micro);
    *b = (Batch){.tokens = arena_alloc(a, T * sizeof *b->tokens),
                 .pos = arena_alloc(a, T * sizeof *b->pos),
                 .seq_start = arena_alloc(a, S * sizeof *b->seq_start),
                 .seq_len = arena_alloc(a, S * sizeof *b->seq_len),
                 .row_key = arena_alloc(a, T * sizeof *b->row_key),
                 .head_row = arena_alloc(a, M * sizeof *b->head_row),
                 .target = arena_alloc(a, M * sizeof *b->target),
                 .row = arena_alloc(a, S * sizeof *b->row),
                 .head_seq = arena_alloc(a, M * sizeof *b->head_seq)};
}

static void fill_micro(Batch *b, Arena *a, const LoaderConfig *c, const StepPlan *p, const Micro *micro, int64_t step)
{
    const int *order = p->pack.order + micro->first;
    carve_micro(b, a, c, p, micro);
    for (int s = 0; s < micro->rows; s++) {
        int position = order[s];
        uint64_t name[] = {c->seed, (uint64_t)step, (uint64_t)position};
        b->row[b->S] = p->row[position];
        fill_sequence(b, dataset_row(c->data, p->row[position]), hash64(name, sizeof name, 0));
    }
}

static void carve_lists(StepBatches *s, Arena *a)
{
    s->batch = arena_alloc(a, (size_t)s->n * sizeof *s->batch);
    s->micro_index = arena_alloc(a, (size_t)s->n * sizeof *s->micro_index);
}

static void fill_step(StepBatches *out, Arena *a, const LoaderConfig *c, StepPlan *p, int64_t step)
{
    plan_step(p, c, step);
    arena_reset(a, 0);
    *out = (StepBatches){.step = step, .n_micro = p->pack.n_micro};
    out->n = count_owned(p, c->data_rank);
    for (int r = 0; r < c->data_size; r++) out->n_most = MAX(out->n_most, count_owned(p, r));
    carve_lists(out, a);
    for (int m = 0, k = 0; m < p->pack.n_micro; m++) {
        if (p->owner[m] != c->data_rank) continue;
        out->micro_index[k] = m;
        fill_micro(&out->batch[k++], a, c, p, &p->pack.micro[m], step);
    }
    for (int i = 0; i < c->batch; i++) {
        out->tokens += p->length[i];
        out->trained_tokens += dataset_row(c->data, p->row[i])->trained;
    }
}

// The most bytes fill_step may take: `batch` rows, each alone in its micro-batch, and no more tokens than that many of the
// longest rows, or than the passes over the data that a step can touch.
static size_t slot_bytes(const LoaderConfig *c)
{
    RowStats s = dataset_stats(c->data);
    size_t batch = (size_t)c->batch, passes = batch / (size_t)dataset_rows(c->data) + 2;
    size_t tokens = MIN(batch * (size_t)s.longest, passes * (size_t)s.tokens);
    size_t per_token = 2 * sizeof(int32_t) + sizeof(uint64_t) + 3 * sizeof(int32_t);
    size_t per_row = 2 * sizeof(int32_t) + sizeof(int64_t) + sizeof(Batch) + sizeof(int) + 9 * ARENA_ALIGN;
    return tokens * per_token + batch * per_row + 4096;
}

// ---- the thread -----------------------------------------------------------------------------------------------------
struct Loader {
    LoaderConfig config;
    StepPlan plan; // the thread's
    StepBatches step[SLOTS];
    Arena *arena[SLOTS];
    int64_t next; // the step loader_next gives next
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; // of the three below
    pthread_cond_t changed;
    int64_t made;     // steps below this one are ready
    int64_t released; // slots of steps below this one may be filled anew
    bool stop;
};

static bool may_fill(Loader *l, int64_t step)
{
    pthread_mutex_lock(&l->lock);
    while (!l->stop && step >= l->released + SLOTS) pthread_cond_wait(&l->changed, &l->lock);
    bool stop = l->stop;
    pthread_mutex_unlock(&l->lock);
    return !stop;
}

static void *prefetch(void *arg)
{
    Loader *l = arg;
    for (int64_t step = l->made; step < l->config.steps && may_fill(l, step); step++) {
        fill_step(&l->step[step % SLOTS], l->arena[step % SLOTS], &l->config, &l->plan, step);
        pthread_mutex_lock(&l->lock);
        l->made = step + 1;
        pthread_cond_signal(&l->changed);
        pthread_mutex_unlock(&l->lock);
    }
    return NULL;
}

int loader_open(Loader **out, const LoaderConfig *c, int64_t first_step)
{
    ASSERT(c->batch > 0 && c->data_size > 0 && dataset_rows(c->data) > 0);
    Loader *l = xcalloc(1, sizeof *l);
    int status;
    l->config = *c;
    l->next = l->made = l->released = first_step;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    plan_init(&l->plan, c->batch);
    for (int i = 0; i < SLOTS; i++) TRY_DONE(arena_open(&l->arena[i], "loader", slot_bytes(c), false));
    l->started = pthread_create(&l->thread, NULL, prefetch, l) == 0;
    status = l->started ? OK : fail(E_FAILED, "loader", "check `ulimit -u`", "cannot start the prefetch thread");
done:
    if (status < 0) {
        loader_close(l);
        return status;
    }
    *out = l;
    return OK;
}

void loader_close(Loader *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (l->started) pthread_join(l->thread, NULL);
    for (int i = 0; i < SLOTS; i++) arena_free(l->arena[i]);
    plan_free(&l->plan);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

int loader_next(Loader *l, const StepBatches **out)
{
    if (l->next >= l->config.steps)
        return fail(E_FAILED, "loader", NULL, "step %lld of a run of %lld", (long long)l->next,
                    (long long)l->config.steps);
    pthread_mutex_lock(&l->lock);
    l->released = l->next; // the caller is done with the step before
    pthread_cond_signal(&l->changed);
    while (l->made <= l->next) pthread_cond_wait(&l->changed, &l->lock);
    pthread_mutex_unlock(&l->lock);
    *out = &l->step[l->next % SLOTS];
    l->next++;
    return OK;
}

// ---- bounds ---------------------------------------------------------------------------------------------------------
// counter: a measuring arena
static void widen(LoaderBounds *b, const LoaderConfig *c, const StepPlan *p, Arena *counter)
{
    b->micros = MAX(b->micros, p->pack.n_micro);
    arena_reset(counter, 0);
    carve_lists(&(StepBatches){.n = count_owned(p, c->data_rank)}, counter);
    for (int m = 0; m < p->pack.n_micro; m++) {
        const Micro *micro = &p->pack.micro[m];
        b->T = MAX(b->T, micro->tokens);
        b->S = MAX(b->S, micro->rows);
        b->M = MAX(b->M, trained_tokens(c, p, micro));
        if (p->owner[m] == c->data_rank) carve_micro(&(Batch){0}, counter, c, p, micro);
    }
}

// Without looking at the steps: no micro-batch holds more than micro_tokens or one row, nor more rows than the shortest ones
// that fit, nor more trained tokens than the most trained rows that many.
static LoaderBounds loose_bounds(const LoaderConfig *c)
{
    int shortest = INT32_MAX, trained = 0, longest = (int)dataset_stats(c->data).longest;
    for (int64_t i = 0; i < dataset_rows(c->data); i++) {
        const Row *r = dataset_row(c->data, i);
        shortest = MIN(shortest, r->n);
        trained = MAX(trained, r->trained);
    }
    int T = c->pack ? MAX(longest, c->micro_tokens) : longest;
    int S = c->pack ? MAX(1, MIN(c->batch, T / MAX(shortest, 1))) : 1;
    int64_t M = MIN((int64_t)S * trained, T);
    return (LoaderBounds){.T = (int)MIN((int64_t)T, (int64_t)S * longest), .S = S, .M = (int)M, .micros = c->batch};
}

// The memory of a long run is that of its first steps: nothing is laid out by it.
LoaderBounds loader_bounds(const LoaderConfig *c)
{
    const bool all = c->steps <= SCANNED_POSITIONS / c->batch;
    LoaderBounds b = {0};
    Arena *counter;
    StepPlan p;
    if (arena_open(&counter, "loader", 0, true) < 0) return loose_bounds(c);
    plan_init(&p, c->batch);
    for (int64_t step = 0; step < (all ? c->steps : MIN(c->steps, SAMPLED_STEPS)); step++) {
        plan_step(&p, c, step);
        widen(&b, c, &p, counter);
    }
    const size_t memory = (size_t)MIN(SLOTS, c->steps) * arena_resident(slot_bytes(c), arena_peak(counter));
    if (!all) b = loose_bounds(c);
    b.memory = memory;
    plan_free(&p);
    arena_free(counter);
    return b;
}
