// plan.c: what a run will hold, before it holds it. The same code that allocates is run over measuring arenas, so the figures are the
// allocator's own, not a formula's.
#include "trainer.h"
#include <jansson.h>
#include <stdlib.h>

// What is not in an arena: the program, its libraries, tokenizer and rows are in memory already when plan asks (its own resident
// set); MPI's buffers are not, and are charged as measured with MPICH.
enum { MPI_BYTES = 24 << 20, LOADER_SLOTS = 3 };

static size_t adapter_or_vector_masters(const Model *m, size_t *moments)
{
    size_t masters = 0;
    *moments = 0;
    for (int i = 0; i < m->n_trained; i++) {
        size_t bytes = (size_t)m->trained[i].part.rows * (size_t)m->trained[i].K * sizeof(float);
        if (m->trained[i].packed) masters += bytes;
        *moments += 2 * bytes;
    }
    return masters;
}

static size_t gradient_bytes(Trainer *t, Model *m, Arena *counter)
{
    GradSet *g = NULL;
    size_t bytes = trainer_gradients(t, m, counter, &g) == OK ? grad_bytes(g) : 0;
    grad_close(g);
    return bytes;
}

static size_t batch_bytes(const LoaderBounds *b)
{
    return (size_t)b->T * (2 * sizeof(int32_t) + sizeof(uint64_t)) + (size_t)b->M * 3 * sizeof(int32_t) +
           (size_t)b->S * 16;
}

int footprint_measure(Trainer *t, Footprint *out)
{
    Model *m = NULL;
    Arena *counter = NULL;
    size_t run;
    const bool recompute = t->s.recipe.train.recompute;
    *out = (Footprint){.bounds = trainer_bounds(t), .program = rss_bytes()};
    out->positions = t->valid ? evaluate_positions(&t->s.recipe, out->bounds.T) : out->bounds.T;
    int status = session_measure(&t->s, out->positions, true, &run, &m, &counter);
    if (status == OK) {
        out->masters = adapter_or_vector_masters(m, &out->moments);
        out->weights = run - out->masters - out->moments;
        out->gradients = gradient_bytes(t, m, counter);
        out->activations = activations_bytes(m, out->bounds.T, out->bounds.M, true, recompute);
        out->data = LOADER_SLOTS * batch_bytes(&out->bounds) * (size_t)MAX(out->bounds.micros, 1);
        const Recipe *r = &t->s.recipe;
        bool snapshots = r->checkpoint.async && r->checkpoint.every > 0 && r->checkpoint.every < t->total_steps;
        if (snapshots) out->snapshot = state_snapshot_bytes(m);
        out->total = out->program + out->weights + out->masters + out->moments + out->gradients + out->activations +
                     out->data + out->snapshot;
        if (t->s.mesh.data_size > 1 && !comm_launched_by_mpi()) out->total += MPI_BYTES;
    }
    model_close(m);
    arena_free(counter);
    return status;
}

// ---- the verb -------------------------------------------------------------------------------------------------------
typedef struct Plan {
    Footprint f;
    int ranks, micro_tokens;
    int64_t params, trained, steps;
    uint64_t comm_bytes, checkpoint_bytes, export_bytes;
} Plan;

static const struct PlanClass {
    const char *name;
    size_t offset;
} classes[] = {
    {"program and data", offsetof(Footprint, program)},
    {"weights", offsetof(Footprint, weights)},
    {"f32 masters", offsetof(Footprint, masters)},
    {"AdamW moments", offsetof(Footprint, moments)},
    {"gradients", offsetof(Footprint, gradients)},
    {"activations", offsetof(Footprint, activations)},
    {"batches", offsetof(Footprint, data)},
    {"checkpoint snapshot", offsetof(Footprint, snapshot)},
};

static size_t class_bytes(const Footprint *f, const struct PlanClass *c)
{
    return *(const size_t *)((const char *)f + c->offset);
}

static int measure_plan(Trainer *t, int ranks, Plan *p)
{
    TRY(footprint_measure(t, &p->f));
    p->ranks = ranks;
    p->micro_tokens = p->f.bounds.T;
    p->steps = t->total_steps;
    // one all-reduce of the gradients a step; a ring moves 2 (n-1)/n of them over each rank's wire
    size_t element = t->s.recipe.deterministic ? sizeof(int64_t) : sizeof(float);
    Model *m = NULL;
    Arena *counter = NULL;
    size_t run;
    int status = session_measure(&t->s, 1, false, &run, &m, &counter);
    if (status == OK) {
        p->params = model_params(m);
        p->trained = model_trained_params(m);
        p->comm_bytes = ranks > 1 ? (uint64_t)p->trained * element * 2 * (uint64_t)(ranks - 1) / (uint64_t)ranks : 0;
        p->checkpoint_bytes = (uint64_t)p->trained * 3 * sizeof(float);
        p->export_bytes =
            (uint64_t)p->trained * (streq(t->s.recipe.method, "lora") ? sizeof(float) : dtype_size(t->s.precision));
    }
    model_close(m);
    arena_free(counter);
    return status;
}

// Largest train.micro_tokens whose total fits, by bisection over the same measurement; 0: not even the longest row alone.
static int largest_micro(Trainer *t, size_t memory, int *out)
{
    const int asked = t->loader_config.micro_tokens;
    int low = 0, high = 1 << 17;
    while (high - low > 16) {
        int middle = (low + high) / 2;
        Footprint f;
        t->loader_config.micro_tokens = middle;
        TRY(footprint_measure(t, &f));
        if (f.total <= memory)
            low = middle;
        else
            high = middle;
    }
    t->loader_config.micro_tokens = asked;
    *out = low;
    return OK;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_plan(const Plan *p, const Recipe *r, size_t memory, int micro)
{
    printf("parameters   %.3f M, trained %.3f M (%.3f %%)\n", (double)p->params / 1e6, (double)p->trained / 1e6,
           100.0 * (double)p->trained / (double)MAX(p->params, 1));
    printf("steps        %lld of %lld sequences; largest micro-batch %d tokens, %d trained\n", (long long)p->steps,
           (long long)r->train.batch, p->f.bounds.T, p->f.bounds.M);
    printf("\nmemory of one rank (%d in all)\n", p->ranks);
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        printf("  %-20s %9.1f MiB\n", classes[i].name, mib(class_bytes(&p->f, &classes[i])));
    printf("  %-20s %9.1f MiB\n\n", "total", mib(p->f.total));
    printf("communication  %.2f MiB a step and rank\n", mib(p->comm_bytes));
    printf("checkpoint     %.1f MiB, result %.1f MiB\n", mib(p->checkpoint_bytes), mib(p->export_bytes));
    if (micro > 0)
        printf("micro_tokens   up to about %d fit into %.1f GiB\n", micro, (double)memory / (1 << 30));
    else
        printf("micro_tokens   this does not fit into %.1f GiB\n", (double)memory / (1 << 30));
}

static void print_plan_json(const Plan *p, size_t memory, int micro)
{
    json_t *by_class = json_object();
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        json_object_set_new(by_class, classes[i].name, json_integer((json_int_t)class_bytes(&p->f, &classes[i])));
    json_t *j =
        json_pack("{s:I, s:I, s:i, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:i}", "parameters", (json_int_t)p->params,
                  "trained_parameters", (json_int_t)p->trained, "ranks", p->ranks, "steps", (json_int_t)p->steps,
                  "bytes", by_class, "bytes_per_rank", (json_int_t)p->f.total, "comm_bytes_per_step",
                  (json_int_t)p->comm_bytes, "checkpoint_bytes", (json_int_t)p->checkpoint_bytes, "result_bytes",
                  (json_int_t)p->export_bytes, "memory_bytes", (json_int_t)memory, "largest_micro_tokens", micro);
    char *text = json_dumps(j, JSON_INDENT(1));
    puts(text);
    free(text);
    json_decref(j);
}

static int plan_opened(Trainer *t, const PlanArgs *a, int ranks)
{
    Plan p = {0};
    int micro;
    size_t memory = a->memory_bytes;
    if (!memory) {
        Topo topo;
        TRY(topo_read(&topo));
        memory = topo.memory_bytes / (size_t)ranks;
    }
    TRY(measure_plan(t, ranks, &p));
    TRY(largest_micro(t, memory, &micro));
    if (a->json)
        print_plan_json(&p, memory, micro);
    else
        print_plan(&p, &t->s.recipe, memory, micro);
    return OK;
}

int run_plan(const PlanArgs *a)
{
    Trainer t = {0};
    Recipe r = {0};
    Comm *world = NULL;
    const int ranks = MAX(a->ranks, 1);
    int status = recipe_load(&r, a->train.recipe, a->train.overrides, a->train.n_overrides);
    if (status == OK)
        status = comm_open(&world, &(CommConfig){.kind = ranks > 1 ? "fake" : "self", .fake_size = ranks});
    if (status == OK) status = trainer_open_data(&t, world, &r);
    if (status == OK) status = plan_opened(&t, a, ranks);
    dataset_close(t.valid);
    dataset_close(t.train);
    session_close(&t.s);
    comm_close(world);
    recipe_free(&r);
    return status;
}
