// plan.c: what a run will take, without running it. The run's own code is run: it allocates over measuring arenas, and its first steps
// are made over a device that computes nothing and a communicator that pretends the other ranks and counts what is handed to it.
// Nothing here knows how a model is cut, what a step exchanges, or how a checkpoint is laid out.
#include "trainer.h"
#include <jansson.h>
#include <stdlib.h>

enum { REHEARSED_STEPS = 20 };

typedef struct Plan {
    int ranks, tensor, data, zero;
    int64_t params, trained, steps;
    LoaderBounds bounds;
    Footprint f;     // of the rank that holds most
    int rank;        // it
    Traffic traffic; // of rank 0, which has the longest micro-batches, in the rehearsed steps
    int rehearsed;
    uint64_t checkpoint_bytes, result_bytes;
    size_t memory;
    int largest_micro;
} Plan;

// ---- rehearsals -----------------------------------------------------------------------------------------------------
typedef struct Stage {
    Trainer *t;
    Comm *world;
    Device *device; // the real one
    int ranks;
    size_t program; // resident before anything is rehearsed
} Stage;

static int steps_of(const Trainer *t)
{
    return (int)MIN(t->total_steps, REHEARSED_STEPS);
}

static int be_rank(Stage *g, int rank)
{
    Trainer *t = g->t;
    mesh_close(&t->s.mesh);
    comm_close(g->world);
    g->world = NULL;
    const CommConfig c = {.kind = g->ranks > 1 ? "fake" : "self", .fake_size = g->ranks, .fake_rank = rank};
    TRY(comm_open(&g->world, &c));
    TRY(mesh_open(&t->s.mesh, g->world, (int)t->s.recipe.parallel.tensor));
    t->loader_config.data_rank = t->s.mesh.data_rank;
    return OK;
}

static int make_steps(Trainer *t, int steps, Traffic *sum)
{
    TRY(loader_open(&t->loader, &t->loader_config, 0));
    const Traffic before = step_traffic(t);
    while (t->step < steps) TRY(train_step(t, &(StepResult){0}));
    *sum = traffic_since(step_traffic(t), &before);
    return OK;
}

// Makes the first steps as rank `rank`; then the trainer stands as a run's would, but without memory, until clear_stage.
static int rehearse(Stage *g, int rank, const LoaderBounds *b, int steps, Traffic *traffic)
{
    Trainer *t = g->t;
    TRY(be_rank(g, rank));
    TRY(device_open_null(&t->s.dev, g->device));
    TRY(trainer_measure(t, b));
    return make_steps(t, steps, traffic);
}

static void clear_stage(Stage *g)
{
    Trainer *t = g->t;
    loader_close(t->loader);
    trainer_close_memory(t);
    if (t->s.dev != g->device) device_close(t->s.dev);
    t->loader = NULL;
    t->s.dev = g->device;
    t->step = 0;
}

// ---- what is read from them -----------------------------------------------------------------------------------------
static int read_run(const Trainer *t, Plan *p)
{
    p->params = model_params(t->s.model);
    p->trained = model_trained_params(t->s.model);
    p->result_bytes = export_bytes(&t->s);
    return state_bytes(t, &p->checkpoint_bytes);
}

static int rehearse_run(Stage *g, Plan *p)
{
    Trainer *t = g->t;
    const LoaderBounds b = trainer_bounds(t);
    p->ranks = g->ranks;
    p->tensor = t->s.mesh.tensor_size;
    p->data = t->s.mesh.data_size;
    p->zero = (int)t->s.recipe.parallel.zero;
    p->steps = t->total_steps;
    p->rehearsed = steps_of(t);
    int status = rehearse(g, 0, &b, p->rehearsed, &p->traffic);
    if (status == OK) status = read_run(t, p);
    clear_stage(g);
    return status;
}

static int measure_rank(Stage *g, int rank, const LoaderBounds *b, Footprint *f)
{
    Traffic traffic;
    int status = rehearse(g, rank, b, steps_of(g->t), &traffic);
    if (status == OK) status = footprint_read(g->t, b, g->program, f);
    clear_stage(g);
    return status;
}

static int try_ranks(Stage *g, Plan *p, int first)
{
    TRY(be_rank(g, first));
    const LoaderBounds b = trainer_bounds(g->t);
    for (int rank = first; rank < first + p->tensor; rank++) {
        Footprint f;
        TRY(measure_rank(g, rank, &b, &f));
        if (f.total <= p->f.total) continue;
        p->f = f;
        p->bounds = b;
        p->rank = rank;
    }
    return OK;
}

// Of the data ranks the first has the longest micro-batches, the last the larger part of every tensor that is dealt out; tensor ranks
// differ where heads do not divide.
static int find_largest_rank(Stage *g, Plan *p)
{
    TRY(try_ranks(g, p, 0));
    return p->data > 1 ? try_ranks(g, p, p->ranks - p->tensor) : OK;
}

// Largest train.micro_tokens whose total fits, by bisection over the same measurement; 0: not even the longest row alone.
static int find_largest_micro(Stage *g, Plan *p)
{
    LoaderConfig *c = &g->t->loader_config;
    const int asked = c->micro_tokens;
    int low = 0, high = 1 << 17;
    while (high - low > 16) {
        Footprint f = {0};
        c->micro_tokens = (low + high) / 2;
        const LoaderBounds b = trainer_bounds(g->t);
        TRY(measure_rank(g, p->rank, &b, &f));
        *(f.total <= p->memory ? &low : &high) = c->micro_tokens;
    }
    c->micro_tokens = asked;
    p->largest_micro = low;
    return OK;
}

static int make_plan(Stage *g, Plan *p)
{
    TRY(rehearse_run(g, p));
    TRY(find_largest_rank(g, p));
    return find_largest_micro(g, p);
}

// ---- what is told ---------------------------------------------------------------------------------------------------
static const struct PlanClass {
    const char *name;
    size_t offset;
} classes[] = {
    {"program and data", offsetof(Footprint, program)},
    {"weights", offsetof(Footprint, weights)},
    {"f32 masters", offsetof(Footprint, masters)},
    {"AdamW moments", offsetof(Footprint, moments)},
    {"gradients", offsetof(Footprint, gradients)},
    {"ZeRO buffers", offsetof(Footprint, exchange)},
    {"activations", offsetof(Footprint, activations)},
    {"kernels' scratch", offsetof(Footprint, scratch)},
    {"batches", offsetof(Footprint, batches)},
    {"generation (rouge)", offsetof(Footprint, evaluation)},
    {"checkpoint snapshot", offsetof(Footprint, snapshot)},
    {"MPI, shared memory", offsetof(Footprint, comm)},
};

static size_t class_bytes(const Footprint *f, const struct PlanClass *c)
{
    return *(const size_t *)((const char *)f + c->offset);
}

typedef struct PlanGroup {
    const char *name;
    int ranks;
    const CommStats *stats;
} PlanGroup;
enum { GROUPS = 3 };

static void groups_of(const Plan *p, PlanGroup g[GROUPS])
{
    g[0] = (PlanGroup){"tensor", p->tensor, &p->traffic.tensor};
    g[1] = (PlanGroup){"data", p->data, &p->traffic.data};
    g[2] = (PlanGroup){"world", p->ranks, &p->traffic.world};
}

static uint64_t per_step(const Plan *p, uint64_t bytes)
{
    return (bytes + (uint64_t)p->rehearsed / 2) / (uint64_t)p->rehearsed;
}

static uint64_t wire_bytes(const Plan *p)
{
    return p->traffic.tensor.wire_bytes + p->traffic.data.wire_bytes + p->traffic.world.wire_bytes;
}

// At so many bytes a second; 0 when that is not known.
static double seconds(uint64_t bytes, double rate)
{
    return rate > 0 ? (double)bytes / rate : 0;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_memory(const Plan *p)
{
    printf("\nmemory of rank %d, the largest of %d (data %d x tensor %d, ZeRO %d)\n", p->rank, p->ranks, p->data,
           p->tensor, p->zero);
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        if (class_bytes(&p->f, &classes[i]))
            printf("  %-20s %11.1f MiB\n", classes[i].name, mib(class_bytes(&p->f, &classes[i])));
    printf("  %-20s %11.1f MiB\n", "total", mib(p->f.total));
}

static void print_traffic_row(const Plan *p, const char *name, uint64_t bytes, uint64_t wire, double net_gbps)
{
    printf("  %-20s %11.2f MiB, %.2f MiB on the wire", name, mib(per_step(p, bytes)), mib(per_step(p, wire)));
    if (net_gbps > 0) printf(", %.3g s", seconds(per_step(p, wire), net_gbps * 1e9 / 8));
    printf("\n");
}

static void print_traffic(const Plan *p, double net_gbps)
{
    PlanGroup g[GROUPS];
    groups_of(p, g);
    printf("\ncommunication of a step, handed in by rank 0 (mean of %d step%s)\n", p->rehearsed,
           p->rehearsed > 1 ? "s" : "");
    for (int i = 0; i < GROUPS; i++)
        if (g[i].ranks > 1)
            print_traffic_row(p, tmpf("%s (%d ranks)", g[i].name, g[i].ranks), g[i].stats->bytes,
                              g[i].stats->wire_bytes, net_gbps);
    print_traffic_row(p, "total", traffic_bytes(&p->traffic), wire_bytes(p), net_gbps);
}

static void print_plan(const Plan *p, const Recipe *r, const PlanArgs *a)
{
    printf("parameters   %.3f M, trained %.3f M (%.3f %%)\n", (double)p->params / 1e6, (double)p->trained / 1e6,
           100.0 * (double)p->trained / (double)MAX(p->params, 1));
    printf("steps        %lld of %lld sequences; largest micro-batch %d tokens, %d trained\n", (long long)p->steps,
           (long long)r->train.batch, p->bounds.T, p->bounds.M);
    print_memory(p);
    print_traffic(p, a->net_gbps);
    printf("\ncheckpoint   %.1f MiB", mib(p->checkpoint_bytes));
    if (a->disk_mbps > 0) printf(", %.3g s", seconds(p->checkpoint_bytes, a->disk_mbps * 1e6));
    printf("\nresult       %.1f MiB\n", mib(p->result_bytes));
    if (p->largest_micro > 0)
        printf("micro_tokens up to about %d fit into %.1f GiB\n", p->largest_micro, (double)p->memory / (1 << 30));
    else
        printf("micro_tokens this does not fit into %.1f GiB\n", (double)p->memory / (1 << 30));
}

static json_t *traffic_json(const Plan *p, uint64_t bytes, uint64_t wire, double net_gbps)
{
    json_t *j =
        json_pack("{s:I, s:I}", "bytes", (json_int_t)per_step(p, bytes), "wire_bytes", (json_int_t)per_step(p, wire));
    if (net_gbps > 0) json_object_set_new(j, "seconds", json_real(seconds(per_step(p, wire), net_gbps * 1e9 / 8)));
    return j;
}

static json_t *groups_json(const Plan *p, double net_gbps)
{
    PlanGroup g[GROUPS];
    json_t *j = json_object();
    groups_of(p, g);
    for (int i = 0; i < GROUPS; i++) {
        json_t *row = traffic_json(p, g[i].stats->bytes, g[i].stats->wire_bytes, net_gbps);
        json_object_set_new(row, "ranks", json_integer(g[i].ranks));
        json_object_set_new(j, g[i].name, row);
    }
    json_object_set_new(j, "total", traffic_json(p, traffic_bytes(&p->traffic), wire_bytes(p), net_gbps));
    return j;
}

static void print_plan_json(const Plan *p, const PlanArgs *a)
{
    json_t *by_class = json_object();
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        json_object_set_new(by_class, classes[i].name, json_integer((json_int_t)class_bytes(&p->f, &classes[i])));
    json_t *j = json_pack("{s:I, s:I, s:i, s:i, s:i, s:i, s:I}", "parameters", (json_int_t)p->params,
                          "trained_parameters", (json_int_t)p->trained, "ranks", p->ranks, "data", p->data, "tensor",
                          p->tensor, "zero", p->zero, "steps", (json_int_t)p->steps);
    json_object_set_new(j, "largest_rank", json_integer(p->rank));
    json_object_set_new(j, "bytes", by_class);
    json_object_set_new(j, "bytes_per_rank", json_integer((json_int_t)p->f.total));
    json_object_set_new(j, "comm", groups_json(p, a->net_gbps));
    json_object_set_new(j, "comm_bytes_per_step", json_integer((json_int_t)per_step(p, traffic_bytes(&p->traffic))));
    json_object_set_new(j, "checkpoint_bytes", json_integer((json_int_t)p->checkpoint_bytes));
    if (a->disk_mbps > 0)
        json_object_set_new(j, "checkpoint_s", json_real(seconds(p->checkpoint_bytes, a->disk_mbps * 1e6)));
    json_object_set_new(j, "result_bytes", json_integer((json_int_t)p->result_bytes));
    json_object_set_new(j, "memory_bytes", json_integer((json_int_t)p->memory));
    json_object_set_new(j, "largest_micro_tokens", json_integer(p->largest_micro));
    char *text = json_dumps(j, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    puts(text);
    free(text);
    json_decref(j);
}

// ---- the verb -------------------------------------------------------------------------------------------------------
static int plan_opened(Stage *g, const PlanArgs *a)
{
    Plan p = {.memory = a->memory_bytes ? a->memory_bytes : g->t->s.dev->memory_bytes}; // a GPU's, if it has its own
    if (!p.memory) {
        Topo topo;
        TRY(topo_read(&topo));
        p.memory = topo.memory_bytes / (size_t)g->ranks;
    }
    g->device = g->t->s.dev;
    g->program = rss_bytes();
    TRY(make_plan(g, &p));
    if (a->json)
        print_plan_json(&p, a);
    else
        print_plan(&p, &g->t->s.recipe, a);
    return OK;
}

int run_plan(const PlanArgs *a)
{
    Trainer t = {.s.on_paper = true};
    Stage g = {.t = &t, .ranks = MAX(a->ranks, 1)};
    Recipe r = {0};
    int status = recipe_load(&r, a->train.recipe, a->train.overrides, a->train.n_overrides);
    if (status == OK)
        status = comm_open(&g.world, &(CommConfig){.kind = g.ranks > 1 ? "fake" : "self", .fake_size = g.ranks});
    if (status == OK) status = trainer_open_data(&t, g.world, &r);
    if (status == OK) status = plan_opened(&g, a);
    dataset_close(t.valid);
    dataset_close(t.train);
    session_close(&t.s);
    comm_close(g.world);
    recipe_free(&r);
    return status;
}
