// Adapters in the borders of their weights: on a device that has borders a training step asks for one product where s and ds can lie
// behind what the linear reads, and for two where they cannot. The device is a null one, whose linear ops look at their operands.
#include "model/decoder_impl.h"
#include "model/model.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define FAMILY TEST_DIR "/../golden/families/llama_untied"
enum { T = 8, M = T - 1, LINEARS = 7 };

static int one, two; // products of linears with an adapter, forward and backward

static void look(DType t, const void *x, int64_t ldx, int inner, const Packed *w, int64_t row, int64_t column,
                 const LowRank *lr)
{
    if (!lr) return;
    const size_t size = dtype_size(t);
    const bool in_rows = lr->s == (const char *)x + (size_t)inner * size && lr->lds == ldx;
    const bool in_weight = lr->w->data == (char *)w->data + (size_t)(row * w->ld + column) * size;
    if (in_rows && in_weight && w->ld == lr->w->ld && w->ld == w->K + lr->R)
        one++;
    else
        two++;
}

static void look_forward(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const Packed *w,
                         const LowRank *lr, const float *bias, const void *residual, int n)
{
    (void)d, (void)y, (void)ldy, (void)bias, (void)residual, (void)n;
    look(t, x, ldx, w->K, w, 0, w->K, lr);
}

static void look_backward(Device *d, DType t, void *dx, int64_t lddx, const void *dy, int64_t lddy, const Packed *w,
                          const LowRank *lr, bool accumulate, int n)
{
    (void)d, (void)dx, (void)lddx, (void)accumulate, (void)n;
    look(t, dy, lddy, w->N, w, w->N, 0, lr);
}

static void check(int status)
{
    if (status < 0) fail_msg("%s: %s\n%s", error_last()->place, error_last()->what, error_last()->trace);
}

static void step(Device *d, PeftConfig *peft)
{
    Arena *run, *activations;
    Model *m;
    Activations *a;
    GradSet *g;
    int32_t ids[T] = {0}, first[1] = {0}, length[1] = {T};
    uint64_t key[T] = {0};
    float weight[M] = {0}, logp[M] = {0};
    const Batch batch = {.T = T,
                         .S = 1,
                         .M = M,
                         .tokens = ids,
                         .pos = ids,
                         .seq_start = first,
                         .seq_len = length,
                         .row_key = key,
                         .head_row = ids,
                         .target = ids};
    const TrainSpec spec = {.method = "lora", .lora = peft, .seed = 1};
    check(arena_open(&run, "run", 64 << 20, false));
    check(arena_open(&activations, "step", 64 << 20, false));
    check(model_open(&m, d, DT_F32, run, FAMILY, T, &spec));
    check(activations_open(&a, m, activations, T, 1, M, true, false));
    const GradConfig grads = {.device = d, .t = m->shard, .n = m->n_trained, .units = m->n_units};
    check(grad_open(&g, run, &grads));
    grad_zero(g, 1);
    one = two = 0;
    check(decoder_forward(a, &batch, true));
    check(decoder_head(a, weight, logp, g));
    check(decoder_backward(a, g));
    grad_close(g);
    activations_close(a);
    model_close(m);
    arena_free(activations);
    arena_free(run);
}

static const struct {
    int rank;
    double dropout;
    bool dora, borders;
    int one, two; // of a layer; and less in the lowest, below whose q, k and v nothing is trained
} cases[] = {
    {8, 0, false, true, 2 * LINEARS, 0},  {8, 0, true, true, 3 * LINEARS, 0}, // DoRA's forward product is made again
    {8, 0.1, false, true, LINEARS, 0},   // what flows back through the mask is a product of its own, without the base
    {4, 0, false, true, 0, 2 * LINEARS}, // rows would not begin at words of 16 bytes
    {8, 0, false, false, 0, 2 * LINEARS},
};

static void products(void **state)
{
    (void)state;
    enum { LAYERS = 2, NOT_BELOW = 3 };
    Device *cpu, *d;
    check(device_open(&cpu, &(DeviceConfig){.name = "cpu-ref", .threads = 1}));
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Device like = *cpu;
        like.borders = cases[i].borders;
        like.imitate = NULL;
        check(device_open_null(&d, &like));
        d->op.linear_fwd = look_forward;
        d->op.linear_dx = look_backward;
        char *targets[] = {"all-linear", NULL};
        PeftConfig peft = {.rank = cases[i].rank,
                           .alpha = 16,
                           .dropout = cases[i].dropout,
                           .use_dora = cases[i].dora,
                           .targets = targets};
        step(d, &peft);
        const int less = cases[i].dropout > 0 ? 0 : NOT_BELOW; // the masked way back has no low-rank term to look at
        assert_int_equal(one, cases[i].one ? LAYERS * cases[i].one - less : 0);
        assert_int_equal(two, cases[i].two ? LAYERS * cases[i].two - less : 0);
        device_close(d);
    }
    device_close(cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
