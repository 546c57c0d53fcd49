// recipe_yaml: recipes and values from YAML text, by libyaml's event parser; yaml.h is included here only.
// Recipes are written by people and passed around, so the reader takes the plain part of YAML: one document
// of `key: value`, sections one level deep, lists and maps of scalars. Anchors, aliases, tags and merge keys
// are refused by name; so are keys given twice.
#include "recipe_impl.h"
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

typedef struct Reader {
    yaml_parser_t parser;
    yaml_event_t event; // the current one; owned until the next
    Recipe *r;
    bool cli;                      // reading an override's value: places are "command line"
    int section_line[MAX_OPTIONS]; // of sections met so far, by the index of their first option
    Value value;
} Reader;

static int event_line(const Reader *y)
{
    return y->cli ? LINE_CLI : (int)y->event.start_mark.line + 1;
}
static const char *event_place(const Reader *y)
{
    return line_place(y->r, event_line(y));
}

static int syntax_error(const Reader *y)
{
    const yaml_parser_t *p = &y->parser;
    const char *problem = p->problem ? p->problem : "not YAML";
    if (p->error == YAML_READER_ERROR)
        return fail(E_INPUT, line_place(y->r, y->cli ? LINE_CLI : 0), "recipes are UTF-8 text", "byte %zu: %s",
                    p->problem_offset, problem);
    const char *hint = NULL;
    if (strstr(problem, "cannot start any token"))
        hint = "indent with spaces, not tabs; quote values that start with @, ` or %";
    else if (strstr(problem, "mapping values are not allowed"))
        hint = "quote values that contain `: `, and check the indentation";
    else if (strstr(problem, "expected key") || strstr(problem, "block mapping") || strstr(problem, "expected ':'"))
        hint = "every line is `key: value`; check the indentation and the colon";
    const char *context = p->context ? p->context : "";
    return fail(E_INPUT, line_place(y->r, y->cli ? LINE_CLI : (int)p->problem_mark.line + 1), hint, "%s%s%s", problem,
                *context ? ", " : "", context);
}

// What only a generator or an attacker would put into a recipe.
static int refuse_indirection(const Reader *y)
{
    const yaml_event_t *e = &y->event;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (e->type) {
    case YAML_ALIAS_EVENT: return fail(E_INPUT, event_place(y), "write the value out", "aliases (*name) are not read");
    case YAML_SCALAR_EVENT: anchor = e->data.scalar.anchor, tag = e->data.scalar.tag; break;
    case YAML_SEQUENCE_START_EVENT: anchor = e->data.sequence_start.anchor, tag = e->data.sequence_start.tag; break;
    case YAML_MAPPING_START_EVENT: anchor = e->data.mapping_start.anchor, tag = e->data.mapping_start.tag; break;
    default: break;
    }
    if (anchor)
        return fail(E_INPUT, event_place(y), "write the value out", "anchors (&%s) are not read", (const char *)anchor);
    if (tag) return fail(E_INPUT, event_place(y), "remove the tag", "tags (%s) are not read", (const char *)tag);
    return OK;
}

static int next_event(Reader *y)
{
    yaml_event_delete(&y->event);
    if (!yaml_parser_parse(&y->parser, &y->event)) return syntax_error(y);
    return refuse_indirection(y);
}

// The current event's text, kept with the recipe.
static int take_scalar(const Reader *y, Scalar *out)
{
    const char *text = (const char *)y->event.data.scalar.value;
    size_t bytes = y->event.data.scalar.length;
    if (memchr(text, 0, bytes)) return fail(E_INPUT, event_place(y), NULL, "a text contains a NUL character");
    out->text = recipe_keep(y->r, text, bytes);
    out->plain = y->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return OK;
}

// A list's or map's scalars up to its end event.
static int read_items(Reader *y, bool pairs)
{
    Value *v = &y->value;
    yaml_event_type_t end = pairs ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    for (bool is_key = pairs;;) {
        TRY(next_event(y));
        if (y->event.type == end) return OK;
        if (y->event.type != YAML_SCALAR_EVENT)
            return fail(E_INPUT, event_place(y), NULL, "%s hold plain values, nothing nested",
                        pairs ? "maps" : "lists");
        if (v->n == MAX_ITEMS) return fail(E_INPUT, event_place(y), NULL, "more than %d items", MAX_ITEMS);
        TRY(take_scalar(y, is_key ? &v->key[v->n] : &v->item[v->n]));
        if (!is_key) v->n++;
        if (pairs) is_key = !is_key;
    }
}

// From the event that starts a value to the one that ends it.
static int read_value(Reader *y)
{
    Value *v = &y->value;
    v->n = 0;
    switch (y->event.type) {
    case YAML_SCALAR_EVENT:
        v->kind = VALUE_SCALAR;
        v->n = 1;
        return take_scalar(y, &v->item[0]);
    case YAML_SEQUENCE_START_EVENT: v->kind = VALUE_LIST; return read_items(y, false);
    case YAML_MAPPING_START_EVENT: v->kind = VALUE_MAP; return read_items(y, true);
    default: return fail(E_INPUT, event_place(y), NULL, "a value is missing");
    }
}

static int unknown_key(const Reader *y, const char *section, const char *key, int line)
{
    const char *place = line_place(y->r, line);
    if (streq(key, "<<")) return fail(E_INPUT, place, "write the keys out", "merge keys (<<) are not read");
    const char *dot = strchr(key, '.');
    if (!*section && dot) {
        const char *of = recipe_keep(y->r, key, (size_t)(dot - key));
        if (option_find(of, dot + 1))
            return fail(E_INPUT, place, tmpf("in a recipe, write `%s:` indented under `%s:`", dot + 1, of),
                        "unknown key %s", key);
    }
    return fail(E_INPUT, place, option_hint(section, key), "unknown key %s%s%s", section, *section ? "." : "", key);
}

static int read_option(Reader *y, const char *section, const char *key, int line)
{
    const Option *o = option_find(section, key);
    if (!o) return unknown_key(y, section, key, line);
    int before = option_line(y->r, o);
    if (before)
        return fail(E_INPUT, line_place(y->r, line), "keep one of the two", "%s is given twice, first in line %d",
                    o->name, before);
    TRY(next_event(y));
    TRY(read_value(y));
    return option_set(y->r, o, &y->value, line);
}

static int read_mapping(Reader *y, const char *section);

static int read_section(Reader *y, const char *name, int line)
{
    int n, first = 0;
    for (const Option *o = option_table(&n); !streq(o[first].section, name);) first++;
    int *met = &y->section_line[first];
    if (*met)
        return fail(E_INPUT, line_place(y->r, line), "put its options together",
                    "section %s is given twice, first in line %d", name, *met);
    *met = line;
    TRY(next_event(y));
    if (y->event.type == YAML_MAPPING_START_EVENT) return read_mapping(y, name);
    Scalar s = {0};
    if (y->event.type == YAML_SCALAR_EVENT) TRY(take_scalar(y, &s));
    if (s.text && scalar_is_null(&s)) return OK; // `eval:` with nothing below it
    return fail(E_INPUT, line_place(y->r, line), tmpf("write its options indented below `%s:`", name),
                "%s is a section of `key: value` lines", name);
}

// Keys of the recipe (section "") or of one section, up to the end of the mapping. Sections have no sections:
// depth 2.
static int read_mapping(Reader *y, const char *section)
{
    for (;;) {
        TRY(next_event(y));
        if (y->event.type == YAML_MAPPING_END_EVENT) return OK;
        int line = event_line(y);
        if (y->event.type != YAML_SCALAR_EVENT) return fail(E_INPUT, event_place(y), NULL, "a key is not a plain word");
        Scalar key = {0};
        TRY(take_scalar(y, &key));
        if (!*section && section_exists(key.text))
            TRY(read_section(y, key.text, line));
        else
            TRY(read_option(y, section, key.text, line));
    }
}

static int read_document(Reader *y)
{
    TRY(next_event(y)); // stream start
    TRY(next_event(y));
    if (y->event.type == YAML_STREAM_END_EVENT) return OK;
    TRY(next_event(y)); // the root, after the document's start
    if (y->cli) {
        TRY(read_value(y));
    } else if (y->event.type == YAML_MAPPING_START_EVENT) {
        TRY(read_mapping(y, ""));
    } else {
        return fail(E_INPUT, event_place(y), "model: PATH, and so on", "a recipe is made of `key: value` lines");
    }
    TRY(next_event(y)); // document end
    TRY(next_event(y));
    if (y->event.type != YAML_STREAM_END_EVENT)
        return fail(E_INPUT, event_place(y), NULL, "a recipe is one YAML document, here a second one starts");
    return OK;
}

static int read_text(Recipe *r, const char *yaml, size_t bytes, bool cli, Value *out)
{
    Reader *y = xcalloc(1, sizeof *y);
    y->r = r;
    y->cli = cli;
    int status = OK;
    if (!yaml_parser_initialize(&y->parser)) {
        status = fail(E_FAILED, NULL, NULL, "libyaml cannot start: out of memory");
        goto done;
    }
    yaml_parser_set_encoding(&y->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&y->parser, (const unsigned char *)yaml, bytes);
    TRY_DONE(read_document(y));
    if (out) *out = y->value;
done:
    yaml_event_delete(&y->event);
    yaml_parser_delete(&y->parser);
    free(y);
    return status;
}

int yaml_read_recipe(Recipe *r, const char *yaml, size_t bytes)
{
    return read_text(r, yaml, bytes, false, NULL);
}
int yaml_read_value(Recipe *r, const char *text, Value *out)
{
    return read_text(r, text, strlen(text), true, out);
}
