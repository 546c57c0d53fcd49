// runtime: what training means. This header is all that launch/ sees: one function per verb. Each opens what it needs, runs,
// and returns a status; results go to the files of the contract and, on rank 0, to the terminal.
#pragma once
#include "sharding.h"

typedef struct TrainArgs {
    const char *recipe;
    char *const *overrides;
    int n_overrides;
    bool resume, force;
    bool base; // eval: the recipe's model as it is, not what the run made of it
} TrainArgs;
int run_train(Comm *world, const TrainArgs *a);
int run_eval(Comm *world, const TrainArgs *a);

typedef struct PlanArgs {
    TrainArgs train;
    int ranks;           // 0: 1
    size_t memory_bytes; // 0: this machine's
    double disk_mbps;    // MB/s; 0: no times are told
    double net_gbps;     // Gbit/s
    bool json;
} PlanArgs;
int run_plan(const PlanArgs *a);

typedef struct ModelArgs {
    const char *model, *adapter, *precision, *device; // precision "", "bf16", "f32"; adapter may be NULL
} ModelArgs;
int run_score(Comm *world, const ModelArgs *m, const char *data, const char *out);

typedef struct GenerateArgs {
    ModelArgs model;
    const char *prompt, *data, *out, *system; // system: of --chat and --prompt
    bool chat, raw;                           // raw: the prompt is not put through the chat template
    int max_new, top_k;
    double temperature, top_p;
    uint64_t seed;
} GenerateArgs;
int run_generate(Comm *world, const GenerateArgs *a);

int run_tokenize(const char *model, const char *data, const char *out, bool decode, bool add_special);
int run_data(const TrainArgs *a, int show);
int run_convert(const char *src, const char *dst, const char *adapter, const char *dtype); // dtype "", "f32", "bf16"
int run_inspect(const char *path, bool json);
int run_doctor(Comm *world);
void run_recipe_help(FILE *out);
void run_recipe_keys(FILE *out); // "key" and "section.key", one a line: for shell completion
