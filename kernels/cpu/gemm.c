// Products with packed weights: cuts y into tasks of (rows of x) x (panels), prepares each task's operands in the thread's
// scratch, and lets the instruction set's block do the rest. Tasks are handed out dynamically; no element's sum is cut.
#include "gemm.h"
#include "isa_kernels.h"
#include <string.h>

const GemmKernels *gemm_kernels(const Device *d)
{
    static const GemmKernels *const table[ISA_COUNT] = {
        [ISA_GENERIC] = &gemm_dnnl,
#if defined(__x86_64__)
        [ISA_AVX2] = &gemm_avx2,
        [ISA_AVX512_BF16] = &gemm_avx512,
#endif
    };
    return table[cpu_isa_of(d)];
}

bool gemm_must_stage(DType words, DType t, int64_t ldx, int rows)
{
    enum { WAY = 4096, WAYS = 8 }; // rows a multiple of WAY apart share the lines of one set of L1
    return words != t || (rows > WAYS && ldx * (int64_t)dtype_size(t) % WAY == 0);
}

int64_t gemm_staged_ld(DType words, int K)
{
    int64_t line = CACHE_LINE / (int64_t)dtype_size(words);
    return ROUND_UP(K, 2 * line) + line; // an odd number of lines
}

GemmSum gemm_stage(const GemmKernels *k, DType words, void *to, const void *x, DType t, int64_t ldx, int rows, int K)
{
    int64_t ld = gemm_staged_ld(words, K), size = (int64_t)dtype_size(words);
    for (int i = 0; i < rows; i++) {
        void *row = (char *)to + i * ld * size;
        if (words == t)
            memcpy(row, cpu_at(x, t, i * ldx), (size_t)(K * size));
        else
            k->to_f32(row, cpu_at(x, t, i * ldx), t, K);
    }
    return gemm_rows(words, to, ld, NULL, K);
}

enum {
    X_BYTES = 1024 * 1024, // of x that stay near while panels stream past
    LEAST_ROWS = 28,       // of a task, when there are threads for more tasks
    TURN_ROWS = 252,       // at least, that share a turned panel: it costs about as much as 12 rows
    TASKS_PER_THREAD = 4,  // at least, so that threads end together
    STAGED_PANELS = 8,     // of a task that stages its rows, at most
};

typedef struct Plan { // how a product is cut, and what a task prepares
    const GemmProduct *g;
    const GemmKernels *k;
    DType words;
    int chunk, chunks;                     // rows of a chunk, whole tiles; chunks
    int panels, group;                     // panels in all, and of a task
    int sum[2];                            // length of each term's sum
    bool make_panel[2];                    // the panel is turned or widened, not read where it lies
    bool stage[2];                         // rows of x are copied or widened first
    size_t panel_at[2], rows_at[2], bytes; // in scratch
} Plan;

static void plan_cut(Plan *p, int threads)
{
    const GemmProduct *g = p->g;
    int64_t fit = X_BYTES / (MAX(p->sum[0], 1) * (int64_t)dtype_size(p->words)); // rows of a chunk
    int most = (int)MAX(p->make_panel[0] ? TURN_ROWS : LEAST_ROWS, fit);
    int chunks = (g->T + most - 1) / most;
    int wanted = TASKS_PER_THREAD * threads; // tasks
    p->panels = panel_count(g->columns);
    if ((int64_t)chunks * p->panels < wanted)
        chunks = MAX(chunks, MIN((wanted + p->panels - 1) / p->panels, g->T / LEAST_ROWS));
    chunks = MAX(chunks, 1);
    p->chunk = ROUND_UP((g->T + chunks - 1) / chunks, p->k->tile_rows);
    p->chunks = (g->T + p->chunk - 1) / p->chunk;
}

static size_t reserve(Plan *p, size_t bytes)
{
    size_t at = p->bytes;
    p->bytes += ROUND_UP(bytes, CACHE_LINE);
    return at;
}

static Plan plan_product(const Device *d, const GemmProduct *g)
{
    Plan p = {.g = g, .k = gemm_kernels(d)};
    p.words = gemm_words(p.k, g->t, g->term[0].w->t);
    if (g->terms > 1 && gemm_words(p.k, g->t, g->term[1].w->t) != p.words) p.words = DT_F32;
    for (int i = 0; i < g->terms; i++) {
        const Packed *w = g->term[i].w;
        p.sum[i] = g->back ? w->N : w->K;
        p.make_panel[i] = g->back || w->t != p.words;
    }
    plan_cut(&p, cpu_threads(d));
    for (int i = 0; i < g->terms; i++) {
        if (p.make_panel[i]) p.panel_at[i] = reserve(&p, panel_bytes(p.words, ROUND_UP(p.sum[i], PANEL)));
        p.stage[i] = gemm_must_stage(p.words, g->t, g->term[i].ldx, MIN(p.chunk, g->T));
        size_t row = (size_t)gemm_staged_ld(p.words, p.sum[i]) * dtype_size(p.words);
        if (p.stage[i]) p.rows_at[i] = reserve(&p, (size_t)p.chunk * row);
    }
    int64_t spare = (int64_t)p.chunks * p.panels / (2 * TASKS_PER_THREAD * cpu_threads(d));
    p.group = p.stage[0] ? (int)MAX(1, MIN(spare, STAGED_PANELS)) : 1;
    return p;
}

static const uint32_t *operand_panel(const Plan *p, int term, int panel, char *scratch)
{
    const Packed *w = p->g->term[term].w;
    if (!p->make_panel[term]) return packed_panel(w, panel);
    uint32_t *to = (uint32_t *)(scratch + p->panel_at[term]);
    if (p->g->back)
        p->k->turn(to, p->words, w, panel, 0, panel_count(w->N));
    else
        p->k->widen((float *)to, packed_panel(w, panel), w->K);
    return to;
}

// Rows [t0, t1) of a term's x, as the block wants them
static GemmSum operand_rows(const Plan *p, int term, int t0, int t1, char *scratch)
{
    const GemmTerm *x = &p->g->term[term];
    const void *from = cpu_at(x->x, p->g->t, t0 * x->ldx);
    if (!p->stage[term]) return gemm_rows(p->words, from, x->ldx, NULL, p->sum[term]);
    return gemm_stage(p->k, p->words, scratch + p->rows_at[term], from, p->g->t, x->ldx, t1 - t0, p->sum[term]);
}

static GemmOut out_at(const GemmOut *o, int row, int column)
{
    GemmOut at = *o;
    int64_t i = row * o->ld + column;
    at.y = cpu_row(o->y, o->t, i);
    if (o->add) at.add = cpu_at(o->add, o->t, i);
    if (o->bias) at.bias = o->bias + column;
    return at;
}

static void run_task(const Plan *p, int chunk, int group, char *scratch)
{
    int t0 = chunk * p->chunk, t1 = MIN(t0 + p->chunk, p->g->T);
    GemmSum sums[2];
    for (int i = 0; i < p->g->terms; i++) sums[i] = operand_rows(p, i, t0, t1, scratch);
    int end = MIN(p->panels, (group + 1) * p->group);
    for (int panel = group * p->group; panel < end; panel++) {
        for (int i = 0; i < p->g->terms; i++) sums[i].panel = operand_panel(p, i, panel, scratch);
        GemmOut out = out_at(&p->g->out, t0, panel * PANEL);
        p->k->block(p->words, sums, p->g->terms, t1 - t0, &out, MIN(PANEL, p->g->columns - panel * PANEL));
    }
}

void gemm_product(Device *d, const GemmProduct *g)
{
    if (g->T <= 0 || g->columns <= 0) return;
    const Plan p = plan_product(d, g);
    if (cpu_only_notes(d, p.bytes, 0)) return;
    int groups = (p.panels + p.group - 1) / p.group;
    int team = cpu_team(d, (int64_t)g->T * p.panels * p.sum[0]);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(team)
    for (int i = 0; i < p.chunks; i++)
        for (int j = 0; j < groups; j++) run_task(&p, i, j, cpu_thread_scratch(d, p.bytes));
}
