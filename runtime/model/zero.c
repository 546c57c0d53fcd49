// zero.c: parameters over the data-parallel ranks (ZeRO; Rajbhandari et al. 2020). From stage 1 on each rank has the masters and
// moments of its rows only; after the optimizer has moved them, what kernels read is gathered, unit by unit (params_refresh). With
// stage 3 the matrices of the layers are not kept at all: two slots hold a layer's weights each, one that is being used and one that
// is being filled with the next layer's while the kernels run. Embedding, head, vectors and adapters stay whole on each rank.
#include "model/load.h"
#include <stdlib.h>
#include <string.h>

// A layer's place: its packed weights, and the rows as they travel.
typedef struct Slot {
    struct Zero *z;
    void *rows;      // the whole unit, part by part, in the compute type
    int held, asked; // layer whose weights are packed here; whose rows are under way; -1: none
    uint64_t ticket;
} Slot;

struct Zero {
    Model *m;
    Units trained; // over Model.trained
    Piece *piece;  // scratch: of the unit under way
    size_t *start;
    void *rows;   // scratch: a chunk of a unit, as values of the compute type or f32
    size_t bytes; // of all buffers here

    // stage 3: a layer's matrices, the same in every layer
    Units layer;
    ShardTensor *shape;
    ParamId *id;
    Piece *layer_piece;
    size_t *layer_start;
    Slot slot[2];
};

int zero_parts(const Model *m)
{
    return m->zero ? m->mesh->data_size : 1;
}
int zero_part(const Model *m)
{
    return m->zero ? m->mesh->data_rank : 0;
}

// ---- opening --------------------------------------------------------------------------------------------------------
// What the matrix takes at most, over the layers.
static size_t slot_bytes(const Model *m, ParamId id)
{
    size_t bytes = 0;
    for (int l = 0; l < m->cfg.L; l++) bytes = MAX(bytes, ROUND_UP(param_bytes(m, m->layer[l].p[id]), ARENA_ALIGN));
    return bytes;
}

static void place_in_slot(Param *p, char *at)
{
    if (p->adapter && p->adapter->bordered)
        place_bordered(&p->packed, p->adapter, at);
    else
        p->packed.data = at;
}

static void open_slots(struct Zero *z)
{
    Model *m = z->m;
    size_t packed = 0;
    z->shape = xcalloc(P_COUNT, sizeof *z->shape);
    z->id = xcalloc(P_COUNT, sizeof *z->id);
    int n = 0;
    for (int id = 0; id < P_COUNT; id++) {
        const Param *p = m->layer[0].p[id];
        if (!p || !p->gathered) continue;
        z->shape[n] = (ShardTensor){.N = p->N, .K = p->K};
        z->id[n++] = (ParamId)id;
        packed += slot_bytes(m, (ParamId)id);
    }
    units_open(&z->layer, z->shape, n, 1, zero_parts(m));
    z->layer_piece = xcalloc((size_t)n * (size_t)zero_parts(m) + 1, sizeof *z->layer_piece);
    z->layer_start = xcalloc((size_t)zero_parts(m) + 1, sizeof *z->layer_start);
    unit_whole(&z->layer, 0, z->layer_piece, z->layer_start);
    for (int s = 0; s < 2; s++) {
        z->slot[s] = (Slot){.z = z, .held = -1, .asked = -1};
        z->slot[s].rows = arena_alloc(m->run, unit_elements(&z->layer, 0) * dtype_size(m->t));
        char *at = arena_alloc(m->run, packed);
        for (int k = 0; k < n; k++) {
            for (int l = s; l < m->cfg.L; l += 2) place_in_slot(m->layer[l].p[z->id[k]], at);
            at = at ? at + slot_bytes(m, z->id[k]) : NULL;
        }
    }
}

static void open_shards(Model *m)
{
    for (int i = 0; i < m->n_param; i++) {
        Param *p = &m->param[i];
        const Rows part = part_rows(p->N, zero_part(m), zero_parts(m));
        if (p->gathered && p->slot < 0)
            p->shard = arena_alloc(m->run, (size_t)part.rows * (size_t)p->K * dtype_size(m->t));
    }
}

int zero_open(Model *m)
{
    if (!m->zero) return OK;
    struct Zero *z = m->z = xcalloc(1, sizeof *z);
    z->m = m;
    units_open(&z->trained, m->shard, m->n_trained, m->n_units, zero_parts(m));
    z->piece = xcalloc((size_t)z->trained.most * (size_t)zero_parts(m) + 1, sizeof *z->piece);
    z->start = xcalloc((size_t)zero_parts(m) + 1, sizeof *z->start);
    const size_t vectors = unit_elements(&z->trained, m->unit_vectors) * sizeof(float), mark = arena_mark(m->run);
    z->rows = arena_alloc(m->run, MAX(units_largest(&z->trained) * dtype_size(m->t), vectors));
    if (m->zero == 3) open_slots(z);
    z->bytes = arena_mark(m->run) - mark;
    if (m->zero == 3) open_shards(m);
    return OK;
}

void zero_close(Model *m)
{
    struct Zero *z = m->z;
    if (!z) return;
    units_close(&z->trained);
    units_close(&z->layer);
    free(z->piece);
    free(z->start);
    free(z->shape);
    free(z->id);
    free(z->layer_piece);
    free(z->layer_start);
    free(z);
    m->z = NULL;
}

size_t model_exchange_bytes(const Model *m)
{
    return m->z ? m->z->bytes : 0;
}

// ---- after the optimizer --------------------------------------------------------------------------------------------
static void put_own(struct Zero *z, const Piece *p, DType t)
{
    const Trainable *own = &z->m->trained[p->tensor];
    Device *d = z->m->dev;
    const size_t K = (size_t)own->K, skip = (size_t)(p->row0 - own->part.row0) * K;
    if (p->rows)
        d->op.convert(d, offset(z->rows, p->at, t), t, own->master ? own->master + skip : NULL, DT_F32,
                      (size_t)p->rows * K);
}

static void take(struct Zero *z, const Piece *p, DType t)
{
    Model *m = z->m;
    const Trainable *to = &m->trained[p->tensor];
    const void *from = offset(z->rows, p->at, t);
    if (!p->rows) return;
    if (to->packed)
        m->dev->op.linear_pack(m->dev, to->packed, p->row0, p->rows, from, t, to->K);
    else
        m->dev->op.convert(m->dev, to->vec ? to->vec + p->row0 : NULL, DT_F32, from, t, (size_t)p->rows);
}

static int refresh_unit(struct Zero *z, int unit)
{
    Model *m = z->m;
    const Units *u = &z->trained;
    const int n = u->first[unit + 1] - u->first[unit], parts = u->parts, own = zero_part(m);
    const DType t = unit == m->unit_vectors ? DT_F32 : m->t;
    for (int chunk = 0; chunk < unit_chunks(u, unit); chunk++) {
        unit_chunk(u, unit, chunk, z->piece, z->start);
        for (int k = 0; k < n; k++) put_own(z, &z->piece[own * n + k], t);
        TRY(comm_all_gather_parts(m->mesh->data, z->rows, z->start, t));
        for (int k = 0; k < n * parts; k++) take(z, &z->piece[k], t);
    }
    return OK;
}

// The layers' own weights travel when they are needed.
static bool unit_gathered(const struct Zero *z, int unit)
{
    const Units *u = &z->trained;
    const Trainable *t = &z->m->trained[u->order[u->first[unit]]];
    return t->param->gathered && !t->adapter && t->packed;
}

int params_refresh(Model *m)
{
    struct Zero *z = m->z;
    for (int i = 0; !z && i < m->n_trained; i++) {
        Trainable *t = &m->trained[i];
        if (t->packed) m->dev->op.linear_pack(m->dev, t->packed, 0, t->N, t->master, DT_F32, t->K);
    }
    for (int unit = 0; z && unit < m->n_units; unit++)
        if (unit_elements(&z->trained, unit) && !unit_gathered(z, unit)) TRY(refresh_unit(z, unit));
    for (int k = 0; z && k < 2; k++) { // what the slots hold, or are about to, is of the past
        Slot *s = &z->slot[k];
        if (s->asked >= 0) TRY(comm_queue_wait(m->mesh->queue, s->ticket));
        s->held = s->asked = -1;
    }
    dora_changed(m);
    return OK;
}

// ---- stage 3: a layer at a time -------------------------------------------------------------------------------------
static int gather_rows(void *ctx)
{
    Slot *s = ctx;
    return comm_all_gather_parts(s->z->m->mesh->data_bg, s->rows, s->z->layer_start, s->z->m->t);
}

int zero_ask(Model *m, int layer)
{
    struct Zero *z = m->z;
    if (m->zero != 3 || layer < 0 || layer >= m->cfg.L) return OK;
    Slot *s = &z->slot[layer % 2];
    if (s->held == layer || s->asked == layer) return OK;
    ASSERT(s->asked < 0);
    for (int k = 0; k < z->layer.n; k++) {
        const Piece *piece = &z->layer_piece[zero_part(m) * z->layer.n + k];
        const Param *p = m->layer[layer].p[z->id[piece->tensor]];
        const void *from = p->slot >= 0 ? m->trained[p->slot].master : p->shard;
        if (piece->rows)
            m->dev->op.convert(m->dev, offset(s->rows, piece->at, m->t), m->t, from, p->slot >= 0 ? DT_F32 : m->t,
                               (size_t)piece->rows * (size_t)p->K);
    }
    s->asked = layer;
    s->held = -1; // its weights are still there, but nobody will ask for them before these
    s->ticket = comm_queue_post(m->mesh->queue, gather_rows, s);
    return OK;
}

// The adapter of a weight that has come into its slot comes into the border.
static void pack_border(Model *m, Adapter *ad)
{
    Device *d = m->dev;
    d->op.linear_pack(d, &ad->A, 0, ad->A.N, ad->kept_A.data, m->t, ad->A.K);
    d->op.linear_pack(d, &ad->B, 0, ad->B.N, ad->kept_B.data, m->t, ad->B.K);
}

int zero_need(Model *m, int layer)
{
    struct Zero *z = m->z;
    if (m->zero != 3) return OK;
    Slot *s = &z->slot[layer % 2];
    if (s->held == layer) return OK;
    TRY(zero_ask(m, layer));
    TRY(comm_queue_wait(m->mesh->queue, s->ticket));
    for (int k = 0; k < z->layer.n * z->layer.parts; k++) {
        const Piece *piece = &z->layer_piece[k];
        Param *p = m->layer[layer].p[z->id[piece->tensor]];
        if (piece->rows)
            m->dev->op.linear_pack(m->dev, &p->packed, piece->row0, piece->rows, offset(s->rows, piece->at, m->t), m->t,
                                   p->K);
    }
    for (int k = 0; k < z->layer.n; k++) {
        Adapter *ad = m->layer[layer].p[z->id[k]]->adapter;
        if (ad && ad->bordered) pack_border(m, ad);
    }
    s->asked = -1;
    s->held = layer;
    return OK;
}
