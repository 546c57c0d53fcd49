// cli: from argv to Cli. argp (glibc) walks the arguments and formats the help; errors are told in attune's own format, and the
// process ends in main alone, so argp's own --help, messages and exits are off.
#include "cli.h"
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char place[] = "command line";
enum { FIRST_KEY = 1000, MAX_CLI_OPTIONS = 24 }; // keys above the characters, so that no option has a short form

// ---- verbs by name ----------------------------------------------------------------------------------------
// What other programs call the same thing
static const char *const other_verbs[][2] = {
    {"chat", "attune generate MODEL --chat"},
    {"run", "attune train RECIPE"},
    {"finetune", "attune train RECIPE"},
    {"fine-tune", "attune train RECIPE"},
    {"infer", "attune generate MODEL"},
    {"inference", "attune generate MODEL"},
    {"evaluate", "attune eval RECIPE"},
    {"test", "attune eval RECIPE"},
    {"merge", "attune convert SRC DST --adapter"},
    {"fuse", "attune convert SRC DST --adapter"},
    {"export", "attune convert SRC DST"},
    {"preprocess", "attune data RECIPE"},
    {"validate", "attune data RECIPE"},
    {"env", "attune doctor"},
    {"info", "attune inspect PATH"},
    {"logprobs", "attune score MODEL"},
};

const Verb *verb_find(const char *name)
{
    for (int i = 0; i < n_verbs; i++)
        if (streq(verbs[i].name, name)) return &verbs[i];
    return NULL;
}

static const char *verb_hint(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(other_verbs); i++)
        if (streq(other_verbs[i][0], name)) return tmpf("here it is `%s`", other_verbs[i][1]);
    const char *nearest = NULL;
    int best = 3; // two typing errors
    for (int i = 0; i < n_verbs; i++) {
        int d = edit_distance(name, verbs[i].name);
        if (!verbs[i].hidden && d < best && d < (int)strlen(verbs[i].name)) best = d, nearest = verbs[i].name;
    }
    return nearest ? tmpf("did you mean `attune %s`?", nearest) : "`attune help` lists the verbs";
}

void cli_print_verbs(FILE *out)
{
    fputs("attune fine-tunes language models. Alone it is one rank; under `mpirun -n N` it is N ranks.\n\n"
          "Usage: attune VERB [OPTION...] ARGUMENTS\n\n",
          out);
    for (int i = 0; i < n_verbs; i++)
        if (!verbs[i].hidden) fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].help);
    fputs("\n`attune VERB --help` tells a verb's options, `attune help recipe` a recipe's.\n", out);
}

// ---- values -----------------------------------------------------------------------------------------------
static int bad_value(const CliOption *o, const char *given, const char *want)
{
    return fail(E_INPUT, place, NULL, "--%s takes %s, not \"%s\"", o->name, want, given);
}

static int read_whole(const CliOption *o, const char *s, int *out)
{
    char *end = NULL;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    const char *want = tmpf("a whole number from %.0f to %.0f", o->min, o->max);
    if (isspace((unsigned char)*s) || end == s || *end || errno || (double)v < o->min || (double)v > o->max)
        return bad_value(o, s, want);
    *out = (int)v;
    return OK;
}

static int read_seed(const CliOption *o, const char *s, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    *out = strtoull(s, &end, 10);
    if (!isdigit((unsigned char)*s) || *end || errno) return bad_value(o, s, "a whole number");
    return OK;
}

static int read_real(const CliOption *o, const char *s, double *out)
{
    char *end = NULL;
    *out = strtod(s, &end);
    bool number = end > s && !*end && !isspace((unsigned char)*s) && isfinite(*out);
    if (!number || *out < o->min || *out > o->max)
        return bad_value(o, s, tmpf("a number from %g to %g", o->min, o->max));
    return OK;
}

// "16G", "512M", "8e9": powers of 1024 for K, M, G, T
static int read_bytes(const CliOption *o, const char *s, size_t *out)
{
    static const char units[] = "KMGT";
    char *end = NULL;
    double v = strtod(s, &end);
    if (end > s && *end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit) return bad_value(o, s, "a size such as 16G");
        v = ldexp(v, 10 * (int)(unit - units + 1));
        end++;
        if (*end == 'i') end++;
        if (*end == 'B') end++;
    }
    if (end == s || *end || !(v >= 1) || v > 0x1p60) return bad_value(o, s, "a size such as 16G");
    *out = (size_t)v;
    return OK;
}

static int read_text(const CliOption *o, const char *s, const char **out)
{
    bool choice = strchr(o->arg, '|') != NULL, known = false;
    for (const char *c = o->arg; choice && *c && !known;) {
        size_t n = strcspn(c, "|");
        known = strlen(s) == n && memcmp(c, s, n) == 0;
        c += n + (c[n] == '|');
    }
    if (choice && !known) return bad_value(o, s, o->arg);
    *out = s;
    return OK;
}

static int set_option(Cli *c, const CliOption *o, const char *arg)
{
    void *to = (char *)c + o->offset;
    switch (o->type) {
    case CLI_FLAG: *(bool *)to = true; return OK;
    case CLI_TEXT: return read_text(o, arg, to);
    case CLI_INT: return read_whole(o, arg, to);
    case CLI_SEED: return read_seed(o, arg, to);
    case CLI_REAL: return read_real(o, arg, to);
    case CLI_BYTES: return read_bytes(o, arg, to);
    }
    return OK;
}

// ---- argp -------------------------------------------------------------------------------------------------
// What argp could not read: says only that it failed, so the culprit is looked at again.
static int explain(const Verb *v, const char *word)
{
    size_t n = strcspn(word, "=");
    const char *nearest = NULL;
    int best = 4;
    if (strncmp(word, "--", 2) != 0)
        return fail(E_INPUT, place, tmpf("`attune %s --help` tells the options", v->name), "unknown option %s", word);
    for (const CliOption *o = v->options; o && o->name; o++) {
        if (strlen(o->name) == n - 2 && strncmp(o->name, word + 2, n - 2) == 0) {
            const char *usage = tmpf("--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
            return fail(E_INPUT, place, usage, "--%s takes %s value", o->name, o->arg ? "a" : "no");
        }
        int d = edit_distance(tmpf("%.*s", (int)n - 2, word + 2), o->name);
        if (d < best && d < (int)strlen(o->name)) best = d, nearest = o->name;
    }
    const char *hint =
        nearest ? tmpf("did you mean --%s?", nearest) : tmpf("`attune %s --help` tells the options", v->name);
    return fail(E_INPUT, place, hint, "attune %s has no option %.*s", v->name, (int)n, word);
}

static error_t on_event(int key, char *arg, struct argp_state *state)
{
    Cli *c = state->input;
    if (key >= FIRST_KEY && key < FIRST_KEY + MAX_CLI_OPTIONS)
        return set_option(c, &c->verb->options[key - FIRST_KEY], arg) < 0 ? EINVAL : 0;
    switch (key) {
    case ARGP_KEY_ARG: c->args[c->n_args++] = arg; return 0;
    case 'h': c->help = true; return 0;
    case 'V': c->version = true; return 0;
    case ARGP_KEY_ERROR:
        if (!error_last()->code) {
            const char *word = state->argv[MAX(state->next - 1, 0)];
            if (*word != '-' && state->next < state->argc) word = state->argv[state->next];
            explain(c->verb, word);
        }
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

// argp's view of a verb: lives in *options, which has room for MAX_CLI_OPTIONS.
static struct argp argp_of(const Verb *v, struct argp_option *options, char *doc, size_t doc_bytes)
{
    int n = 0;
    for (; v->options && v->options[n].name; n++) {
        ASSERT(n < MAX_CLI_OPTIONS - 3);
        const CliOption *o = &v->options[n];
        options[n] = (struct argp_option){.name = o->name, .key = FIRST_KEY + n, .arg = o->arg, .doc = o->help};
    }
    options[n++] = (struct argp_option){.name = "help", .key = 'h', .doc = "this text", .group = -1};
    options[n++] = (struct argp_option){.name = "version", .key = 'V', .doc = "the version", .group = -1};
    options[n] = (struct argp_option){0};
    snprintf(doc, doc_bytes, "%c%s.", toupper((unsigned char)v->help[0]), v->help + 1);
    return (struct argp){.options = options, .parser = on_event, .args_doc = v->args, .doc = doc};
}

int cli_print_help(const char *name, FILE *out)
{
    const Verb *v = verb_find(name);
    if (!v) return fail(E_INPUT, place, verb_hint(name), "there is no verb %s", name);
    struct argp_option options[MAX_CLI_OPTIONS];
    char doc[256], title[64];
    struct argp argp = argp_of(v, options, doc, sizeof doc);
    snprintf(title, sizeof title, "attune %s", name);
    argp_help(&argp, out, ARGP_HELP_STD_HELP & ~(unsigned)ARGP_HELP_EXIT_OK, title);
    return OK;
}

// The part of a verb's arguments that must be there: "RECIPE" of "RECIPE [section.key=value ...]"
static const char *needed_args(const Verb *v)
{
    int n = (int)strcspn(v->args, "[");
    while (n && v->args[n - 1] == ' ') n--;
    return tmpf("%.*s", n, v->args);
}

static int check_count(const Cli *c)
{
    const Verb *v = c->verb;
    if (c->n_args >= v->min_args && c->n_args <= v->max_args) return OK;
    const char *usage = tmpf("attune %s%s%s", v->name, *v->args ? " " : "", v->args);
    if (c->n_args < v->min_args) return fail(E_INPUT, place, usage, "attune %s needs %s", v->name, needed_args(v));
    const char *extra = c->args[v->max_args];
    return fail(E_INPUT, place, usage, "attune %s does not know what to do with \"%s\"", v->name, extra);
}

static int parse_args(Cli *c, int argc, char **argv)
{
    const Verb *v = c->verb;
    struct argp_option options[MAX_CLI_OPTIONS];
    char doc[256];
    struct argp argp = argp_of(v, options, doc, sizeof doc);
    error_t rc = argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_NO_EXIT, NULL, c);
    if (error_last()->code) return error_last()->code;
    if (rc)
        return fail(E_INPUT, place, tmpf("`attune %s --help` tells the options", v->name), "cannot read the options");
    if (c->help || c->version) { // `attune train --help` is `attune help train`
        c->verb = verb_find(c->help ? "help" : "version");
        c->args[0] = (char *)v->name;
        c->n_args = 1;
        return OK;
    }
    TRY(check_count(c));
    return v->check ? v->check(c) : OK;
}

int cli_parse(Cli *out, int argc, char **argv)
{
    if (argc < 2) return fail(E_INPUT, place, "`attune help` lists the verbs", "no verb is given");
    const char *first = argv[1];
    if (streq(first, "--help") || streq(first, "-h") || streq(first, "-?")) first = "help";
    if (streq(first, "--version") || streq(first, "-V")) first = "version";
    const Verb *v = verb_find(first);
    if (!v && *first == '-')
        return fail(E_INPUT, place, "attune VERB [OPTION...]", "the verb comes first, then options such as %s", first);
    if (!v) return fail(E_INPUT, place, verb_hint(first), "there is no verb %s", first);

    *out = (Cli){.verb = v,
                 .args = xcalloc((size_t)argc, sizeof(char *)),
                 .precision = "",
                 .device = "",
                 .dtype = "",
                 .max_new = 256,
                 .top_p = 1,
                 .seed = 1};
    return parse_args(out, argc - 1, argv + 1);
}

void cli_free(Cli *c)
{
    free(c->args);
    memset(c, 0, sizeof *c);
}
