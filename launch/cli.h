// cli: attune's command line: which verbs there are, which options each has, and what they were given. One table of verbs, one
// table of options per verb; their readers are the parser (cli.c), --help, and shell completion (completions.c).
#pragma once
#include "runtime.h"

typedef struct Verb Verb;

// Everything any verb's options can set; each verb reads its own.
typedef struct Cli {
    const Verb *verb;
    char **args; // positional arguments
    int n_args;
    const char *adapter, *precision, *device, *data, *out, *prompt, *system, *dtype;
    bool resume, force, json, decode, no_special, chat, raw, base, help, version;
    int max_new, top_k, show, ranks;
    double temperature, top_p, disk_mbps, net_gbps;
    size_t memory_bytes;
    uint64_t seed;
} Cli;

typedef enum CliType { CLI_FLAG, CLI_TEXT, CLI_INT, CLI_SEED, CLI_REAL, CLI_BYTES } CliType;

typedef struct CliOption {
    const char *name; // without "--"; NULL ends a table
    const char *arg;  // name of its value in --help; NULL: a flag. "a|b": only these
    const char *help;
    CliType type;
    size_t offset;   // of the field in Cli
    double min, max; // of INT and REAL
} CliOption;

struct Verb {
    const char *name, *args, *help;
    const CliOption *options;
    int min_args, max_args;
    bool world; // works on all ranks; else rank 0 works and the others wait
    bool binds; // takes its share of the cores
    bool hidden;
    int (*check)(const Cli *c); // usage that the tables cannot say; may be NULL
    int (*run)(Comm *world, const Cli *c);
};
extern const Verb verbs[];
extern const int n_verbs;
const Verb *verb_find(const char *name); // NULL: unknown

// E_INPUT on wrong usage.
int cli_parse(Cli *out, int argc, char **argv);
void cli_free(Cli *c);
void cli_print_verbs(FILE *out);
int cli_print_help(const char *verb, FILE *out);
void completions_print_bash(FILE *out);
