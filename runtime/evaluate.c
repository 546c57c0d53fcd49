// evaluate.c: losses and ROUGE of a dataset. Every rank takes its share of the rows' micro-batches; sums are order-free, so the
// figures do not depend on the number of ranks.
#include "evaluate.h"
#include "eval/report.h"
#include "eval/rouge.h"
#include "generate.h"
#include "trainer.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROUGE_FIX_BITS = 40 };

// The whole dataset as one "step" of an unshuffled loader.
static LoaderConfig whole(const Dataset *d, int micro_tokens, int64_t rows, const Mesh *mesh)
{
    int64_t n = rows > 0 ? MIN(rows, dataset_rows(d)) : dataset_rows(d);
    return (LoaderConfig){.data = d,
                          .pack = true,
                          .batch = (int)n,
                          .micro_tokens = micro_tokens,
                          .data_rank = mesh->data_rank,
                          .data_size = mesh->data_size,
                          .steps = 1};
}

LoaderBounds evaluate_bounds(const Dataset *d, int micro_tokens, int64_t rows, const Mesh *mesh)
{
    LoaderConfig c = whole(d, micro_tokens, rows, mesh);
    return loader_bounds(&c);
}

int evaluate_rows(Session *s, Activations *a, const Dataset *d, int micro_tokens, int64_t rows, ScoredFn *fn, void *ctx)
{
    LoaderConfig c = whole(d, micro_tokens, rows, &s->mesh);
    Loader *loader = NULL;
    const StepBatches *sb;
    float *logp = NULL;
    int status = OK;
    TRY_DONE(loader_open(&loader, &c, 0));
    TRY_DONE(loader_next(loader, &sb));
    // where parameters are exchanged, every rank goes through as many rounds as the busiest
    const int rounds = s->model->zero == 3 ? sb->n_most : sb->n;
    for (int i = 0; i < rounds; i++) {
        const Batch *b = i < sb->n && sb->batch[i].M ? &sb->batch[i] : NULL;
        if (!b) {
            TRY_DONE(decoder_forward(a, NULL, false));
            continue;
        }
        logp = xrealloc(logp, (size_t)MAX(b->M, 1) * sizeof *logp);
        TRY_DONE(decoder_forward(a, b, false));
        TRY_DONE(decoder_logprobs(a, logp, NULL));
        TRY_DONE(fn(ctx, b, logp));
    }
done:
    free(logp);
    loader_close(loader);
    return status;
}

typedef struct LossSums {
    int64_t nll, tokens; // nll: LOSS_FIX_BITS fractional bits
} LossSums;

static int add_loss(void *ctx, const Batch *b, const float *logp)
{
    LossSums *sums = ctx;
    double nll = 0;
    for (int i = 0; i < b->M; i++) nll -= (double)logp[i];
    if (!isfinite(nll)) return fail(E_FAILED, "evaluation", NULL, "a log-probability is not finite");
    sums->nll += llrint(ldexp(nll, LOSS_FIX_BITS));
    sums->tokens += b->M;
    return OK;
}

int evaluate_loss(Session *s, Activations *a, const Dataset *d, int micro_tokens, int64_t rows, LossSum *out)
{
    LossSums sums = {0};
    TRY(comm_agree(s->mesh.world, evaluate_rows(s, a, d, micro_tokens, rows, add_loss, &sums)));
    TRY(comm_all_reduce(s->mesh.data, &sums.nll, 1, DT_I64, REDUCE_SUM));
    TRY(comm_all_reduce(s->mesh.data, &sums.tokens, 1, DT_I64, REDUCE_SUM));
    out->tokens = sums.tokens;
    out->loss = ldexp((double)sums.nll, -LOSS_FIX_BITS) / (double)MAX(sums.tokens, 1);
    out->perplexity = exp(out->loss);
    return OK;
}

// ---- ROUGE over generated completions -------------------------------------------------------------------------------
static int add_sample(const Session *s, const Generation *g, const char *output, json_t *samples)
{
    Buf prompt = {0};
    int status = tokenizer_decode(s->tok, g->prompt, g->n_prompt, true, &prompt);
    if (status == OK)
        json_array_append_new(samples,
                              json_pack("{s:I, s:s, s:s, s:s}", "row", (json_int_t)g->sequence, "prompt",
                                        prompt.data ? prompt.data : "", "reference", g->reference, "output", output));
    buf_free(&prompt);
    return status;
}

static int score_texts(Session *s, Generation *g, int n, bool stem, int64_t sums[4], json_t *samples, int max_samples)
{
    int status = OK;
    for (int i = 0; i < n && status == OK; i++) {
        Buf text = {0};
        status = tokenizer_decode(s->tok, g[i].out, g[i].n_out, true, &text);
        const char *output = text.data ? text.data : "";
        Rouge r = rouge_score(g[i].reference, output, stem);
        const double f[4] = {r.r1.f1, r.r2.f1, r.rl.f1, r.rlsum.f1};
        for (int k = 0; k < 4; k++) sums[k] += llrint(ldexp(f[k], ROUGE_FIX_BITS));
        if (status == OK && samples && (int)json_array_size(samples) < max_samples)
            status = add_sample(s, &g[i], output, samples);
        buf_free(&text);
    }
    return status;
}

int evaluate_rouge(Session *s, const Dataset *d, int64_t rows, int max_new, bool stem, RougeMeans *out, json_t *samples,
                   int max_samples)
{
    const Mesh *mesh = &s->mesh;
    int64_t total = rows > 0 ? MIN(rows, dataset_rows(d)) : dataset_rows(d), sums[4] = {0};
    Generation *g = xcalloc((size_t)total + 1, sizeof *g);
    int n = 0, status = OK;
    if (!s->tok) {
        status = fail(E_INPUT, s->recipe.model, NULL, "ROUGE needs a tokenizer");
        goto done;
    }
    for (int64_t i = mesh->data_rank; i < total; i += mesh->data_size) {
        Generation *q = &g[n];
        TRY_DONE(dataset_prompt(d, i, &q->prompt, &q->n_prompt, &q->reference));
        if (!q->reference) continue;
        q->sequence = (uint64_t)i;
        n++;
    }
    TRY_DONE(generate_all(s, g, n, &(GenerateConfig){.max_new = max_new, .sampler = {.top_p = 1}}));
    TRY_DONE(score_texts(s, g, n, stem, sums, samples, max_samples));
done:
    generations_free(g, n);
    TRY(comm_agree(mesh->world, status));
    TRY(comm_all_reduce(mesh->data, sums, 4, DT_I64, REDUCE_SUM));
    const double scale = ldexp(1, -ROUGE_FIX_BITS) / (double)MAX(total, 1);
    *out = (RougeMeans){(double)sums[0] * scale, (double)sums[1] * scale, (double)sums[2] * scale,
                        (double)sums[3] * scale};
    return OK;
}

// ---- metrics by name ------------------------------------------------------------------------------------------------
static bool wants(const Recipe *r, const char *metric)
{
    for (int i = 0; i < r->eval.metrics.n; i++)
        if (streq(r->eval.metrics.item[i], metric)) return true;
    return false;
}

int evaluate_positions(const Recipe *r, int T)
{
    return wants(r, "rouge") ? MAX(T, (int)(r->data.max_tokens + r->eval.max_new)) : T;
}

int evaluate_bytes(const Session *s, const Model *m, const Dataset *d, size_t *bytes)
{
    const Recipe *r = &s->recipe;
    const Mesh *mesh = &s->mesh;
    *bytes = 0;
    if (!wants(r, "rouge")) return OK;
    const int64_t total = r->eval.rows > 0 ? MIN(r->eval.rows, dataset_rows(d)) : dataset_rows(d);
    int rows = 0, longest = 1;
    for (int64_t i = mesh->data_rank; i < total; i += mesh->data_size, rows++) {
        const int32_t *ids;
        const char *reference;
        int n;
        TRY(dataset_prompt(d, i, &ids, &n, &reference));
        longest = MAX(longest, n);
    }
    *bytes = generate_bytes(m, rows, longest, (int)r->eval.max_new);
    return OK;
}

int evaluate_metrics(Session *s, Activations *a, const Dataset *d, json_t *out, json_t *samples, int max_samples)
{
    const Recipe *r = &s->recipe;
    LossSum loss;
    TRY(evaluate_loss(s, a, d, (int)r->train.micro_tokens, r->eval.rows, &loss));
    json_object_set_new(out, "loss", json_real(loss.loss));
    json_object_set_new(out, "perplexity", json_real(loss.perplexity));
    if (!wants(r, "rouge")) return OK;
    RougeMeans m;
    TRY(evaluate_rouge(s, d, r->eval.rows, (int)r->eval.max_new, r->eval.stem, &m, samples, max_samples));
    json_object_set_new(out, "rouge1", json_real(m.r1));
    json_object_set_new(out, "rouge2", json_real(m.r2));
    json_object_set_new(out, "rougeL", json_real(m.rl));
    json_object_set_new(out, "rougeLsum", json_real(m.rlsum));
    return OK;
}

int trainer_evaluate(Trainer *t, Buf *members)
{
    json_t *metrics = json_object(), *value;
    const char *name;
    int status = evaluate_metrics(&t->s, t->act, t->valid, metrics, NULL, 0);
    json_object_foreach(metrics, name, value)
        buf_printf(members, "%s\"eval/%s\": %.9g", members->len ? ", " : "", name, json_real_value(value));
    json_decref(metrics);
    return status;
}

// ---- the verb -------------------------------------------------------------------------------------------------------
enum { EVAL_SAMPLES = 20 };

// What the run left: its adapter, or its model. Without a finished run, or with --base, the recipe's own model is evaluated.
// *kept owns the path.
static void use_result(Recipe *r, bool base, char **kept)
{
    if (base || *r->adapter) return;
    const char *adapter = tmpf("%s/adapter", r->output), *model = tmpf("%s/model", r->output);
    if (streq(r->method, "lora") && path_exists(tmpf("%s/adapter_config.json", adapter)))
        r->adapter = *kept = xstrdup(adapter);
    else if (!streq(r->method, "lora") && path_exists(tmpf("%s/config.json", model)))
        r->model = *kept = xstrdup(model);
}

static void print_table(const Recipe *r, const Dataset *d, const json_t *metrics)
{
    const char *name;
    json_t *value;
    printf("%-12s %s%s%s\n", "model", r->model, *r->adapter ? " + " : "", r->adapter);
    printf("%-12s %s (%lld rows)\n", "data", r->data.test,
           (long long)(r->eval.rows ? MIN(r->eval.rows, dataset_rows(d)) : dataset_rows(d)));
    json_object_foreach((json_t *)metrics, name, value) printf("%-12s %.4f\n", name, json_real_value(value));
}

static int write_eval(const Recipe *r, json_t *metrics, json_t *samples, bool base)
{
    json_t *root = json_pack("{s:s, s:s, s:s, s:O, s:O}", "model", r->model, "adapter", r->adapter, "data",
                             r->data.test, "metrics", metrics, "samples", samples);
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    int status = make_dirs(r->output);
    if (status == OK)
        status = file_write_atomic(tmpf("%s/%s", r->output, base ? "eval-base.json" : "eval.json"), text, strlen(text));
    free(text);
    json_decref(root);
    return status;
}

static int eval_opened(Session *s, Comm *world, const Dataset *d, bool base)
{
    const Recipe *r = &s->recipe;
    LoaderBounds b = evaluate_bounds(d, (int)r->train.micro_tokens, r->eval.rows, &s->mesh);
    Activations *a = NULL;
    json_t *metrics = json_object(), *samples = json_array();
    int status = session_inference(s, &a, b.T, b.S, b.M, evaluate_positions(r, b.T));
    status = comm_agree(world, status);
    if (status == OK) status = evaluate_metrics(s, a, d, metrics, samples, EVAL_SAMPLES);
    if (status == OK && comm_rank(world) == 0) {
        print_table(r, d, metrics);
        status = write_eval(r, metrics, samples, base);
        if (status == OK && path_exists(tmpf("%s/status.json", r->output)))
            status = report_write(r->output, NULL, session_machine(s));
    }
    json_decref(samples);
    json_decref(metrics);
    activations_close(a);
    return comm_agree(world, status);
}

int run_eval(Comm *world, const TrainArgs *args)
{
    Session s = {0};
    Recipe r = {0};
    Dataset *d = NULL;
    char *kept = NULL;
    int status = recipe_load(&r, args->recipe, args->overrides, args->n_overrides);
    if (status == OK) {
        use_result(&r, args->base, &kept);
        if (args->base && !*r.adapter) r.method = "full"; // no fresh adapter on top of the base
        status = session_open(&s, world, &r);
    }
    if (status == OK && !*r.adapter) s.spec.method = "none";
    if (status == OK) status = session_dataset(&s, &d, r.data.test, "data.test", ROWS_TRAINED);
    status = comm_agree(world, status);
    if (status == OK) status = eval_opened(&s, world, d, args->base);
    dataset_close(d);
    session_close(&s);
    recipe_free(&r);
    free(kept);
    return status;
}
