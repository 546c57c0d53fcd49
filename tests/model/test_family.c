// The decoder against reference models computed by transformers and PEFT (tests/golden/families): log-probabilities, gradients of every
// tensor, full and LoRA trajectories, greedy generation. Each case runs on the references and on the tuned kernels, packed and row by row,
// with and without recomputation.
#include "data/data.h"
#include "model/model.h"
#include "optim/optimizer.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GOLDEN TEST_DIR "/../golden/families/"
enum { MAX_ROWS = 16, MAX_T = 2048 };

// ---- rows of a tokens.jsonl as one micro-batch, or one row of it ------------------------------------------------------
typedef struct TestRows {
    int n, length[MAX_ROWS];
    int32_t id[MAX_ROWS][1024];
} TestRows;

static json_t *load_json(const char *path, size_t flags)
{
    json_error_t e;
    json_t *j = json_load_file(path, flags, &e);
    if (!j) fail_msg("%s: %s", path, e.text);
    return j;
}

static json_t *load_lines(const char *path) // a JSONL file as an array
{
    FILE *f = fopen(path, "r");
    json_t *all = json_array(), *line;
    assert_non_null(f);
    while ((line = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) json_array_append_new(all, line);
    fclose(f);
    return all;
}

static void load_rows(TestRows *r, const char *path)
{
    json_t *lines = load_lines(path);
    r->n = (int)json_array_size(lines);
    for (int i = 0; i < r->n; i++) {
        json_t *ids = json_object_get(json_array_get(lines, (size_t)i), "tokens");
        r->length[i] = (int)json_array_size(ids);
        for (int k = 0; k < r->length[i]; k++)
            r->id[i][k] = (int32_t)json_integer_value(json_array_get(ids, (size_t)k));
    }
    json_decref(lines);
}

typedef struct TestBatch {
    Batch b;
    int32_t tokens[MAX_T], pos[MAX_T], seq_start[MAX_ROWS], seq_len[MAX_ROWS], head_row[MAX_T], target[MAX_T],
        head_seq[MAX_T];
    uint64_t key[MAX_T];
    int64_t row[MAX_ROWS];
} TestBatch;

static void make_batch(TestBatch *t, const TestRows *r, int first, int rows)
{
    memset(t, 0, sizeof *t);
    Batch *b = &t->b;
    *b = (Batch){.tokens = t->tokens,
                 .pos = t->pos,
                 .seq_start = t->seq_start,
                 .seq_len = t->seq_len,
                 .row_key = t->key,
                 .head_row = t->head_row,
                 .target = t->target,
                 .row = t->row,
                 .head_seq = t->head_seq};
    for (int s = 0; s < rows; s++) {
        t->seq_start[s] = b->T;
        t->seq_len[s] = r->length[first + s];
        for (int k = 0; k < t->seq_len[s]; k++, b->T++) {
            t->tokens[b->T] = r->id[first + s][k];
            t->pos[b->T] = k;
            t->key[b->T] = (uint64_t)(first + s) << 32 | (uint64_t)k;
            if (!k) continue;
            t->head_row[b->M] = b->T - 1;
            t->head_seq[b->M] = s;
            t->target[b->M++] = r->id[first + s][k];
        }
    }
    b->S = rows;
}

// ---- a model opened for one case --------------------------------------------------------------------------------------
typedef struct Case {
    const char *device;
    bool packed, recompute;
} Case;
static const Case cases[] = {
    {"cpu-ref", true, false}, {"cpu", true, false}, {"cpu", false, false}, {"cpu", true, true}};

typedef struct World {
    Device *dev;
    Arena *run, *step;
    Model *m;
    Activations *a;
    GradSet *g;
    PeftConfig peft;
} World;

static void check(int status)
{
    if (status < 0) fail_msg("%s: %s\n%s", error_last()->place, error_last()->what, error_last()->trace);
}

static void open_world(World *w, const Case *c, const char *family, const char *method, const char *adapter)
{
    static char dir[512], adapter_dir[1100];
    *w = (World){0};
    snprintf(dir, sizeof dir, "%s%s", GOLDEN, family);
    TrainSpec spec = {.method = method, .seed = 1, .optimizer = true};
    if (adapter) {
        snprintf(adapter_dir, sizeof adapter_dir, "%s/%s", dir, adapter);
        check(peft_config_read(&w->peft, adapter_dir));
        spec.lora = &w->peft;
        spec.adapter_dir = adapter_dir;
    }
    check(device_open(&w->dev, &(DeviceConfig){.name = c->device, .threads = 2}));
    check(arena_open(&w->run, "run", 64 << 20, false));
    check(arena_open(&w->step, "step", 256 << 20, false));
    check(model_open(&w->m, w->dev, DT_F32, w->run, dir, 1024, &spec));
    check(activations_open(&w->a, w->m, w->step, MAX_T, MAX_ROWS, MAX_T, true, c->recompute));
    const GradConfig grads = {
        .device = w->dev, .t = w->m->shard, .n = w->m->n_trained, .units = w->m->n_units, .order_free = true};
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

static const char *param_file(const char *family, const char *name)
{
    return tmpf("%s%s/%s", GOLDEN, family, name);
}

// ---- log-probabilities ----------------------------------------------------------------------------------------------
static void check_logprobs(World *w, const Case *c, const char *tokens, const char *golden, double tolerance)
{
    static TestRows rows;
    static TestBatch t;
    static float logp[MAX_T];
    load_rows(&rows, tokens);
    json_t *lines = load_lines(golden);
    const int step = c->packed ? rows.n : 1;
    for (int first = 0; first < rows.n; first += step) {
        make_batch(&t, &rows, first, step);
        check(decoder_forward(w->a, &t.b, false));
        check(decoder_logprobs(w->a, logp, NULL));
        for (int s = 0, i = 0; s < step; s++) {
            json_t *want = json_object_get(json_array_get(lines, (size_t)(first + s)), "logprobs");
            assert_int_equal(json_array_size(want), rows.length[first + s] - 1);
            for (size_t k = 0; k < json_array_size(want); k++, i++) {
                double x = json_number_value(json_array_get(want, k));
                if (!(fabs(logp[i] - x) < tolerance))
                    fail_msg("%s row %d token %zu: %g, want %g", golden, first + s, k + 1, logp[i], x);
            }
        }
    }
    json_decref(lines);
}

static const char *const families[] = {"llama", "llama_untied", "llama3"};

static void test_logprobs(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(families); f++)
        for (size_t c = 0; c < COUNT_OF(cases); c++) {
            World w;
            open_world(&w, &cases[c], families[f], "none", NULL);
            check_logprobs(&w, &cases[c], param_file(families[f], "tokens.jsonl"),
                           param_file(families[f], "logprobs.jsonl"), 5e-5);
            if (streq(families[f], "llama3"))
                check_logprobs(&w, &cases[c], param_file(families[f], "tokens_long.jsonl"),
                               param_file(families[f], "logprobs_long.jsonl"), 5e-5);
            close_world(&w);
        }
}

// ---- gradients and trajectories -------------------------------------------------------------------------------------
// One step's loss and gradients over the whole file.
static double gradients(World *w, const Case *c, const TestRows *rows)
{
    static TestBatch t;
    static float weight[MAX_T], logp[MAX_T];
    int trained = 0;
    double loss = 0;
    for (int i = 0; i < rows->n; i++) trained += rows->length[i] - 1;
    for (int i = 0; i < MAX_T; i++) weight[i] = -1.0f / (float)trained;
    grad_zero(w->g, 1);
    const int step = c->packed ? rows->n : 1;
    for (int first = 0; first < rows->n; first += step) {
        make_batch(&t, rows, first, step);
        check(decoder_forward(w->a, &t.b, true));
        if (c->recompute) { // the two-pass form of the head on one of the cases
            check(decoder_logprobs(w->a, logp, NULL));
            check(decoder_head_backward(w->a, weight, w->g));
        } else {
            check(decoder_head(w->a, weight, logp, w->g));
        }
        check(decoder_backward(w->a, w->g));
        for (int i = 0; i < t.b.M; i++) loss -= logp[i];
    }
    check(grad_overflowed(w->g) ? E_FAILED : OK);
    return loss / trained;
}

static void near_relative(double x, double want, double floor_, double tolerance, const char *what)
{
    if (!(fabs(x - want) <= tolerance * MAX(fabs(want), floor_))) fail_msg("%s: %.9g, want %.9g", what, x, want);
}

static void check_tensor(const char *name, const float *x, size_t n, const json_t *want, double tolerance)
{
    double sum = 0, norm = json_number_value(json_object_get(want, "norm"));
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    near_relative(sqrt(sum), norm, 1e-3, tolerance, name);
    for (size_t i = 0; i < 4; i++) {
        double v = json_number_value(json_array_get(json_object_get(want, "first4"), i));
        if (!(fabs(x[i] - v) <= tolerance * MAX(norm, 1e-3))) fail_msg("%s[%zu]: %.9g, want %.9g", name, i, x[i], v);
    }
}

static void test_gradients(void **state)
{
    (void)state;
    static TestRows rows;
    for (size_t f = 0; f < COUNT_OF(families); f++)
        for (size_t c = 0; c < COUNT_OF(cases); c++) {
            World w;
            open_world(&w, &cases[c], families[f], "full", NULL);
            load_rows(&rows, param_file(families[f], "tokens.jsonl"));
            json_t *golden = load_json(param_file(families[f], "grads.json"), 0),
                   *params = json_object_get(golden, "params");
            double loss = gradients(&w, &cases[c], &rows);
            near_relative(loss, json_number_value(json_object_get(golden, "loss")), 1, 1e-5, "loss");
            assert_int_equal(json_object_size(params), w.m->n_trained);
            for (int i = 0; i < w.m->n_trained; i++) {
                const Trainable *t = &w.m->trained[i];
                check_tensor(t->name, grad_get(w.g, i), (size_t)t->N * (size_t)t->K, json_object_get(params, t->name),
                             5e-5);
            }
            json_decref(golden);
            close_world(&w);
        }
}

static void follow(World *w, const Case *c, const TestRows *rows, const json_t *golden, double lr, double wd,
                   double tolerance)
{
    const json_t *losses = json_object_get(golden, "losses"), *norms = json_object_get(golden, "grad_norms");
    const AdamW adamw = {0.9, 0.999, 1e-8, wd, 1.0};
    for (size_t i = 0; i < json_array_size(losses); i++) {
        double loss = gradients(w, c, rows), norm = 0;
        check(grad_norm(w->g, &norm));
        near_relative(loss, json_number_value(json_array_get(losses, i)), 1, 5e-5, tmpf("loss of step %zu", i + 1));
        near_relative(norm, json_number_value(json_array_get(norms, i)), 1e-3, tolerance,
                      tmpf("norm of step %zu", i + 1));
        check(optimizer_step(w->m, w->g, &adamw, lr, norm, (int64_t)i + 1));
    }
}

static void test_full(void **state)
{
    (void)state;
    static TestRows rows;
    for (size_t f = 0; f < COUNT_OF(families); f++)
        for (size_t c = 0; c < COUNT_OF(cases); c++) {
            World w;
            open_world(&w, &cases[c], families[f], "full", NULL);
            load_rows(&rows, param_file(families[f], "tokens.jsonl"));
            json_t *golden = load_json(param_file(families[f], "full.json"), 0);
            follow(&w, &cases[c], &rows, golden, 1e-3, 0.01, 2e-3);
            for (int i = 0; i < w.m->n_trained; i++) {
                const Trainable *t = &w.m->trained[i];
                check_tensor(t->name, t->master, (size_t)t->N * (size_t)t->K,
                             json_object_get(json_object_get(golden, "params_after"), t->name), 2e-3);
            }
            json_decref(golden);
            close_world(&w);
        }
}

static void check_adapter(World *w, const char *dir)
{
    Weights *final;
    check(weights_open(&final, tmpf("%s/adapter_final/adapter_model.safetensors", dir)));
    for (int i = 0; i < w->m->n_trained; i++) {
        const Trainable *t = &w->m->trained[i];
        size_t n = (size_t)t->N * (size_t)t->K;
        float *want = xmalloc(n * sizeof *want);
        int at = weights_find(final, tmpf("base_model.model.%s", t->name));
        assert_true(at >= 0);
        check(weights_read(final, at, 0, t->N, DT_F32, want));
        for (size_t k = 0; k < n; k++)
            if (!(fabsf(t->master[k] - want[k]) < 5e-4f))
                fail_msg("%s[%zu]: %g, want %g", t->name, k, t->master[k], want[k]);
        free(want);
    }
    weights_close(final);
}

static void test_lora(void **state)
{
    (void)state;
    static const char *const runs[][2] = {{"llama", "lora"},
                                          {"llama_untied", "lora"},
                                          {"llama3", "lora"},
                                          {"llama", "peft/rslora"},
                                          {"llama", "peft/pattern"},
                                          {"llama", "peft/dora"},
                                          {"llama", "peft/dora-pattern"},
                                          {"llama_untied", "peft/dora"}};
    static TestRows rows;
    static char dir[512], tokens[512], init[600], after[600];
    for (size_t r = 0; r < COUNT_OF(runs); r++)
        for (size_t c = 0; c < COUNT_OF(cases); c++) {
            World w;
            snprintf(dir, sizeof dir, "%s%s/%s", GOLDEN, runs[r][0], runs[r][1]);
            snprintf(tokens, sizeof tokens, "%s%s/tokens.jsonl", GOLDEN, runs[r][0]);
            snprintf(init, sizeof init, "%s/logprobs_init.jsonl", dir);
            snprintf(after, sizeof after, "%s/logprobs_after.jsonl", dir);
            open_world(&w, &cases[c], runs[r][0], "lora", tmpf("%s/adapter_init", runs[r][1]));
            load_rows(&rows, tokens);
            check_logprobs(&w, &cases[c], tokens, init, 5e-5);
            json_t *golden = load_json(tmpf("%s/losses.json", dir), 0);
            follow(&w, &cases[c], &rows, golden, 2e-3, 0, 5e-5);
            check_adapter(&w, dir);
            check_logprobs(&w, &cases[c], tokens, after, 3e-4);
            json_decref(golden);
            close_world(&w);
        }
}

// ---- generation -----------------------------------------------------------------------------------------------------
static int best(const float *logits, int V)
{
    int at = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[at]) at = i;
    return at;
}

// Both prompts decoded side by side in one cache.
static void test_generate(void **state)
{
    (void)state;
    static float logits[2 * 320];
    for (size_t f = 0; f < COUNT_OF(families); f++)
        for (size_t c = 0; c < 2; c++) {
            World w;
            KvCache *cache;
            Arena *arena;
            open_world(&w, &cases[c], families[f], "none", NULL);
            check(arena_open(&arena, "cache", 64 << 20, false));
            check(kvcache_open(&cache, w.m, arena, 2, 128));
            json_t *golden = load_json(param_file(families[f], "generate.json"), 0);
            int32_t prompt[256], next[2];
            int slot[2] = {0, 1}, count[2], T = 0;
            for (size_t i = 0; i < 2; i++) {
                json_t *p = json_object_get(json_array_get(golden, i), "prompt");
                count[i] = (int)json_array_size(p);
                for (int k = 0; k < count[i]; k++)
                    prompt[T++] = (int32_t)json_integer_value(json_array_get(p, (size_t)k));
            }
            check(decoder_extend(w.a, cache, slot, count, prompt, 2, logits));
            for (size_t k = 0; k < 24; k++) {
                const SamplerConfig greedy = {.top_p = 1};
                int32_t drawn[2];
                check(decoder_sample(w.a, cache, &greedy, NULL, drawn));
                for (size_t i = 0; i < 2; i++) {
                    json_t *want = json_object_get(json_array_get(golden, i), "continuation");
                    next[i] = best(logits + i * 320, 320);
                    assert_int_equal(next[i], drawn[i]);
                    assert_int_equal(next[i], json_integer_value(json_array_get(want, k)));
                }
                check(decoder_extend(w.a, cache, slot, (int[]){1, 1}, next, 2, logits));
            }
            json_decref(golden);
            kvcache_close(cache);
            arena_free(arena);
            close_world(&w);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logprobs), cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_full), cmocka_unit_test(test_lora),
                                       cmocka_unit_test(test_generate)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
