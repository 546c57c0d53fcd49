// recipe_impl: what the files of runtime/config/ share: the option table expanded from recipe.def, values as
// read, and the strings' owner. Not for others.
#pragma once
#include "config/recipe.h"

typedef enum OptionType { TYPE_STR, TYPE_CHOICE, TYPE_INT, TYPE_FLOAT, TYPE_BOOL, TYPE_LIST, TYPE_MAP } OptionType;

typedef struct Option {
    const char *section, *key; // section "" at the top level
    const char *name;          // "section.key", or "key" at the top level
    OptionType type;
    size_t offset; // of the value in Recipe
    const char *help;
    const char *text;    // default of STR, CHOICE, LIST, MAP
    const char *choices; // CHOICE: "a|b|c"
    int64_t i, i_min, i_max;
    double f, f_min, f_max;
    bool b;
} Option;

enum { MAX_OPTIONS = 96, MAX_ITEMS = 256, MAX_RECIPE_BYTES = 1 << 20, LINE_CLI = -1 };

// The table, built on first use; the same for the whole process.
const Option *option_table(int *n);
const Option *option_find(const char *section, const char *key); // NULL: unknown
bool section_exists(const char *name);
static inline void *option_value(const Recipe *r, const Option *o)
{
    return (char *)r + o->offset;
}
// "did you mean train.lr?", or what the section knows; lives as tmpf's.
const char *option_hint(const char *section, const char *key);
const char *choice_hint(const char *choices, const char *given);

// A value as written. Strings belong to the recipe.
typedef struct Scalar {
    const char *text;
    bool plain; // not quoted: may be a number, a truth value or null
} Scalar;
typedef struct Value {
    enum { VALUE_SCALAR, VALUE_LIST, VALUE_MAP } kind;
    int n;
    Scalar key[MAX_ITEMS], item[MAX_ITEMS]; // a scalar is item[0]; keys of maps only
} Value;
bool scalar_is_null(const Scalar *s);

// Stores a value under an option after checking type and range. line: in r->file, or LINE_CLI.
int option_set(Recipe *r, const Option *o, const Value *v, int line);
// Where an option was given: 0 by nobody, LINE_CLI, or its line.
int option_line(const Recipe *r, const Option *o);
const char *line_place(const Recipe *r, int line);         // lives as tmpf's
char *recipe_keep(Recipe *r, const char *s, size_t bytes); // a copy that lives as long as the recipe

// recipe_yaml.c
int yaml_read_recipe(Recipe *r, const char *yaml, size_t bytes);
int yaml_read_value(Recipe *r, const char *text,
                    Value *out); // one value on the command line: [a, b] or {k: v}
