// recipe: the option table and what gives options their values: defaults, the YAML file (read by
// recipe_yaml.c), overrides; then the checks that look at several options. Printing is recipe_print.c's,
// suggestions are recipe_hint.c's.
//
// Numbers follow the core schema of YAML 1.2, section 10.3: 1e-5 and 2.0E-4
// are numbers, 1_000 and "1" are not. A whole number may be written 1e3.
#include "recipe_impl.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

// ---- the table --------------------------------------------------------------------------------------------
static Option options[MAX_OPTIONS];
static char names[MAX_OPTIONS][48];
static int n_options;

static void add_option(Option o)
{
    ASSERT(n_options < MAX_OPTIONS);
    snprintf(names[n_options], sizeof names[0], "%s%s%s", o.section, *o.section ? "." : "", o.key);
    o.name = names[n_options];
    options[n_options++] = o;
}

static void build_table(void)
{
    static Recipe layout; // only its addresses are used
#define TOP_BEGIN                                                                                                      \
    {                                                                                                                  \
        const char *in = "";                                                                                           \
        Recipe *at = &layout;
#define TOP_END }
#define SECTION_BEGIN(name)                                                                                            \
    {                                                                                                                  \
        const char *in = #name;                                                                                        \
        __typeof__(layout.name) *at = &layout.name;
#define SECTION_END(name) }
#define ROW(key_, type_, ...)                                                                                          \
    add_option((Option){.section = in,                                                                                 \
                        .key = #key_,                                                                                  \
                        .type = type_,                                                                                 \
                        .offset = (size_t)((char *)&at->key_ - (char *)&layout),                                       \
                        __VA_ARGS__});
#define OPT_STR(key, def, doc)              ROW(key, TYPE_STR, .text = def, .help = doc)
#define OPT_CHOICE(key, def, set, doc)      ROW(key, TYPE_CHOICE, .text = def, .choices = set, .help = doc)
#define OPT_INT(key, def, low, high, doc)   ROW(key, TYPE_INT, .i = def, .i_min = low, .i_max = high, .help = doc)
#define OPT_FLOAT(key, def, low, high, doc) ROW(key, TYPE_FLOAT, .f = def, .f_min = low, .f_max = high, .help = doc)
#define OPT_BOOL(key, def, doc)             ROW(key, TYPE_BOOL, .b = def, .help = doc)
#define OPT_LIST(key, def, doc)             ROW(key, TYPE_LIST, .text = def, .help = doc)
#define OPT_MAP(key, def, doc)              ROW(key, TYPE_MAP, .text = def, .help = doc)
#include "config/recipe.def"
}

const Option *option_table(int *n)
{
    static once_flag once = ONCE_FLAG_INIT;
    call_once(&once, build_table);
    *n = n_options;
    return options;
}

const Option *option_find(const char *section, const char *key)
{
    int n;
    const Option *o = option_table(&n);
    for (int i = 0; i < n; i++)
        if (streq(o[i].section, section) && streq(o[i].key, key)) return &o[i];
    return NULL;
}

bool section_exists(const char *name)
{
    int n;
    const Option *o = option_table(&n);
    for (int i = 0; i < n; i++)
        if (*o[i].section && streq(o[i].section, name)) return true;
    return false;
}

// ---- the strings' owner -----------------------------------------------------------------------------------
typedef struct Chunk {
    struct Chunk *next;
    max_align_t data[];
} Chunk;

typedef struct Memory {
    Chunk *chunks;
    int line[MAX_OPTIONS]; // where each option was given: 0 nowhere, LINE_CLI, or the line
} Memory;

static void *keep_bytes(Recipe *r, size_t bytes)
{
    Memory *m = r->memory;
    Chunk *c = xcalloc(1, sizeof *c + bytes);
    c->next = m->chunks;
    m->chunks = c;
    return c->data;
}

char *recipe_keep(Recipe *r, const char *s, size_t bytes)
{
    char *copy = keep_bytes(r, bytes + 1);
    memcpy(copy, s, bytes);
    return copy;
}

void recipe_free(Recipe *r)
{
    Memory *m = r->memory;
    for (Chunk *c = m ? m->chunks : NULL, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(m);
    memset(r, 0, sizeof *r);
}

// ---- places -----------------------------------------------------------------------------------------------
int option_line(const Recipe *r, const Option *o)
{
    const Memory *m = r->memory;
    return m->line[o - options];
}

const char *line_place(const Recipe *r, int line)
{
    if (line == LINE_CLI) return "command line";
    if (line == 0) return *r->file ? r->file : "command line";
    return tmpf("%s:%d", r->file, line);
}

static const Option *named(const char *name)
{
    int n;
    const Option *o = option_table(&n);
    for (int i = 0; i < n; i++)
        if (streq(o[i].name, name)) return &o[i];
    ASSERT(!"an option of recipe.def");
    return NULL;
}

const char *recipe_place(const Recipe *r, const char *option)
{
    return line_place(r, option_line(r, named(option)));
}

// ---- one value --------------------------------------------------------------------------------------------
static bool word_of(const char *s, const char *const *words, int n)
{
    for (int i = 0; i < n; i++)
        if (streq(s, words[i])) return true;
    return false;
}

bool scalar_is_null(const Scalar *s)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    return s->plain && word_of(s->text, nulls, COUNT_OF(nulls));
}

typedef enum NumberKind { NOT_A_NUMBER, WHOLE, REAL } NumberKind;

static const char *skip_digits(const char *s)
{
    while (isdigit((unsigned char)*s)) s++;
    return s;
}

// The core schema's [-+]?[0-9]+, 0o[0-7]+, 0x[0-9a-fA-F]+ and
// [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
static NumberKind number_kind(const char *s)
{
    if (s[0] == '0' && s[1] == 'x' && s[2])
        return s[2 + strspn(s + 2, "0123456789abcdefABCDEF")] ? NOT_A_NUMBER : WHOLE;
    if (s[0] == '0' && s[1] == 'o' && s[2]) return s[2 + strspn(s + 2, "01234567")] ? NOT_A_NUMBER : WHOLE;
    if (*s == '-' || *s == '+') s++;
    const char *int_end = skip_digits(s), *end = int_end;
    bool digits = int_end > s;
    if (*end == '.') {
        end = skip_digits(int_end + 1);
        digits |= end > int_end + 1;
    }
    if (!digits) return NOT_A_NUMBER;
    if (!*end) return end == int_end ? WHOLE : REAL;
    if (*end != 'e' && *end != 'E') return NOT_A_NUMBER;
    end++;
    if (*end == '-' || *end == '+') end++;
    const char *exp_end = skip_digits(end);
    return exp_end > end && !*exp_end ? REAL : NOT_A_NUMBER;
}

static int not_a_number(const Option *o, const Scalar *s, const char *place)
{
    const char *hint = NULL;
    if (!s->plain && number_kind(s->text))
        hint = "remove the quotes: quoted text is not a number";
    else if (strpbrk(s->text, "_,") && isdigit((unsigned char)s->text[strspn(s->text, "+-")]))
        hint = "write digits only, without `_` or `,`";
    else if (s->plain && !*s->text)
        hint = tmpf("write a value after `%s:`, or remove the line", o->key);
    const char *want = o->type == TYPE_INT ? "a whole number" : "a number";
    return fail(E_INPUT, place, hint, "%s takes %s, not \"%s\"", o->name, want, s->text);
}

static int read_int(const Option *o, const Scalar *s, const char *place, int64_t *out)
{
    NumberKind kind = s->plain ? number_kind(s->text) : NOT_A_NUMBER;
    if (!kind) return not_a_number(o, s, place);
    bool fits = true;
    if (kind == WHOLE) {
        bool octal = s->text[0] == '0' && s->text[1] == 'o', hex = s->text[0] == '0' && s->text[1] == 'x';
        errno = 0;
        *out = strtoll(s->text + (octal || hex ? 2 : 0), NULL, octal ? 8 : hex ? 16 : 10);
        fits = errno == 0;
    } else {
        double d = strtod(s->text, NULL);
        if (d != floor(d)) return not_a_number(o, s, place);
        fits = fabs(d) <= 0x1p53; // beyond that a double no longer names one whole number
        *out = fits ? (int64_t)d : 0;
    }
    if (fits && *out >= o->i_min && *out <= o->i_max) return OK;
    if (o->i_min == o->i_max)
        return fail(E_INPUT, place, NULL, "%s: this build only has %lld, not %s", o->name, (long long)o->i_min,
                    s->text);
    if (o->i_max == INT64_MAX)
        return fail(E_INPUT, place, NULL, "%s is at least %lld, not %s", o->name, (long long)o->i_min, s->text);
    return fail(E_INPUT, place, NULL, "%s is a number from %lld to %lld, not %s", o->name, (long long)o->i_min,
                (long long)o->i_max, s->text);
}

static int read_float(const Option *o, const Scalar *s, const char *place, double *out)
{
    static const char *const not_finite[] = {".inf", ".Inf", ".INF", "+.inf", "-.inf", ".nan", ".NaN", ".NAN"};
    bool special = s->plain && word_of(s->text, not_finite, COUNT_OF(not_finite));
    if (!special && !(s->plain && number_kind(s->text))) return not_a_number(o, s, place);
    bool based = s->text[0] == '0' && (s->text[1] == 'x' || s->text[1] == 'o');
    *out = special ? NAN
           : based ? (double)strtoull(s->text + 2, NULL, s->text[1] == 'x' ? 16 : 8)
                   : strtod(s->text, NULL);
    if (*out >= o->f_min && *out <= o->f_max) return OK;
    return fail(E_INPUT, place, NULL, "%s is a number from %g to %g, not %s", o->name, o->f_min, o->f_max, s->text);
}

static int read_bool(const Option *o, const Scalar *s, const char *place, bool *out)
{
    static const char *const words[] = {"true", "True", "TRUE", "false", "False", "FALSE"};
    if (!s->plain || !word_of(s->text, words, COUNT_OF(words)))
        return fail(E_INPUT, place, "write true or false", "%s is true or false, not \"%s\"", o->name, s->text);
    *out = tolower((unsigned char)s->text[0]) == 't';
    return OK;
}

static int read_choice(const Option *o, const Scalar *s, const char *place, const char **out)
{
    const char *text = s->text;
    if (s->plain && streq(text, "false") && strstr(o->choices, "off")) text = "off";
    size_t bytes = strlen(text);
    for (const char *c = o->choices; *c;) {
        size_t len = strcspn(c, "|");
        if (len == bytes && memcmp(c, text, len) == 0) {
            *out = text;
            return OK;
        }
        c += len + (c[len] == '|');
    }
    return fail(E_INPUT, place, choice_hint(o->choices, text), "%s: this build does not know \"%s\"", o->name, text);
}

static int read_list(Recipe *r, const Option *o, const Value *v, const char *place, RecipeList *out)
{
    bool empty = v->kind == VALUE_SCALAR && !*v->item[0].text;
    int n = empty || (v->kind == VALUE_SCALAR && scalar_is_null(&v->item[0])) ? 0 : v->n;
    const char **item = keep_bytes(r, (size_t)n * sizeof *item);
    for (int i = 0; i < n; i++) {
        if (!*v->item[i].text) return fail(E_INPUT, place, NULL, "%s: item %d is empty", o->name, i + 1);
        item[i] = v->item[i].text;
    }
    *out = (RecipeList){.item = item, .n = n};
    return OK;
}

static int read_map(Recipe *r, const Option *o, const Value *v, const char *place, RecipeMap *out)
{
    if (v->kind == VALUE_SCALAR && !scalar_is_null(&v->item[0]))
        return fail(E_INPUT, place, tmpf("%s: {name: value, ...}", o->key), "%s takes pairs, not \"%s\"", o->name,
                    v->item[0].text);
    int n = v->kind == VALUE_MAP ? v->n : 0;
    const char **key = keep_bytes(r, (size_t)n * sizeof *key), **value = keep_bytes(r, (size_t)n * sizeof *value);
    for (int i = 0; i < n; i++) {
        if (!*v->key[i].text) return fail(E_INPUT, place, NULL, "%s: pair %d has no name", o->name, i + 1);
        for (int j = 0; j < i; j++)
            if (streq(key[j], v->key[i].text))
                return fail(E_INPUT, place, NULL, "%s: %s is there twice", o->name, key[j]);
        key[i] = v->key[i].text;
        value[i] = v->item[i].text;
    }
    *out = (RecipeMap){.key = key, .value = value, .n = n};
    return OK;
}

static int check_shape(const Option *o, const Value *v, const char *place)
{
    if (v->kind == VALUE_SCALAR) return OK;
    if (v->kind == VALUE_LIST && o->type != TYPE_LIST)
        return fail(E_INPUT, place, NULL, "%s takes %s, not a list", o->name,
                    o->type == TYPE_MAP ? "pairs" : "one value");
    if (v->kind == VALUE_MAP && o->type != TYPE_MAP)
        return fail(E_INPUT, place, NULL, "%s takes %s, not `key: value` pairs", o->name,
                    o->type == TYPE_LIST ? "a list" : "one value");
    return OK;
}

int option_set(Recipe *r, const Option *o, const Value *v, int line)
{
    const char *place = line_place(r, line);
    const Scalar *s = &v->item[0];
    void *to = option_value(r, o);
    TRY(check_shape(o, v, place));
    switch (o->type) {
    case TYPE_STR: *(const char **)to = scalar_is_null(s) ? "" : s->text; break;
    case TYPE_CHOICE: TRY(read_choice(o, s, place, to)); break;
    case TYPE_INT: TRY(read_int(o, s, place, to)); break;
    case TYPE_FLOAT: TRY(read_float(o, s, place, to)); break;
    case TYPE_BOOL: TRY(read_bool(o, s, place, to)); break;
    case TYPE_LIST: TRY(read_list(r, o, v, place, to)); break;
    case TYPE_MAP: TRY(read_map(r, o, v, place, to)); break;
    }
    ((Memory *)r->memory)->line[o - options] = line;
    return OK;
}

static void set_defaults(Recipe *r)
{
    int n;
    const Option *table = option_table(&n);
    for (const Option *o = table; o < table + n; o++) {
        void *to = option_value(r, o);
        switch (o->type) {
        case TYPE_STR:
        case TYPE_CHOICE: *(const char **)to = o->text; break;
        case TYPE_INT: *(int64_t *)to = o->i; break;
        case TYPE_FLOAT: *(double *)to = o->f; break;
        case TYPE_BOOL: *(bool *)to = o->b; break;
        case TYPE_LIST: *(RecipeList *)to = (RecipeList){.item = (const char **)&o->text, .n = *o->text != 0}; break;
        case TYPE_MAP: *(RecipeMap *)to = (RecipeMap){.n = 0}; break;
        }
    }
}

// ---- overrides --------------------------------------------------------------------------------------------
// Text stays as the shell gave it; only lists and maps are read as YAML.
static int override_value(Recipe *r, const Option *o, const char *text, Value *v)
{
    bool flow = (o->type == TYPE_LIST && *text == '[') || (o->type == TYPE_MAP && *text == '{');
    if (flow) return yaml_read_value(r, text, v);
    v->kind = VALUE_SCALAR;
    v->n = 1;
    v->item[0] = (Scalar){.text = text, .plain = true};
    return OK;
}

static int apply_override(Recipe *r, const char *given)
{
    static const char place[] = "command line";
    if (!utf8_valid(given, strlen(given), NULL)) return fail(E_INPUT, place, NULL, "an override is not valid UTF-8");
    const char *equals = strchr(given, '=');
    if (!equals || equals == given)
        return fail(E_INPUT, place, "overrides are section.key=value or key=value", "\"%s\" is not an override", given);
    char *name = recipe_keep(r, given, (size_t)(equals - given));
    char *dot = strchr(name, '.'), *key = dot ? dot + 1 : name;
    const char *section = dot ? recipe_keep(r, name, (size_t)(dot - name)) : "";
    const Option *o = option_find(section, key);
    if (!o && !dot && section_exists(name))
        return fail(E_INPUT, place, tmpf("%s.KEY=VALUE sets one of its options", name), "%s is a section", name);
    if (!o) return fail(E_INPUT, place, option_hint(section, key), "unknown option %s", name);
    Value v;
    TRY(override_value(r, o, recipe_keep(r, equals + 1, strlen(equals + 1)), &v));
    return option_set(r, o, &v, LINE_CLI);
}

// ---- checks that look at several options ------------------------------------------------------------------
int recipe_need(const Recipe *r, const char *option, const char *verb)
{
    const Option *o = named(option);
    const void *at = option_value(r, o);
    bool empty = o->type == TYPE_LIST ? ((const RecipeList *)at)->n == 0 : !**(const char *const *)at;
    if (!empty) return OK;
    return fail(E_INPUT, line_place(r, option_line(r, o)), tmpf("%s: %s", option, o->help),
                "%s is not set, and %s needs it", option, verb);
}

static int check_trackers(const Recipe *r)
{
    const char *asked = r->track.tensorboard            ? "track.tensorboard"
                        : *r->track.mlflow              ? "track.mlflow"
                        : !streq(r->track.wandb, "off") ? "track.wandb"
                                                        : NULL;
    if (!asked) return OK;
    return fail(E_INPUT, recipe_place(r, asked), "metrics.jsonl in the run's directory has every number",
                "%s: this build has no trackers", asked);
}

static int check_lists(const Recipe *r)
{
    if (streq(r->method, "lora")) TRY(recipe_need(r, "lora.targets", "method lora"));
    if (streq(r->method, "freeze")) TRY(recipe_need(r, "freeze.train", "method freeze"));
    for (int i = 0; i < r->lora.targets.n; i++)
        if (strchr(r->lora.targets.item[i], ','))
            return fail(E_INPUT, recipe_place(r, "lora.targets"), "a list is written [q_proj, v_proj]",
                        "lora.targets: \"%s\" is not a module's name", r->lora.targets.item[i]);
    TRY(recipe_need(r, "eval.metrics", "evaluation"));
    for (int i = 0; i < r->eval.metrics.n; i++) {
        const char *m = r->eval.metrics.item[i];
        if (!streq(m, "loss") && !streq(m, "rouge"))
            return fail(E_INPUT, recipe_place(r, "eval.metrics"), choice_hint("loss|rouge", m),
                        "eval.metrics: this build does not know \"%s\"", m);
    }
    return OK;
}

static int check_training(const Recipe *r)
{
    if (r->train.steps == 0 && r->train.epochs == 0)
        return fail(E_INPUT, recipe_place(r, "train.epochs"), "set train.steps or train.epochs",
                    "train.steps and train.epochs are both 0: nothing would be trained");
    if (r->train.beta1 >= 1 || r->train.beta2 >= 1)
        return fail(E_INPUT, recipe_place(r, r->train.beta1 >= 1 ? "train.beta1" : "train.beta2"), NULL,
                    "train.beta1 and train.beta2 are below 1");
    return OK;
}

static int recipe_check(Recipe *r)
{
    TRY(recipe_need(r, "model", "every recipe"));
    TRY(recipe_need(r, "output", "every recipe"));
    TRY(check_trackers(r));
    TRY(check_lists(r));
    TRY(check_training(r));
    if (streq(r->objective, "pretrain") && streq(r->data.loss_on, "completion")) {
        // Pre-training has no completions: the default gives way, the explicit wish is a contradiction.
        if (option_line(r, named("data.loss_on")))
            return fail(E_INPUT, recipe_place(r, "data.loss_on"), "remove it, or set objective: sft",
                        "data.loss_on: completion contradicts objective: pretrain, which trains every token");
        r->data.loss_on = "all";
    }
    return OK;
}

// ---- entry points -----------------------------------------------------------------------------------------
int recipe_parse(Recipe *out, const char *yaml, size_t bytes, const char *file, char *const *overrides, int n)
{
    int status = OK;
    memset(out, 0, sizeof *out);
    out->memory = xcalloc(1, sizeof(Memory));
    out->file = file ? recipe_keep(out, file, strlen(file)) : "";
    set_defaults(out);
    if (bytes > MAX_RECIPE_BYTES)
        TRY_DONE(fail(E_INPUT, out->file, NULL, "%zu bytes; a recipe has at most %d", bytes, MAX_RECIPE_BYTES));
    if (bytes) TRY_DONE(yaml_read_recipe(out, yaml, bytes));
    for (int i = 0; i < n; i++) TRY_DONE(apply_override(out, overrides[i]));
    TRY_DONE(recipe_check(out));
done:
    if (status < 0) recipe_free(out);
    return status;
}

int recipe_load(Recipe *out, const char *file, char *const *overrides, int n)
{
    char *yaml = NULL;
    size_t bytes = 0;
    memset(out, 0, sizeof *out);
    if (file && *file) TRY(file_read(file, MAX_RECIPE_BYTES, &yaml, &bytes));
    int status = recipe_parse(out, yaml, bytes, file, overrides, n);
    free(yaml);
    return status;
}
