// template: parsing and rendering as the rest of the program sees it, and where a model keeps its template. The stages are
// in template_impl.h's list.
#include "io/weights.h"
#include "text/template_impl.h"
#include <stdlib.h>

// ---- parsing --------------------------------------------------------------------------------------------------------
int template_parse(Template **out, const char *source, size_t bytes, const char *place)
{
    size_t bad = 0;
    *out = NULL;
    if (bytes > SOURCE_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "chat template of %zu bytes, at most %d are read", bytes, SOURCE_BYTES_MAX);
    if (!utf8_valid(source, bytes, &bad))
        return fail(E_INPUT, place, NULL, "chat template is not UTF-8 at byte %zu", bad);
    Template *t = xcalloc(1, sizeof *t);
    t->place = xstrdup(place);
    Parser p = {.t = t};
    int status = OK;
    TRY_DONE(template_lex(&t->pool, source, bytes, place, &p.tokens));
    TRY_DONE(template_parse_tokens(&p));
    *out = t;
done:
    free(p.tokens.v);
    if (status < 0) template_free(t);
    return status;
}

void template_free(Template *t)
{
    if (!t) return;
    pool_free(&t->pool);
    free(t->names.v);
    free(t->names.slot);
    free(t->place);
    free(t);
}

// ---- JSON to values -------------------------------------------------------------------------------------------------
// Strings stay in the JSON, which outlives the rendering.
static int from_json(Eval *e, const json_t *j, int depth, Value *out);

static int object_from_json(Eval *e, const json_t *j, int depth, Dict **out)
{
    Dict *d = *out = new_dict(e, (int)json_object_size(j));
    void *it = json_object_iter((json_t *)(uintptr_t)j); // iterating changes nothing, but jansson's type says otherwise
    for (; it; it = json_object_iter_next((json_t *)(uintptr_t)j, it)) {
        const char *key = json_object_iter_key(it);
        d->key[d->n] = v_str((Str){key, (int32_t)json_object_iter_key_len(it)});
        TRY(from_json(e, json_object_iter_value(it), depth + 1, &d->value[d->n]));
        d->n++;
    }
    return OK;
}

static int array_from_json(Eval *e, const json_t *j, int depth, Value *out)
{
    int n = (int)json_array_size(j);
    Value *items = new_items(e, n);
    for (int i = 0; i < n; i++) TRY(from_json(e, json_array_get(j, (size_t)i), depth + 1, &items[i]));
    *out = v_items(V_LIST, items, n);
    return OK;
}

static int from_json(Eval *e, const json_t *j, int depth, Value *out)
{
    if (depth > NEST_MAX) return eval_fail(e, "data is nested deeper than %d levels", NEST_MAX);
    switch (json_typeof(j)) {
    case JSON_NULL: *out = v_none(); return OK;
    case JSON_TRUE:
    case JSON_FALSE: *out = v_bool(json_is_true(j)); return OK;
    case JSON_INTEGER: *out = v_int(json_integer_value(j)); return OK;
    case JSON_REAL: *out = v_float(json_real_value(j)); return OK;
    case JSON_STRING:
        if (json_string_length(j) > SOURCE_BYTES_MAX * 64u) return eval_fail(e, "a string of the data exceeds 64 MiB");
        *out = v_str((Str){json_string_value(j), (int32_t)json_string_length(j)});
        return OK;
    case JSON_ARRAY: return array_from_json(e, j, depth, out);
    case JSON_OBJECT: *out = (Value){.kind = V_DICT}; return object_from_json(e, j, depth, &out->dict);
    }
    return OK;
}

// ---- what transformers does to the arguments of apply_chat_template ---------------------------------------------------
static void put_member(Dict *d, Str key, const Value *value)
{
    ASSERT(d->n < d->cap);
    d->key[d->n] = v_str(key);
    d->value[d->n++] = *value;
}

// A message without its null members; reasoning goes under both of the names that templates read it by.
static Value prepare_message(Eval *e, const Value *message)
{
    static const Str reasoning[] = {{"reasoning_content", 17}, {"thinking", 8}, {"reasoning", 9}};
    const Dict *from = message->dict;
    Dict *to = new_dict(e, from->n + 2);
    const Value *thought = NULL;
    for (size_t i = 0; i < COUNT_OF(reasoning) && !thought; i++) {
        thought = dict_get(from, reasoning[i]);
        if (thought && thought->kind == V_NONE) thought = NULL;
    }
    const Value *own = dict_get(from, reasoning[1]);
    if (thought) put_member(to, reasoning[1], own && own->kind != V_NONE ? own : thought);
    for (int i = 0; i < from->n; i++) {
        Str key = v_text(&from->key[i]);
        if (from->value[i].kind != V_NONE && !(thought && str_eq(key, reasoning[1])))
            put_member(to, key, &from->value[i]);
    }
    if (thought && !dict_get(to, reasoning[0])) put_member(to, reasoning[0], thought);
    return (Value){.kind = V_DICT, .dict = to};
}

static int prepare_vars(Eval *e, const json_t *vars, Dict **out)
{
    Dict *given, *d;
    Value none = v_none();
    TRY(object_from_json(e, vars, 0, &given));
    d = *out = new_dict(e, given->n + 2);
    memcpy(d->key, given->key, (size_t)given->n * sizeof *d->key);
    memcpy(d->value, given->value, (size_t)given->n * sizeof *d->value);
    d->n = given->n;
    for (int i = 0; i < d->n; i++) {
        Value *list = &d->value[i];
        if (!str_is(v_text(&d->key[i]), "messages") || list->kind != V_LIST) continue;
        Value *messages = new_items(e, list->n);
        for (int k = 0; k < list->n; k++)
            messages[k] = list->items[k].kind == V_DICT ? prepare_message(e, &list->items[k]) : list->items[k];
        *list = v_items(V_LIST, messages, list->n);
    }
    if (!dict_get(d, STR("tools"))) put_member(d, STR("tools"), &none); // always defined, if only as None
    if (!dict_get(d, STR("documents"))) put_member(d, STR("documents"), &none);
    return OK;
}

// ---- rendering ------------------------------------------------------------------------------------------------------
static int render(Eval *e, const json_t *vars)
{
    Scope root = {0};
    Dict *given;
    e->line = 1;
    TRY(prepare_vars(e, vars, &given));
    e->pool.total = 0; // the data's own size is not the template's doing
    e->vars = given;
    e->scope = &root;
    int status = eval_block(e, e->t->body);
    return status > 0 ? eval_fail(e, "break or continue outside a loop") : status;
}

int template_render(const Template *t, const json_t *vars, Buf *out)
{
    Buf text = {0};
    Eval e = {.t = t, .out = &text};
    if (!json_is_object(vars)) return fail(E_INPUT, t->place, NULL, "chat template: variables must be a JSON object");
    int status = render(&e, vars);
    if (status == OK) buf_put(out, text.data ? text.data : "", text.len);
    buf_free(&text);
    pool_free(&e.pool);
    return status;
}

// ---- finding a model's template -------------------------------------------------------------------------------------
static int from_gguf(const char *path, char **source, char **place)
{
    Weights *w = NULL;
    TRY(weights_open(&w, path));
    char *json = weights_is_gguf(w) ? weights_meta_json(w, "tokenizer.chat_template") : NULL;
    weights_close(w);
    json_t *text = json ? json_loads(json, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
    free(json);
    if (json_is_string(text)) {
        *source = xstrndup(json_string_value(text), json_string_length(text));
        *place = xasprintf("%s: tokenizer.chat_template", path);
    }
    json_decref(text);
    return OK;
}

// "chat_template": a string, or [{"name": "default", "template": "..."}, ...]
static const json_t *default_template(const json_t *v)
{
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *row = json_array_get(v, i), *name = json_object_get(row, "name");
        if (json_is_string(name) && streq(json_string_value(name), "default")) return json_object_get(row, "template");
    }
    return v;
}

static int from_config(const char *path, char **source, char **place)
{
    char *text = NULL;
    size_t bytes;
    json_error_t err;
    TRY(file_read(path, 64 << 20, &text, &bytes));
    json_t *root = json_loadb(text, bytes, JSON_ALLOW_NUL, &err);
    free(text);
    if (!root) return fail(E_INPUT, tmpf("%s:%d", path, err.line), NULL, "not valid JSON: %s", err.text);
    const json_t *t = default_template(json_object_get(root, "chat_template"));
    if (json_is_string(t)) {
        *source = xstrndup(json_string_value(t), json_string_length(t));
        *place = xasprintf("%s: chat_template", path);
    }
    json_decref(root);
    return OK;
}

int template_find(const char *model_path, char **source, char **place)
{
    size_t bytes;
    int status = OK;
    *source = *place = NULL;
    if (!path_is_dir(model_path)) return from_gguf(model_path, source, place);
    char *jinja = xasprintf("%s/chat_template.jinja", model_path),
         *config = xasprintf("%s/tokenizer_config.json", model_path);
    if (path_exists(jinja)) {
        status = file_read(jinja, SOURCE_BYTES_MAX, source, &bytes);
        if (status == OK) *place = xstrdup(jinja);
    } else if (path_exists(config)) {
        status = from_config(config, source, place);
    }
    free(jinja);
    free(config);
    return status;
}
