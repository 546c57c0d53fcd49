// linear.c: a linear layer as the decoder sees it. y = x·Wᵀ + bias + scale · drop(x)·Aᵀ·Bᵀ (+ residual), where the low-rank product
// runs in the accumulators of the base product. Backward, with S = scale·drop(x)·Aᵀ and dS = scale·dy·B:
//   dB = dyᵀ·S    dA = dSᵀ·drop(x)    dx = dy·W + drop'(dS·A)    dW = dyᵀ·x    dbias = Σ dy
#include "model/decoder_impl.h"

bool linear_trained(const Param *p, const Param *bias)
{
    return p->slot >= 0 || p->adapter || (bias && bias->slot >= 0);
}

// The adapter's input: x, or x with this layer's dropout mask (made anew in backward from the same counters).
static const void *adapter_input(Activations *a, const LinearIn *in, int64_t *ld)
{
    const Adapter *ad = in->p->adapter;
    Device *d = a->m->dev;
    *ld = in->ldx;
    if (!a->dropping || ad->dropout <= 0) return in->x;
    d->op.dropout(d, a->m->t, a->drop, in->p->K, in->x, in->ldx, a->row_key, ad->stream, ad->dropout, false,
                  in->p->col0, in->p->K, a->T);
    *ld = in->p->K;
    return a->drop;
}

void linear_forward(Activations *a, const LinearIn *in, void *y, int64_t ldy, const void *residual)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Adapter *ad = in->p->adapter;
    LowRank lr = {0};
    if (ad) {
        int64_t ld;
        const void *x = adapter_input(a, in, &ld);
        d->op.lora_s(d, t, in->s, ad->R, x, ld, &ad->A, ad->scale, a->T);
        lr = (LowRank){.R = ad->R, .s = in->s, .lds = ad->R, .w = &ad->B};
    }
    d->op.linear_fwd(d, t, y, ldy, in->x, in->ldx, &in->p->packed, ad ? &lr : NULL, in->bias ? in->bias->vec : NULL,
                     residual, a->T);
}

float *grad_begin(Activations *a, GradSet *g, int slot, bool *accumulate)
{
    float *direct = grad_direct(g, slot);
    *accumulate = direct != NULL;
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

int linear_backward(Activations *a, const LinearIn *in, void *dx, int64_t lddx, bool accumulate, const void *dy,
                    int64_t lddy, GradSet *g)
{
    Device *d = a->m->dev;
    const DType t = a->m->t;
    const Param *p = in->p;
    const Adapter *ad = p->adapter;
    LowRank lr = {0};
    const bool dropping = ad && a->dropping && ad->dropout > 0;
    if (ad) {
        int64_t ld;
        const void *x = adapter_input(a, in, &ld);
        d->op.lora_ds(d, t, a->ds, ad->R, dy, lddy, &ad->B, ad->scale, a->T);
        TRY(weight_gradient(a, g, ad->slot_b, dy, lddy, in->s, ad->R, p->N, ad->R));
        TRY(weight_gradient(a, g, ad->slot_a, a->ds, ad->R, x, ld, ad->R, p->K));
        lr = (LowRank){.R = ad->R, .s = a->ds, .lds = ad->R, .w = &ad->A};
    }
    if (p->slot >= 0) TRY(weight_gradient(a, g, p->slot, dy, lddy, in->x, in->ldx, p->N, p->K));
    if (in->bias && in->bias->slot >= 0) {
        bool add;
        float *db = grad_begin(a, g, in->bias->slot, &add);
        d->op.bias_grad(d, t, db, dy, lddy, p->N, add, a->T);
        TRY(grad_done(a, g, in->bias->slot));
    }
    if (!dx) return OK;
    d->op.linear_dx(d, t, dx, lddx, dy, lddy, &p->packed, ad && !dropping ? &lr : NULL, accumulate, a->T);
    if (!dropping) return OK;
    d->op.linear_dx(d, t, a->drop, p->K, a->ds, ad->R, &ad->A, NULL, false, a->T); // dS·A, then through the mask
    d->op.dropout(d, t, dx, lddx, a->drop, p->K, a->row_key, ad->stream, ad->dropout, true, p->col0, p->K, a->T);
    return OK;
}
