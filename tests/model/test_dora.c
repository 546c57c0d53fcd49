// DoRA with dropout, for which PEFT's random numbers cannot be had: one linear against PEFT's formula in f64, and the gradient of every
// tensor against differences, the norms being constants. Without dropout test_family.c follows PEFT itself.
#include "model/decoder_impl.h"
#include "model/model.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define FAMILY TEST_DIR "/../golden/families/llama_untied"
enum { T = 40, S = 2, M = T - S };

typedef struct World {
    Device *dev;
    Arena *run, *step;
    PeftConfig peft;
    Model *m;
    Activations *a;
    GradSet *g;
} World;

static void check(int status)
{
    if (status < 0) fail_msg("%s: %s\n%s", error_last()->place, error_last()->what, error_last()->trace);
}

static void open_world(World *w, const char *device, double dropout, bool recompute)
{
    const char *adapter = FAMILY "/peft/dora/adapter_init";
    *w = (World){0};
    check(peft_config_read(&w->peft, adapter));
    w->peft.dropout = dropout;
    const TrainSpec spec = {.method = "lora", .lora = &w->peft, .adapter_dir = adapter, .optimizer = true};
    check(device_open(&w->dev, &(DeviceConfig){.name = device, .threads = 2}));
    check(arena_open(&w->run, "run", 64 << 20, false));
    check(arena_open(&w->step, "step", 64 << 20, false));
    check(model_open(&w->m, w->dev, DT_F32, w->run, FAMILY, T, &spec));
    check(activations_open(&w->a, w->m, w->step, T, S, M, true, recompute));
    const GradConfig grads = {.device = w->dev, .t = w->m->shard, .n = w->m->n_trained, .units = w->m->n_units};
    check(grad_open(&w->g, w->run, &grads));
}

static void close_world(World *w)
{
    grad_close(w->g);
    activations_close(w->a);
    model_close(w->m);
    arena_free(w->step);
    arena_free(w->run);
    device_close(w->dev);
    peft_config_free(&w->peft);
}

static float random_value(uint64_t at)
{
    uint32_t r[4];
    philox(7, 0, at, r);
    return 2 * u32_to_unit(r[0]) - 1;
}

static float *random_values(size_t n, uint64_t seed)
{
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_value(seed << 32 | i);
    return x;
}

// ---- one linear -----------------------------------------------------------------------------------------------------
static double dot(const float *x, const float *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

// PEFT's layer.py and dora.py, output n of one row: base result, plus (gain - 1)·W·d + gain·scale·B·A·d with d the dropped-out x
static double peft_output(const World *w, const Param *p, const float *W, int n, const float *x, const float *dropped)
{
    const Adapter *ad = p->adapter;
    const float *A = w->m->trained[ad->slot_a].master, *B = w->m->trained[ad->slot_b].master + (size_t)n * ad->R;
    double squares = 0, low_rank = 0;
    for (int k = 0; k < p->K; k++) {
        double v = W[k];
        for (int r = 0; r < ad->R; r++) v += ad->scale * (double)B[r] * A[r * p->K + k];
        squares += v * v;
    }
    for (int r = 0; r < ad->R; r++) low_rank += ad->scale * (double)B[r] * dot(A + (size_t)r * p->K, dropped, p->K);
    const double gain = ad->magnitude[n] / sqrt(squares);
    return dot(W, x, p->K) + (gain - 1) * dot(W, dropped, p->K) + gain * low_rank;
}

static void check_linear(World *w, ParamId id, ParamId bias, bool dropping)
{
    const Param *p = w->m->layer[1].p[id], *b = w->m->layer[1].p[bias];
    Activations *a = w->a;
    float *x = random_values((size_t)T * p->K, 1), *residual = random_values((size_t)T * p->N, 2),
          *y = random_values((size_t)T * p->N, 3), *W = xmalloc((size_t)p->N * p->K * sizeof *W),
          *dropped = xmalloc((size_t)T * p->K * sizeof *dropped);
    a->T = T;
    a->dropping = dropping;
    for (int i = 0; i < T; i++) a->row_key[i] = 100 + (uint64_t)i;
    memcpy(dropped, x, (size_t)T * p->K * sizeof *x);
    if (dropping)
        w->dev->op.dropout(w->dev, DT_F32, dropped, p->K, x, p->K, a->row_key, p->adapter->stream, p->adapter->dropout,
                           false, 0, p->K, T);
    check(param_read(w->m, p, false, 0, p->N, DT_F32, W));
    check(layer_begin(w->m, 1, -1));
    const LinearIn in = {.p = p, .bias = b, .x = {x, p->K, 0}, .s = a->layer[1].s[id]};
    linear_forward(a, &in, y, p->N, residual);
    for (int i = 0; i < T; i++)
        for (int n = 0; n < p->N; n++) {
            const double got = y[i * p->N + n];
            const double want =
                peft_output(w, p, W + (size_t)n * p->K, n, x + (size_t)i * p->K, dropped + (size_t)i * p->K) +
                b->vec[n] + residual[i * p->N + n];
            if (!(fabs(got - want) < 2e-5))
                fail_msg("%s, row %d, output %d: %.9g, want %.9g", p->name, i, n, got, want);
        }
    free(x), free(residual), free(y), free(W), free(dropped);
}

static void linear_is_pefts(void **state)
{
    (void)state;
    for (int c = 0; c < 2; c++) {
        World w;
        open_world(&w, c ? "cpu" : "cpu-ref", 0.3, false);
        for (int dropping = 0; dropping < 2; dropping++) {
            check_linear(&w, P_K, P_K_BIAS, dropping);
            check_linear(&w, P_DOWN, P_DOWN_BIAS, dropping);
        }
        close_world(&w);
    }
}

// ---- gradients ------------------------------------------------------------------------------------------------------
typedef struct TestBatch {
    Batch b;
    int32_t tokens[T], pos[T], seq_start[S], seq_len[S], head_row[M], target[M], head_seq[M];
    uint64_t key[T];
    int64_t row[S];
} TestBatch;

static void make_batch(TestBatch *t)
{
    memset(t, 0, sizeof *t);
    Batch *b = &t->b;
    *b = (Batch){.T = T, .S = S, .tokens = t->tokens, .pos = t->pos, .seq_start = t->seq_start, .seq_len = t->seq_len};
    b->row_key = t->key, b->head_row = t->head_row, b->target = t->target, b->row = t->row, b->head_seq = t->head_seq;
    for (int i = 0; i < T; i++) {
        const int s = i / (T / S);
        t->tokens[i] = 3 + (int32_t)(fabsf(random_value(i)) * 316);
        t->pos[i] = i % (T / S);
        t->key[i] = 1000 + (uint64_t)i;
        t->seq_start[s] = s * (T / S);
        t->seq_len[s] = T / S;
        if (!t->pos[i]) continue;
        t->head_row[b->M] = i - 1;
        t->head_seq[b->M] = s;
        t->target[b->M++] = t->tokens[i];
    }
}

// Sum of the log-probabilities with the masks of training; its gradient is in w->g when backward is set.
static double value(World *w, const TestBatch *t, bool backward)
{
    static float weight[M], logp[M];
    double sum = 0;
    for (int i = 0; i < M; i++) weight[i] = 1;
    grad_zero(w->g, 1);
    grad_round(w->g, true);
    check(decoder_forward(w->a, &t->b, true));
    if (backward) {
        check(decoder_head(w->a, weight, logp, w->g));
        check(decoder_backward(w->a, w->g));
        check(grad_finish(w->g));
    } else {
        check(decoder_logprobs(w->a, logp, NULL));
    }
    for (int i = 0; i < t->b.M; i++) sum += logp[i];
    return sum;
}

// Moves what the kernels read of a tensor, and nothing else: norms stay what they are.
static void move_tensor(World *w, int i, const float *direction, float by)
{
    Trainable *t = &w->m->trained[i];
    const size_t n = (size_t)t->N * t->K;
    static float *start;
    if (by != 0) {
        float *moved = xmalloc(n * sizeof *moved);
        for (size_t k = 0; k < n; k++) moved[k] = t->master[k] + by * direction[k];
        if (t->packed) {
            w->dev->op.linear_pack(w->dev, t->packed, 0, t->N, moved, DT_F32, t->K);
            free(moved);
            return;
        }
        start = xmalloc(n * sizeof *start);
        memcpy(start, t->vec, n * sizeof *start);
        memcpy(t->vec, moved, n * sizeof *moved);
        free(moved);
    } else if (t->packed) {
        w->dev->op.linear_pack(w->dev, t->packed, 0, t->N, t->master, DT_F32, t->K);
        return;
    } else {
        memcpy(t->vec, start, n * sizeof *start);
        free(start);
    }
    w->m->layer[t->param->layer].norms_old = true; // gains follow the magnitude
}

static void check_gradient(World *w, const TestBatch *t, int i, const float *gradient)
{
    const Trainable *of = &w->m->trained[i];
    const int n = of->N * of->K;
    float *direction = random_values((size_t)n, 10 + (uint64_t)i);
    const double norm = sqrt(dot(gradient, gradient, n)), length = sqrt(dot(direction, direction, n));
    for (int k = 0; k < n; k++) direction[k] = (float)(direction[k] / length + gradient[k] / norm);
    const float step = 5e-3f;
    move_tensor(w, i, direction, step);
    double difference = value(w, t, false);
    move_tensor(w, i, direction, 0);
    move_tensor(w, i, direction, -step);
    difference = (difference - value(w, t, false)) / (2 * step);
    move_tensor(w, i, direction, 0);
    const double want = dot(gradient, direction, n);
    if (!(fabs(difference - want) < 5e-3 * norm + 2e-2))
        fail_msg("%s: the gradient says %.6g, differences %.6g", of->name, want, difference);
    free(direction);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    static TestBatch t;
    make_batch(&t);
    for (int c = 0; c < 3; c++) {
        World w;
        open_world(&w, "cpu", c ? 0.3 : 0, c == 2);
        value(&w, &t, true);
        const int n = w.m->n_trained;
        float **gradient = xcalloc((size_t)n, sizeof *gradient);
        for (int i = 0; i < n; i++) {
            const size_t bytes = (size_t)w.m->trained[i].N * w.m->trained[i].K * sizeof(float);
            gradient[i] = memcpy(xmalloc(bytes), grad_get(w.g, i), bytes);
        }
        for (int i = 0; i < n; i++) check_gradient(&w, &t, i, gradient[i]);
        for (int i = 0; i < n; i++) free(gradient[i]);
        free(gradient);
        close_world(&w);
    }
}

// A fresh adapter is the base model, exactly, whatever its dropout says when nothing is trained: B is zero and gains are 1.
static void fresh_adapters_change_nothing(void **state)
{
    (void)state;
    static TestBatch t;
    static float with[M], without[M];
    make_batch(&t);
    World w;
    open_world(&w, "cpu", 0, false);
    Model *base, *fresh;
    Activations *a;
    const TrainSpec specs[] = {{.method = "none"}, {.method = "lora", .lora = &w.peft, .seed = 1}};
    Model **models[] = {&base, &fresh};
    for (int i = 0; i < 2; i++) {
        check(model_open(models[i], w.dev, DT_F32, w.run, FAMILY, T, &specs[i]));
        check(activations_open(&a, *models[i], w.step, T, S, M, false, false));
        check(decoder_forward(a, &t.b, false));
        check(decoder_logprobs(a, i ? with : without, NULL));
        activations_close(a);
    }
    assert_memory_equal(with, without, sizeof with);
    const Adapter *ad = fresh->layer[0].p[P_Q]->adapter;
    for (int n = 0; n < fresh->layer[0].p[P_Q]->N; n++) assert_true(ad->gain[n] == 1 && ad->magnitude[n] > 0);
    model_close(base);
    model_close(fresh);
    close_world(&w);
}

// ---- generation -----------------------------------------------------------------------------------------------------
static double log_probability(const float *logits, int V, int token)
{
    double sum = 0;
    for (int v = 0; v < V; v++) sum += exp((double)logits[v]);
    return logits[token] - log(sum);
}

// The first sequence through the cache, half of it at once and then token by token, is what the forward pass says of it.
static void cached_is_forward(void **state)
{
    (void)state;
    static TestBatch t;
    static float logp[M], logits[512];
    World w;
    KvCache *cache;
    make_batch(&t);
    open_world(&w, "cpu", 0.3, false);
    check(decoder_forward(w.a, &t.b, false));
    check(decoder_logprobs(w.a, logp, NULL));
    check(kvcache_open(&cache, w.m, w.run, 1, T));
    const int V = w.m->cfg.V, half = T / S / 2;
    assert_in_range(V, 1, COUNT_OF(logits));
    for (int at = half; at < T / S; at++) {
        const int count = at == half ? half : 1, slot = 0;
        check(decoder_extend(w.a, cache, &slot, &count, t.tokens + at - count, 1, logits));
        const double got = log_probability(logits, V, t.tokens[at]);
        if (!(fabs(got - logp[at - 1]) < 2e-5)) fail_msg("token %d: %.9g, want %.9g", at, got, logp[at - 1]);
    }
    kvcache_close(cache);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(linear_is_pefts), cmocka_unit_test(gradients_are_differences),
                                       cmocka_unit_test(fresh_adapters_change_nothing),
                                       cmocka_unit_test(cached_is_forward)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
