// cli_verbs: the verbs, their options, and how each is handed to runtime/. Adding a verb: a row in `verbs`, a table of options if
// it has any, a function of a few lines.
#include "cli.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define FLAG(name_, field, doc)                                                                                        \
    {                                                                                                                  \
        .name = name_, .help = doc, .type = CLI_FLAG, .offset = offsetof(Cli, field)                                   \
    }
#define VALUE(type_, name_, field, arg_, doc)                                                                          \
    {                                                                                                                  \
        .name = name_, .arg = arg_, .help = doc, .type = type_, .offset = offsetof(Cli, field)                         \
    }
#define TEXT(name, field, arg, doc) VALUE(CLI_TEXT, name, field, arg, doc)
#define RANGE(type_, name_, field, arg_, low, high, doc)                                                               \
    {                                                                                                                  \
        .name = name_, .arg = arg_, .help = doc, .type = type_, .offset = offsetof(Cli, field), .min = low,            \
        .max = high                                                                                                    \
    }
#define ON_MODEL                                                                                                       \
    TEXT("precision", precision, "bf16|f32", "of activations and weights (default bf16 where the machine has it)"),    \
        TEXT("device", device, "auto|cpu|cuda", "where the kernels run (default auto)")
#define ADAPTER(doc) TEXT("adapter", adapter, "DIR", doc)
#define END                                                                                                            \
    {                                                                                                                  \
        .name = NULL                                                                                                   \
    }

// ---- options ----------------------------------------------------------------------------------------------
static const CliOption train_options[] = {
    FLAG("resume", resume, "go on from the newest good checkpoint in the recipe's output"),
    FLAG("force", force, "start anew in an output directory that holds another run's files"),
    END,
};
static const CliOption eval_options[] = {
    FLAG("base", base, "the recipe's model as it is, not what the run made of it; to OUTPUT/eval-base.json"),
    ON_MODEL,
    END,
};
static const CliOption score_options[] = {
    TEXT("data", data, "F.jsonl", "the rows to score"),
    TEXT("out", out, "G.jsonl", "one line per line of --data"),
    ADAPTER("PEFT adapter to apply"),
    ON_MODEL,
    END,
};
static const CliOption generate_options[] = {
    TEXT("prompt", prompt, "TEXT", "the user's message; the answer goes to the terminal"),
    TEXT("data", data, "F.jsonl", "a prompt a line; needs --out"),
    TEXT("out", out, "G.jsonl", "the lines of --data with the output added"),
    FLAG("chat", chat, "converse on the terminal"),
    ADAPTER("PEFT adapter to apply"),
    TEXT("system", system, "TEXT", "system message of --prompt and --chat"),
    FLAG("raw", raw, "continue the prompt as it is, without the chat template"),
    RANGE(CLI_INT, "max-new", max_new, "N", 1, 1 << 20, "most tokens to generate (default 256)"),
    RANGE(CLI_REAL, "temperature", temperature, "T", 0, 100, "0 takes the likeliest token each time (default 0)"),
    RANGE(CLI_REAL, "top-p", top_p, "P", 1e-6, 1,
          "sample from the likeliest tokens that together have probability P (default 1)"),
    RANGE(CLI_INT, "top-k", top_k, "K", 0, INT_MAX, "sample from the K likeliest tokens; 0: from all (default 0)"),
    VALUE(CLI_SEED, "seed", seed, "S", "of sampling (default 1)"),
    ON_MODEL,
    END,
};
static const CliOption plan_options[] = {
    RANGE(CLI_INT, "ranks", ranks, "N", 1, 1 << 20, "how many ranks to plan for (default 1)"),
    VALUE(CLI_BYTES, "memory", memory_bytes, "SIZE",
          "of a rank's machine, such as 16G (default: the GPU's, or this machine's)"),
    RANGE(CLI_REAL, "disk-mbps", disk_mbps, "N", 1e-3, 1e9, "MB/s of the disk: how long a checkpoint takes"),
    RANGE(CLI_REAL, "net-gbps", net_gbps, "N", 1e-6, 1e9, "Gbit/s of a rank's wire: how long exchanges take"),
    FLAG("json", json, "print JSON"),
    END,
};
static const CliOption tokenize_options[] = {
    TEXT("data", data, "F.jsonl", "lines with text or messages; with --decode, with ids"),
    TEXT("out", out, "G.jsonl", "one line per line of --data"),
    FLAG("decode", decode, "from ids to text"),
    FLAG("no-special", no_special, "without the special tokens that the tokenizer puts around plain text"),
    END,
};
static const CliOption data_options[] = {
    RANGE(CLI_INT, "show", show, "N", 0, 1 << 20, "samples to print, with the trained tokens marked (default 0)"),
    END,
};
static const CliOption convert_options[] = {
    ADAPTER("merge this PEFT adapter into the weights"),
    TEXT("dtype", dtype, "f32|bf16", "of the weights written (default: as stored, bf16 for quantized ones)"),
    END,
};
static const CliOption inspect_options[] = {FLAG("json", json, "print JSON"), END};

// ---- usage that the tables cannot say ---------------------------------------------------------------------
static const char place[] = "command line";

static int check_files(const Cli *c)
{
    const char *missing = !c->data ? "--data" : !c->out ? "--out" : NULL;
    if (!missing) return OK;
    return fail(E_INPUT, place, tmpf("attune %s MODEL --data F.jsonl --out G.jsonl", c->verb->name),
                "attune %s needs %s", c->verb->name, missing);
}

static int check_generate(const Cli *c)
{
    int ways = (c->prompt != NULL) + (c->data != NULL) + c->chat;
    if (ways != 1)
        return fail(E_INPUT, place, "give one of --prompt TEXT, --data F.jsonl --out G.jsonl, --chat",
                    ways ? "--prompt, --data and --chat exclude each other" : "attune generate needs a prompt");
    if (c->out && !c->data) return fail(E_INPUT, place, "remove --out, or give --data", "--out goes with --data only");
    if (c->raw && c->chat) return fail(E_INPUT, place, "use --prompt with --raw", "--chat cannot be --raw");
    return c->data ? check_files(c) : OK;
}

static int check_completions(const Cli *c)
{
    if (streq(c->args[0], "bash")) return OK;
    return fail(E_INPUT, place, "attune completions bash", "no completions for the shell \"%s\"", c->args[0]);
}

// ---- verbs ------------------------------------------------------------------------------------------------
static TrainArgs recipe_args(const Cli *c)
{
    return (TrainArgs){.recipe = c->args[0],
                       .overrides = c->args + 1,
                       .n_overrides = c->n_args - 1,
                       .resume = c->resume,
                       .force = c->force};
}

static ModelArgs model_args(const Cli *c)
{
    return (ModelArgs){.model = c->args[0],
                       .adapter = c->adapter,
                       .precision = c->precision,
                       .device = *c->device ? c->device : "auto"};
}

static int verb_train(Comm *world, const Cli *c)
{
    TrainArgs a = recipe_args(c);
    return run_train(world, &a);
}

// --precision and --device are the recipe's options of these names.
static int verb_eval(Comm *world, const Cli *c)
{
    char *given[2] = {*c->precision ? xasprintf("precision=%s", c->precision) : NULL,
                      *c->device ? xasprintf("device=%s", c->device) : NULL};
    int n = c->n_args - 1;
    char **overrides = xcalloc((size_t)n + COUNT_OF(given), sizeof *overrides);
    memcpy(overrides, c->args + 1, (size_t)n * sizeof *overrides);
    for (size_t i = 0; i < COUNT_OF(given); i++)
        if (given[i]) overrides[n++] = given[i];
    TrainArgs a = {.recipe = c->args[0], .overrides = overrides, .n_overrides = n, .base = c->base};
    int status = run_eval(world, &a);
    for (size_t i = 0; i < COUNT_OF(given); i++) free(given[i]);
    free(overrides);
    return status;
}

static int verb_score(Comm *world, const Cli *c)
{
    ModelArgs m = model_args(c);
    return run_score(world, &m, c->data, c->out);
}

static int verb_generate(Comm *world, const Cli *c)
{
    GenerateArgs g = {.model = model_args(c),
                      .prompt = c->prompt,
                      .data = c->data,
                      .out = c->out,
                      .system = c->system,
                      .chat = c->chat,
                      .raw = c->raw,
                      .max_new = c->max_new,
                      .top_k = c->top_k,
                      .temperature = c->temperature,
                      .top_p = c->top_p,
                      .seed = c->seed};
    return run_generate(world, &g);
}

static int verb_plan(Comm *world, const Cli *c)
{
    (void)world;
    PlanArgs p = {.train = recipe_args(c),
                  .ranks = c->ranks,
                  .memory_bytes = c->memory_bytes,
                  .disk_mbps = c->disk_mbps,
                  .net_gbps = c->net_gbps,
                  .json = c->json};
    return run_plan(&p);
}

static int verb_data(Comm *world, const Cli *c)
{
    (void)world;
    TrainArgs a = recipe_args(c);
    return run_data(&a, c->show);
}

static int verb_tokenize(Comm *world, const Cli *c)
{
    (void)world;
    return run_tokenize(c->args[0], c->data, c->out, c->decode, !c->no_special);
}

static int verb_convert(Comm *world, const Cli *c)
{
    (void)world;
    return run_convert(c->args[0], c->args[1], c->adapter, c->dtype);
}

static int verb_inspect(Comm *world, const Cli *c)
{
    (void)world;
    return run_inspect(c->args[0], c->json);
}

static int verb_doctor(Comm *world, const Cli *c)
{
    (void)c;
    return run_doctor(world);
}

static int verb_help(Comm *world, const Cli *c)
{
    (void)world;
    if (c->n_args == 0)
        cli_print_verbs(stdout);
    else if (streq(c->args[0], "recipe"))
        run_recipe_help(stdout);
    else
        return cli_print_help(c->args[0], stdout);
    return OK;
}

static int verb_version(Comm *world, const Cli *c)
{
    (void)world;
    (void)c;
    puts("attune " ATTUNE_VERSION);
    return OK;
}

static int verb_completions(Comm *world, const Cli *c)
{
    (void)world;
    (void)c;
    completions_print_bash(stdout);
    return OK;
}

#define RECIPE "RECIPE [section.key=value ...]"
const Verb verbs[] = {
    {"train", RECIPE, "run what the recipe describes", train_options, 1, INT_MAX, .world = true, .binds = true,
     .run = verb_train},
    {"eval", RECIPE, "metrics on data.test", eval_options, 1, INT_MAX, .world = true, .binds = true, .run = verb_eval},
    {"score", "MODEL", "log-probabilities of given tokens", score_options, 1, 1, .world = true, .binds = true,
     .check = check_files, .run = verb_score},
    {"generate", "MODEL", "text from a prompt, for a file of prompts, or in a chat", generate_options, 1, 1,
     .world = true, .binds = true, .check = check_generate, .run = verb_generate},
    {"plan", RECIPE, "what a run will need, without running it", plan_options, 1, INT_MAX, .run = verb_plan},
    {"tokenize", "MODEL", "token ids as the model sees them", tokenize_options, 1, 1, .check = check_files,
     .run = verb_tokenize},
    {"data", RECIPE, "what the model will see of the data, and what is wrong with it", data_options, 1, INT_MAX,
     .run = verb_data},
    {"convert", "SRC DST", "between Hugging Face, GGUF, PEFT and checkpoints; merge an adapter", convert_options, 2, 2,
     .run = verb_convert},
    {"inspect", "PATH", "what a model, adapter, dataset or checkpoint is; verify a checkpoint", inspect_options, 1, 1,
     .run = verb_inspect},
    {"doctor", "", "this machine: what attune uses, what is missing", NULL, 0, 0, .world = true, .run = verb_doctor},
    {"help", "[VERB|recipe]", "this list, a verb's options, or every option of a recipe", NULL, 0, 1, .run = verb_help},
    {"version", "", "the version", NULL, 0, 0, .hidden = true, .run = verb_version},
    {"completions", "bash", "shell completion, for `source <(attune completions bash)`", NULL, 1, 1, .hidden = true,
     .check = check_completions, .run = verb_completions},
};
const int n_verbs = COUNT_OF(verbs);
