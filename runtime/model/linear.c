// linear.c: a linear layer as the decoder sees it. y = x·Wᵀ + bias + scale · drop(x)·Aᵀ·Bᵀ (+ residual), where the low-rank product
// runs in the accumulators of the base product. Backward, with S = scale·drop(x)·Aᵀ and dS = scale·dy·B:
//   dB = dyᵀ·S    dA = dSᵀ·drop(x)    dx = dy·W + drop'(dS·A)    dW = dyᵀ·x    dbias = Σ dy
// With DoRA (dora.c), u = drop(x)·Wᵀ + S·Bᵀ:  y = gain ⊙ u + bias (+ residual); with dropout, as PEFT has it, the base's own product
// goes through undropped: y = x·Wᵀ + S·Bᵀ + bias + (gain - 1) ⊙ u. Backward, u is computed again, and with du = gain ⊙ dy:
//   dm = 1/norm ⊙ Σ dy ⊙ u    dB = duᵀ·S    dS = scale·du·B    dx = du·W + dS·A, or dy·W + drop'(((gain - 1) ⊙ dy)·W + dS·A)
#include "model/decoder_impl.h"

bool linear_trained(const Param *p, const Param *bias)
{
    return p->slot >= 0 || p->adapter || (bias && bias->slot >= 0);
}

static bool drops(const Activations *a, const Adapter *ad)
{
    return ad && a->dropping && ad->dropout > 0;
}

// The adapter's input: x, or x with this layer's dropout mask (made anew in backward from the same counters).
static const void *adapter_input(Activations *a, const LinearIn *in, int64_t *ld)
{
    const Adapter *ad = in->p->adapter;
    Device *d = a->m->dev;
    *ld = in->x.ld;
    if (!drops(a, ad)) return in->x.at;
    d->op.dropout(d, a->m->t, a->drop, in->p->K, in->x.at, in->x.ld, a->row_key, ad->stream, ad->dropout, false,
                  in->p->col0, in->p->K, a->T);
    *ld = in->p->K;
    return a->drop;
}

// ---- where s and ds lie: behind the rows of x and dy where the adapter is bordered and they have room, so that its product and the
// base's are one; or by themselves -----------------------------------------------------------------------------------
typedef struct Inner { // (T,R)
    void *at;
    int64_t ld;
} Inner;

static Inner inner_of(const Activations *a, const Adapter *ad, const Columns *of, int width, void *apart)
{
    if (!ad->bordered || of->room < ad->R) return (Inner){apart, ad->R};
    return (Inner){offset(of->at, (size_t)width, a->m->t), of->ld};
}

static LowRank low_rank(const Adapter *ad, Inner s, const Packed *w)
{
    return (LowRank){.R = ad->R, .s = s.at, .lds = s.ld, .w = w};
}

static void copy_inner(Activations *a, Inner to, Inner from, int R)
{
    Device *d = a->m->dev;
    if (to.at != from.at) d->op.scale_cols(d, a->m->t, to.at, to.ld, from.at, from.ld, NULL, NULL, NULL, R, a->T);
}

// S as it was kept for backward
static Inner kept_inner(const Activations *a, const LinearIn *in)
{
    const Adapter *ad = in->p->adapter;
    return in->s ? (Inner){in->s, ad->R} : inner_of(a, ad, &in->x, in->p->K, NULL);
}

// ---- forward --------------------------------------------------------------------------------------------------------
// y = gain ⊙ u + bias + residual; x is the adapter's input
static void dora_forward(Activations *a, const LinearIn *in, const LowRank *lr, const void *x, int64_t ldx, void *y,
                         int64_t ldy, const void *residual)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Param *p = in->p;
    const float *bias = in->bias ? in->bias->vec : NULL;
    ASSERT(!residual || residual != y);
    if (!drops(a, p->adapter)) {
        d->op.linear_fwd(d, t, y, ldy, x, ldx, &p->packed, lr, NULL, NULL, a->T);
        d->op.scale_cols(d, t, y, ldy, y, ldy, p->adapter->gain, bias, residual, p->N, a->T);
        return;
    }
    d->op.linear_fwd(d, t, a->u, p->N, x, ldx, &p->packed, lr, NULL, NULL, a->T);
    d->op.linear_fwd(d, t, y, ldy, in->x.at, in->x.ld, &p->packed, lr, bias, residual, a->T);
    d->op.scale_cols(d, t, y, ldy, a->u, p->N, p->adapter->gain_less, NULL, y, p->N, a->T);
}

void linear_forward(Activations *a, const LinearIn *in, void *y, int64_t ldy, const void *residual)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Param *p = in->p;
    const Adapter *ad = p->adapter;
    LowRank lr = {0};
    if (ad) {
        int64_t ld;
        const void *x = adapter_input(a, in, &ld);
        const Inner s = inner_of(a, ad, &in->x, p->K, in->s);
        d->op.lora_s(d, t, s.at, s.ld, x, ld, &ad->A, ad->scale, a->T);
        if (a->train) copy_inner(a, kept_inner(a, in), s, ad->R);
        lr = low_rank(ad, s, &ad->B);
        if (ad->dora) {
            dora_forward(a, in, &lr, x, ld, y, ldy, residual);
            return;
        }
    }
    d->op.linear_fwd(d, t, y, ldy, in->x.at, in->x.ld, &p->packed, ad ? &lr : NULL, in->bias ? in->bias->vec : NULL,
                     residual, a->T);
}

// ---- backward -------------------------------------------------------------------------------------------------------
float *grad_begin(Activations *a, GradSet *g, int slot, bool *accumulate)
{
    static float nowhere; // over measuring arenas: an op that is given NULL would take it that no gradient is wanted
    float *direct = grad_direct(g, slot);
    *accumulate = direct != NULL;
    if (arena_measuring(a->m->run)) return &nowhere;
    return direct ? direct : a->dw;
}

int grad_done(Activations *a, GradSet *g, int slot)
{
    return grad_direct(g, slot) ? OK : grad_add(g, slot, a->dw);
}

static int weight_gradient(Activations *a, GradSet *g, int slot, const void *dy, int64_t lddy, const void *x,
                           int64_t ldx, int N, int K)
{
    Device *d = a->m->dev;
    bool accumulate;
    float *dw = grad_begin(a, g, slot, &accumulate);
    d->op.linear_dw(d, a->m->t, dw, dy, lddy, x, ldx, N, K, accumulate, a->T);
    return grad_done(a, g, slot);
}

// The magnitude's gradient; *dy becomes the gradient of u.
static int dora_backward(Activations *a, const LinearIn *in, const void *x, int64_t ldx, Columns *dy, GradSet *g)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Param *p = in->p;
    const Adapter *ad = p->adapter;
    const Columns u = {a->u, p->N + a->room, a->room};
    // behind x again, unless what is multiplied is not x
    const Inner kept = kept_inner(a, in), s = drops(a, ad) ? kept : inner_of(a, ad, &in->x, p->K, in->s);
    const LowRank lr = low_rank(ad, s, &ad->B);
    bool add;
    float *dm = grad_begin(a, g, ad->slot_m, &add);
    copy_inner(a, s, kept, ad->R);
    d->op.linear_fwd(d, t, u.at, u.ld, x, ldx, &p->packed, &lr, NULL, NULL, a->T);
    d->op.scale_cols_bwd(d, t, u.at, u.ld, dm, dy->at, dy->ld, u.at, u.ld, ad->gain, ad->inv_norm, add, p->N, a->T);
    *dy = u;
    return grad_done(a, g, ad->slot_m);
}

// Gradients of A, B and the magnitude, and *ds. *dy becomes du with DoRA.
static int adapter_backward(Activations *a, const LinearIn *in, Columns *dy, Inner *ds, GradSet *g)
{
    Device *d = a->m->dev;
    const Param *p = in->p;
    const Adapter *ad = p->adapter;
    const Inner s = kept_inner(a, in);
    int64_t ld;
    bool add;
    const void *x = adapter_input(a, in, &ld);
    if (ad->dora) TRY(dora_backward(a, in, x, ld, dy, g));
    *ds = inner_of(a, ad, dy, p->N, a->ds);
    float *db = grad_begin(a, g, ad->slot_b, &add);
    d->op.lora_bwd(d, a->m->t, ds->at, ds->ld, db, dy->at, dy->ld, s.at, s.ld, &ad->B, ad->scale, add, a->T);
    TRY(grad_done(a, g, ad->slot_b));
    return weight_gradient(a, g, ad->slot_a, ds->at, ds->ld, x, ld, ad->R, p->K);
}

// What flows back through the mask: dS·A, and with DoRA ((gain - 1) ⊙ dy)·W, where that takes du's place in u.
static void masked_dx(Activations *a, const Param *p, void *dx, int64_t lddx, Columns dy, Columns u, Inner ds)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Adapter *ad = p->adapter;
    if (ad->dora) {
        const LowRank lr = low_rank(ad, ds, &ad->A);
        d->op.scale_cols_bwd(d, t, u.at, u.ld, NULL, dy.at, dy.ld, NULL, 0, ad->gain_less, NULL, false, p->N, a->T);
        d->op.linear_dx(d, t, a->drop, p->K, u.at, u.ld, &p->packed, &lr, false, a->T);
    } else {
        d->op.linear_dx(d, t, a->drop, p->K, ds.at, ds.ld, &ad->A, NULL, false, a->T);
    }
    d->op.dropout(d, t, dx, lddx, a->drop, p->K, a->row_key, ad->stream, ad->dropout, true, p->col0, p->K, a->T);
}

int linear_backward(Activations *a, const LinearIn *in, void *dx, int64_t lddx, bool accumulate, Columns dy, GradSet *g)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Param *p = in->p;
    const Adapter *ad = p->adapter;
    Columns du = dy;
    Inner ds = {0};
    if (ad) TRY(adapter_backward(a, in, &du, &ds, g));
    if (p->slot >= 0) TRY(weight_gradient(a, g, p->slot, dy.at, dy.ld, in->x.at, in->x.ld, p->N, p->K));
    if (in->bias && in->bias->slot >= 0) {
        bool add;
        float *db = grad_begin(a, g, in->bias->slot, &add);
        d->op.bias_grad(d, t, db, dy.at, dy.ld, p->N, add, a->T);
        TRY(grad_done(a, g, in->bias->slot));
    }
    if (!dx) return OK;
    if (drops(a, ad)) {
        d->op.linear_dx(d, t, dx, lddx, dy.at, dy.ld, &p->packed, NULL, accumulate, a->T);
        masked_dx(a, p, dx, lddx, dy, du, ds);
        return OK;
    }
    const LowRank lr = ad ? low_rank(ad, ds, &ad->A) : (LowRank){0};
    d->op.linear_dx(d, t, dx, lddx, du.at, du.ld, &p->packed, ad ? &lr : NULL, accumulate, a->T);
    return OK;
}
