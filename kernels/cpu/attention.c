// attention: packed, causal, grouped-query attention with cache, window and softcap.
// Owns the references and the drivers that cut the work into tasks. Does not own the inner loops:
// attention_kernels.h, spelled once for all instruction sets.
//
// For query i and key j of a sequence, in head h (k/v head h / (NH / KV)), with off = k_len - q_len:
//   z = scale q.k      s = z, or cap tanh(z / cap)      visible: j <= i + off and (no window or j > i + off -
//   window) lse = log sum_j exp(s)      p = exp(s - lse)        o = sum_j p v delta = dout.o     dp = dout.v
//   dz = p (dp - delta) (1 - (s/cap)^2 with softcap) dv += p dout       dq += scale dz k                 dk
//   += scale dz q
// Saved for backward: o and lse. FLOPs forward 4 D per visible pair and head, backward 10 D; bytes are
// negligible beside. lse is (NH, TQ), TQ = max over sequences of q_start + q_len. Rows that belong to no
// sequence are left as they are.
#include "isa_kernels.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int query_rows(const AttnShape *a)
{
    int rows = 0;
    for (int s = 0; s < a->S; s++) rows = MAX(rows, a->q_start[s] + a->q_len[s]);
    return rows;
}

// ---- references
// -----------------------------------------------------------------------------------------------------
typedef struct Visible { // keys [from, to) of a query
    int from, to;
} Visible;

static Visible visible_keys(const AttnShape *a, int s, int i)
{
    int to = i + a->k_len[s] - a->q_len[s] + 1;
    return (Visible){a->window ? MAX(to - a->window, 0) : 0, to};
}

static double dot_ref(DType t, const void *x, int64_t x_at, const void *y, int64_t y_at, int n)
{
    double sum = 0;
    for (int c = 0; c < n; c++) sum += (double)cpu_load(x, t, x_at + c) * cpu_load(y, t, y_at + c);
    return sum;
}

static double score_ref(const AttnShape *a, double dot)
{
    double z = a->scale * dot, cap = a->softcap;
    return cap > 0 ? cap * tanh(z / cap) : z;
}

// One query row of one head: p (k_len) is scratch. Returns log-sum-exp.
static double attn_row_ref(DType t, void *o, int64_t o_at, const void *q, int64_t q_at, const void *k, const void *v,
                           int64_t kv_at, int64_t ldkv, const AttnShape *a, Visible see, double *p)
{
    double top = -INFINITY, sum = 0;
    for (int j = see.from; j < see.to; j++) {
        p[j] = score_ref(a, dot_ref(t, q, q_at, k, kv_at + j * ldkv, a->D));
        top = fmax(top, p[j]);
    }
    for (int j = see.from; j < see.to; j++) sum += p[j] = exp(p[j] - top);
    for (int c = 0; c < a->D; c++) {
        double out = 0;
        for (int j = see.from; j < see.to; j++) out += p[j] * cpu_load(v, t, kv_at + j * ldkv + c);
        cpu_store(o, t, o_at + c, (float)(out / sum));
    }
    return top + log(sum);
}

void attn_fwd_ref(Device *d, DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k,
                  const void *v, int64_t ldkv, const AttnShape *a)
{
    int TQ = query_rows(a), group = a->NH / a->KV;
    for (int s = 0; s < a->S; s++) {
        double *p = cpu_thread_scratch(d, (size_t)a->k_len[s] * sizeof(double));
        for (int h = 0; h < a->NH; h++)
            for (int i = 0; i < a->q_len[s]; i++) {
                int64_t row = a->q_start[s] + i, kv_at = a->k_start[s] * ldkv + h / group * a->D;
                double l = attn_row_ref(t, o, row * ldo + h * a->D, q, row * ldq + h * a->D, k, v, kv_at, ldkv, a,
                                        visible_keys(a, s, i), p);
                if (lse) lse[(int64_t)h * TQ + row] = (float)l;
            }
    }
}

typedef struct BwdRow { // one query row of one head; positions are element offsets
    const void *dout, *o, *q, *k, *v;
    int64_t o_at, q_at, kv_at, ldkv;
    double lse;
    Visible see;
} BwdRow;

// dq (D) is stored, dk and dv (k_len, D) are added to.
static void attn_bwd_row_ref(DType t, const AttnShape *a, const BwdRow *r, double *dq, double *dk, double *dv)
{
    int D = a->D;
    double delta = dot_ref(t, r->dout, r->o_at, r->o, r->o_at, D);
    for (int c = 0; c < D; c++) dq[c] = 0;
    for (int j = r->see.from; j < r->see.to; j++) {
        int64_t at = r->kv_at + j * r->ldkv;
        double s = score_ref(a, dot_ref(t, r->q, r->q_at, r->k, at, D)), p = exp(s - r->lse);
        double dz = p * (dot_ref(t, r->dout, r->o_at, r->v, at, D) - delta) * a->scale;
        if (a->softcap > 0) dz *= 1 - s / a->softcap * (s / a->softcap);
        for (int c = 0; c < D; c++) {
            dq[c] += dz * cpu_load(r->k, t, at + c);
            dk[(int64_t)j * D + c] += dz * cpu_load(r->q, t, r->q_at + c);
            dv[(int64_t)j * D + c] += p * cpu_load(r->dout, t, r->o_at + c);
        }
    }
}

static void store_rows_ref(DType t, void *y, int64_t at, int64_t ld, const double *x, int rows, int n)
{
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < n; c++) cpu_store(y, t, at + i * ld + c, (float)x[i * n + c]);
}

void attn_bwd_ref(Device *d, DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout,
                  const void *o, int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k,
                  const void *v, int64_t ldkv, const AttnShape *a)
{
    int TQ = query_rows(a), group = a->NH / a->KV, D = a->D;
    for (int s = 0; s < a->S; s++) {
        size_t keys = (size_t)a->k_len[s] * D;
        double *dk_sum = cpu_thread_scratch(d, (2 * keys + D) * sizeof(double)), *dv_sum = dk_sum + keys;
        double *dq_row = dv_sum + keys;
        for (int g = 0; g < a->KV; g++) {
            memset(dk_sum, 0, 2 * keys * sizeof(double));
            for (int h = g * group; h < (g + 1) * group; h++)
                for (int i = 0; i < a->q_len[s]; i++) {
                    int64_t row = a->q_start[s] + i;
                    BwdRow r = {dout,
                                o,
                                q,
                                k,
                                v,
                                row * ldo + h * D,
                                row * ldq + h * D,
                                a->k_start[s] * ldkv + g * D,
                                ldkv,
                                lse[(int64_t)h * TQ + row],
                                visible_keys(a, s, i)};
                    attn_bwd_row_ref(t, a, &r, dq_row, dk_sum, dv_sum);
                    store_rows_ref(t, dq, row * lddq + h * D, lddq, dq_row, 1, D);
                }
            store_rows_ref(t, dk, a->k_start[s] * lddkv + g * D, lddkv, dk_sum, a->k_len[s], D);
            store_rows_ref(t, dv, a->k_start[s] * lddkv + g * D, lddkv, dv_sum, a->k_len[s], D);
        }
    }
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
typedef struct Task {
    int s, head;    // forward: k/v head
    int row0, rows; // forward: rows of the group, counted over (query, head)
    int64_t cost;   // visible pairs
    float *dkv;     // backward: this head's share of dk and dv
} Task;

static int by_cost(const void *x, const void *y) // dearest first, so that the last ones to finish are short
{
    const Task *a = x, *b = y;
    if (a->cost != b->cost) return a->cost < b->cost ? 1 : -1;
    return a->s != b->s ? a->s - b->s : a->head != b->head ? a->head - b->head : a->row0 - b->row0;
}

static int64_t total_cost(const Task *task, int64_t tasks)
{
    int64_t cost = 0;
    for (int64_t i = 0; i < tasks; i++) cost += task[i].cost;
    return cost;
}

static void check_shape(const AttnShape *a)
{
    ASSERT(a->NH > 0 && a->KV > 0 && a->NH % a->KV == 0);
    ASSERT(a->D > 0 && a->D % 2 == 0);
    ASSERT(a->scale > 0 && a->softcap >= 0 && a->window >= 0);
    for (int s = 0; s < a->S; s++) ASSERT(a->q_len[s] >= 0 && a->k_len[s] >= a->q_len[s]);
}

// Keys that a query sees; the one in the middle stands for all of a task.
static int64_t keys_seen(const AttnShape *a, int s, int i)
{
    Visible see = visible_keys(a, s, i);
    return see.to - see.from;
}

static int64_t fwd_tasks(const AttnShape *a, Task *task) // fills the list unless NULL; returns its length
{
    int64_t tasks = 0;
    int group = a->NH / a->KV;
    for (int s = 0; s < a->S; s++)
        for (int head = 0; head < a->KV; head++)
            for (int row0 = 0; row0 < a->q_len[s] * group; row0 += ATTN_TASK_ROWS, tasks++) {
                int rows = MIN(ATTN_TASK_ROWS, a->q_len[s] * group - row0);
                if (task)
                    task[tasks] = (Task){.s = s,
                                         .head = head,
                                         .row0 = row0,
                                         .rows = rows,
                                         .cost = rows * keys_seen(a, s, (row0 + rows / 2) / group)};
            }
    return tasks;
}

void attn_fwd(Device *d, DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k,
              const void *v, int64_t ldkv, const AttnShape *a)
{
    check_shape(a);
    const IsaKernels *isa = isa_kernels(d);
    AttnJob job = {.t = t,
                   .a = a,
                   .TQ = query_rows(a),
                   .q = q,
                   .k = k,
                   .v = v,
                   .ldq = ldq,
                   .ldkv = ldkv,
                   .o = o,
                   .ldo = ldo,
                   .lse = lse};
    int64_t tasks = fwd_tasks(a, NULL);
    size_t bytes = isa->attn_fwd_scratch(t, a->D);
    if (!tasks || cpu_only_notes(d, bytes, (size_t)tasks * sizeof(Task))) return;
    Task *task = cpu_shared_scratch(d, (size_t)tasks * sizeof *task);
    fwd_tasks(a, task);
    qsort(task, (size_t)tasks, sizeof *task, by_cost);
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(d, total_cost(task, tasks) * a->D / 8))
    for (int64_t i = 0; i < tasks; i++)
        isa->attn_fwd_task(&job, task[i].s, task[i].head, task[i].row0, task[i].rows, cpu_thread_scratch(d, bytes));
}

// Where a sequence's shares lie: heads of a wave one after the other, each (k_len + ATTN_SPARE_KEYS, 2, columns).
static int64_t share_floats(const AttnShape *a, int s)
{
    return (int64_t)(a->k_len[s] + ATTN_SPARE_KEYS) * 2 * attn_columns(a->D);
}

// The k/v heads of one wave: as many as keep the shares of their query heads within SHARE_BYTES, which only long rows of
// large models exceed (32 heads of 128 and 8192 tokens fill it).
static int wave_heads(const AttnShape *a)
{
    enum { SHARE_BYTES = 256 << 20 };
    int64_t one = 0;
    for (int s = 0; s < a->S; s++) one += share_floats(a, s) * (a->NH / a->KV) * (int64_t)sizeof(float);
    return (int)MIN(MAX(SHARE_BYTES / MAX(one, 1), 1), a->KV);
}

static int64_t bwd_tasks(const AttnShape *a, int kv0, int kv1, Task *task, float *share)
{
    int64_t tasks = 0;
    int group = a->NH / a->KV;
    for (int s = 0; s < a->S; s++)
        for (int head = kv0 * group; head < kv1 * group; head++, share += share_floats(a, s))
            task[tasks++] =
                (Task){.s = s, .head = head, .dkv = share, .cost = a->q_len[s] * keys_seen(a, s, a->q_len[s] / 2)};
    return tasks;
}

// dk and dv of the wave's heads: the sum over the group, in head order.
static void bwd_sum_heads(Device *d, DType t, void *dk, void *dv, int64_t lddkv, const AttnShape *a, int kv0, int kv1,
                          const float *share)
{
    const IsaKernels *isa = isa_kernels(d);
    int group = a->NH / a->KV, columns = attn_columns(a->D);
    for (int s = 0; s < a->S; s++) {
        int64_t next = share_floats(a, s), heads = kv1 - kv0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, heads *group *next))
        for (int64_t i = 0; i < heads * a->k_len[s]; i++) {
            int64_t head = i % heads, key = i / heads;
            const float *x = share + head * group * next + key * 2 * columns;
            int64_t at = (a->k_start[s] + key) * lddkv + (kv0 + head) * a->D;
            isa->attn_sum_heads(t, cpu_row(dk, t, at), x, next, group, a->scale, a->D);
            isa->attn_sum_heads(t, cpu_row(dv, t, at), x + columns, next, group, 1, a->D);
        }
        share += heads * group * next;
    }
}

void attn_bwd(Device *d, DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout,
              const void *o, int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k, const void *v,
              int64_t ldkv, const AttnShape *a)
{
    check_shape(a);
    if (a->S == 0) return;
    const IsaKernels *isa = isa_kernels(d);
    AttnJob job = {.t = t,
                   .a = a,
                   .TQ = query_rows(a),
                   .q = q,
                   .k = k,
                   .v = v,
                   .ldq = ldq,
                   .ldkv = ldkv,
                   .o = (void *)o,
                   .ldo = ldo,
                   .lse = (float *)lse,
                   .dout = dout,
                   .dq = dq,
                   .lddq = lddq};
    int wave = wave_heads(a), group = a->NH / a->KV;
    size_t list = ROUND_UP((size_t)a->S * (size_t)(wave * group) * sizeof(Task), CACHE_LINE), floats = 0;
    for (int s = 0; s < a->S; s++) floats += (size_t)share_floats(a, s) * (size_t)(wave * group);
    size_t bytes = isa->attn_bwd_scratch(t, a->D);
    if (cpu_only_notes(d, bytes, list + floats * sizeof(float))) return;
    Task *task = cpu_shared_scratch(d, list + floats * sizeof(float));
    float *share = (float *)((char *)task + list);
    for (int kv0 = 0; kv0 < a->KV; kv0 += wave) {
        int kv1 = MIN(kv0 + wave, a->KV);
        int64_t tasks = bwd_tasks(a, kv0, kv1, task, share);
        qsort(task, (size_t)tasks, sizeof *task, by_cost);
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(d, total_cost(task, tasks) * a->D / 8))
        for (int64_t i = 0; i < tasks; i++)
            isa->attn_bwd_task(&job, task[i].s, task[i].head, task[i].dkv, cpu_thread_scratch(d, bytes));
        bwd_sum_heads(d, t, dk, dv, lddkv, a, kv0, kv1, share);
    }
}
