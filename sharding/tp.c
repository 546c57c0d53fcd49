#include "sharding.h"

// Widths are cut in multiples of this where they are large enough: panels of the packed weights and vectors stay whole.
enum { GRAIN = 64 };

static void cut_width(int n, int rank, int size, int *first, int *count)
{
    const int grain = n % GRAIN == 0 && n / GRAIN >= size ? GRAIN : 1;
    Rows r = part_rows(n / grain, rank, size);
    *first = r.row0 * grain;
    *count = r.rows * grain;
}

static void cut_heads(TpCut *c, int rank, int size, int NH, int KV)
{
    const int group = NH / KV; // query heads per key/value head
    if (size <= KV) {
        Rows r = part_rows(KV, rank, size);
        c->kv0 = r.row0;
        c->KV = r.rows;
        c->q0 = r.row0 * group;
        c->NH = r.rows * group;
        c->kv_first = rank;
        c->kv_ranks = 1;
        return;
    }
    int kv = 0; // the key/value head that this rank serves, along with others
    Rows sharing = part_rows(size, kv, KV);
    while (sharing.row0 + sharing.rows <= rank) sharing = part_rows(size, ++kv, KV);
    Rows mine = part_rows(group, rank - sharing.row0, sharing.rows);
    c->kv0 = kv;
    c->KV = 1;
    c->q0 = kv * group + mine.row0;
    c->NH = mine.rows;
    c->kv_first = sharing.row0;
    c->kv_ranks = sharing.rows;
}

int tp_cut(TpCut *out, int rank, int size, int NH, int KV, int F, int V)
{
    ASSERT(rank >= 0 && rank < size && NH % KV == 0);
    const int limit = MIN(MIN(NH, F), V);
    if (size > limit)
        return fail(E_INPUT, "parallel.tensor", tmpf("at most %d for this model", limit),
                    "%d tensor ranks for %d query heads, feed-forward width %d, %d vocabulary rows", size, NH, F, V);
    cut_heads(out, rank, size, NH, KV);
    cut_width(F, rank, size, &out->f0, &out->F);
    cut_width(V, rank, size, &out->v0, &out->V);
    return OK;
}

TpSlab tp_slab(const TpCut *c, TpKind kind, int D, int N, int K)
{
    switch (kind) {
    case TP_ROWS_Q: return (TpSlab){c->q0 * D, c->NH * D, 0, K};
    case TP_ROWS_KV: return (TpSlab){c->kv0 * D, c->KV * D, 0, K};
    case TP_ROWS_F: return (TpSlab){c->f0, c->F, 0, K};
    case TP_ROWS_V: return (TpSlab){c->v0, c->V, 0, K};
    case TP_COLS_Q: return (TpSlab){0, N, c->q0 * D, c->NH * D};
    case TP_COLS_F: return (TpSlab){0, N, c->f0, c->F};
    case TP_WHOLE: break;
    }
    return (TpSlab){0, N, 0, K};
}
