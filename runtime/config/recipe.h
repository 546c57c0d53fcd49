// recipe: every option is one line in recipe.def: section, key, type, default, range or choices, help. That line expands to the
// struct below, the YAML reader, the section.key=value override, --help, the range check, the printed banner and the resolved
// recipe.yaml.
#pragma once
#include "kernels.h"

// Option types and their C types
typedef const char *RecipeStr;    // "" when not given
typedef const char *RecipeChoice; // one of the choices
typedef struct RecipeList {       // a scalar counts as a list of one
    const char **item;
    int n;
} RecipeList;
typedef struct RecipeMap { // free-form string -> string (tags)
    const char **key, **value;
    int n;
} RecipeMap;

#define SECTION_BEGIN(name) struct {
#define SECTION_END(name)                                                                                              \
    }                                                                                                                  \
    name;
#define TOP_BEGIN
#define TOP_END
#define OPT_STR(key, ...)    RecipeStr key;
#define OPT_CHOICE(key, ...) RecipeChoice key;
#define OPT_INT(key, ...)    int64_t key;
#define OPT_FLOAT(key, ...)  double key;
#define OPT_BOOL(key, ...)   bool key;
#define OPT_LIST(key, ...)   RecipeList key;
#define OPT_MAP(key, ...)    RecipeMap key;
typedef struct Recipe {
#include "config/recipe.def"
    const char *file; // the YAML file, for error places; "" when built from overrides alone
    void *memory;     // owns every string
} Recipe;
#undef SECTION_BEGIN
#undef SECTION_END
#undef TOP_BEGIN
#undef TOP_END
#undef OPT_STR
#undef OPT_CHOICE
#undef OPT_INT
#undef OPT_FLOAT
#undef OPT_BOOL
#undef OPT_LIST
#undef OPT_MAP

// Reads the YAML file (NULL or "": none), applies n "section.key=value" (or "key=value") overrides, checks everything. Paths are
// taken relative to the current directory, as written. E_INPUT: FILE:LINE (or "command line"), what, and the nearest known key
// as hint. On failure *out holds nothing.
int recipe_load(Recipe *out, const char *file, char *const *overrides, int n);
int recipe_parse(Recipe *out, const char *yaml, size_t bytes, const char *file, char *const *overrides, int n);
void recipe_free(Recipe *r);
void recipe_write_yaml(const Recipe *r, Buf *out); // resolved: running it again repeats the run
void recipe_banner(const Recipe *r, Buf *out);     // for people: what differs from the defaults
void recipe_help(Buf *out);                        // every option with type, default, range and help
void recipe_keys(Buf *out);                        // every "key" and "section.key", one a line: for shell completion

// Where the user gave an option ("data.train"): "FILE:LINE", "command line", or FILE when it has its default. For errors about
// its value that only its user can find ("no such model"). The text lives as tmpf's.
const char *recipe_place(const Recipe *r, const char *option);
// E_INPUT when a text or list option is empty that this verb cannot do without.
int recipe_need(const Recipe *r, const char *option, const char *verb);
