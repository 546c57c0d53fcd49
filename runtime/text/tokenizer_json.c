// tokenizer_json: a Tokenizer from the text of a Hugging Face tokenizer.json. Truncation and padding settings in it are not
// followed: transformers resets them for every call.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 256 << 20, SEQUENCE_NEST_MAX = 8 };

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char whitespace_pattern[] = "[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+";

static int unsupported(const char *place, const char *section, const char *type)
{
    return fail(E_INPUT, place,
                "supported are byte-level BPE tokenizers and SentencePiece-style BPE with byte fallback",
                "%s \"%s\" is not supported", section, type);
}

// ---- reading members ------------------------------------------------------------------------------------------------
static const char *string_at(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}
static bool flag_at(const json_t *o, const char *key, bool missing)
{
    const json_t *v = json_object_get(o, key);
    return json_is_boolean(v) ? json_is_true(v) : missing;
}

static int take_text(Step *s, const json_t *spec, const char *key, const char *place)
{
    const json_t *v = json_object_get(spec, key);
    if (!json_is_string(v)) return fail(E_INPUT, place, NULL, "\"%s\" must be a string", key);
    if (json_string_length(v) > TOKEN_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "\"%s\" is longer than %d bytes", key, TOKEN_BYTES_MAX);
    s->text = xstrndup(json_string_value(v), json_string_length(v));
    s->bytes = (int32_t)json_string_length(v);
    return OK;
}

// {"Regex": "..."} or {"String": "..."}
static int take_pattern(Step *s, const json_t *spec, const char *place)
{
    const json_t *p = json_object_get(spec, "pattern"), *regex = json_object_get(p, "Regex"),
                 *literal = json_object_get(p, "String");
    const json_t *v = regex ? regex : literal;
    if (!json_is_string(v)) return fail(E_INPUT, place, NULL, "\"pattern\" must hold a Regex or a String");
    return regex_compile(&s->pattern, json_string_value(v), json_string_length(v), !regex, place);
}

static int take_behavior(Step *s, const json_t *spec, Behavior missing, const char *place)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const json_t *v = json_object_get(spec, "behavior");
    s->behavior = missing;
    if (!v || json_is_null(v)) return OK;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (!json_is_string(v) || !streq(json_string_value(v), names[i])) continue;
        s->behavior = (Behavior)i;
        return OK;
    }
    return fail(E_INPUT, place, NULL, "unknown split behavior");
}

// ---- one reader per kind of step ------------------------------------------------------------------------------------
typedef int ReadStep(Step *s, const json_t *spec, const char *place);

static int read_nothing(Step *s, const json_t *spec, const char *place)
{
    (void)s, (void)spec, (void)place;
    return OK;
}

static int read_form(Step *s, const json_t *spec, const char *place)
{
    (void)place;
    const char *type = string_at(spec, "type");
    s->form = streq(type, "NFC")    ? FORM_NFC
              : streq(type, "NFD")  ? FORM_NFD
              : streq(type, "NFKC") ? FORM_NFKC
                                    : FORM_NFKD;
    return OK;
}

static int read_norm_strip(Step *s, const json_t *spec, const char *place)
{
    (void)place;
    s->left = flag_at(spec, "strip_left", true);
    s->right = flag_at(spec, "strip_right", true);
    return OK;
}

static int read_prepend(Step *s, const json_t *spec, const char *place)
{
    return take_text(s, spec, "prepend", place);
}

static int read_replace(Step *s, const json_t *spec, const char *place)
{
    TRY(take_text(s, spec, "content", place));
    return take_pattern(s, spec, place);
}

static int read_split(Step *s, const json_t *spec, const char *place)
{
    s->invert = flag_at(spec, "invert", false);
    TRY(take_behavior(s, spec, ISOLATED, place));
    return take_pattern(s, spec, place);
}

static int read_digits(Step *s, const json_t *spec, const char *place)
{
    (void)place;
    s->behavior = flag_at(spec, "individual_digits", false) ? ISOLATED : CONTIGUOUS;
    return OK;
}

static int read_punctuation(Step *s, const json_t *spec, const char *place)
{
    return take_behavior(s, spec, ISOLATED, place);
}

static int read_whitespace(Step *s, const json_t *spec, const char *place)
{
    (void)spec;
    s->behavior = REMOVED;
    s->invert = true;
    return regex_compile(&s->pattern, whitespace_pattern, sizeof whitespace_pattern - 1, false, place);
}

static int read_delimiter(Step *s, const json_t *spec, const char *place)
{
    const json_t *v = json_object_get(spec, "delimiter");
    if (!json_is_string(v)) return fail(E_INPUT, place, NULL, "\"delimiter\" must be a string");
    s->behavior = REMOVED;
    return regex_compile(&s->pattern, json_string_value(v), json_string_length(v), true, place);
}

static int read_pre_byte_level(Step *s, const json_t *spec, const char *place)
{
    s->prefix_space = flag_at(spec, "add_prefix_space", true);
    if (!flag_at(spec, "use_regex", true)) return OK;
    return regex_compile(&s->pattern, gpt2_pattern, sizeof gpt2_pattern - 1, false, place);
}

static int read_metaspace(Step *s, const json_t *spec, const char *place)
{
    const char *scheme = string_at(spec, "prepend_scheme");
    TRY(take_text(s, spec, "replacement", place));
    if (s->bytes == 0) return fail(E_INPUT, place, NULL, "Metaspace needs a replacement character");
    if (!scheme) scheme = flag_at(spec, "add_prefix_space", true) ? "always" : "never";
    s->prepend = streq(scheme, "always") ? PREPEND_ALWAYS : streq(scheme, "first") ? PREPEND_FIRST : PREPEND_NEVER;
    s->split = flag_at(spec, "split", true);
    return regex_compile(&s->pattern, s->text, (size_t)s->bytes, true, place);
}

static int read_dec_strip(Step *s, const json_t *spec, const char *place)
{
    s->start = (int)MIN(json_integer_value(json_object_get(spec, "start")), INT32_MAX);
    s->stop = (int)MIN(json_integer_value(json_object_get(spec, "stop")), INT32_MAX);
    TRY(take_text(s, spec, "content", place));
    return s->bytes ? OK : fail(E_INPUT, place, NULL, "Strip needs a character");
}

typedef struct StepReader {
    const char *section, *type;
    StepKind kind;
    ReadStep *read;
} StepReader;
static const StepReader step_readers[] = {
    {"normalizer", "NFC", NORM_FORM, read_form},
    {"normalizer", "NFD", NORM_FORM, read_form},
    {"normalizer", "NFKC", NORM_FORM, read_form},
    {"normalizer", "NFKD", NORM_FORM, read_form},
    {"normalizer", "Lowercase", NORM_LOWERCASE, read_nothing},
    {"normalizer", "Strip", NORM_STRIP, read_norm_strip},
    {"normalizer", "StripAccents", NORM_STRIP_ACCENTS, read_nothing},
    {"normalizer", "Prepend", NORM_PREPEND, read_prepend},
    {"normalizer", "Replace", NORM_REPLACE, read_replace},
    {"normalizer", "ByteLevel", NORM_BYTE_LEVEL, read_nothing},
    {"pre_tokenizer", "Split", PRE_SPLIT, read_split},
    {"pre_tokenizer", "Digits", PRE_DIGITS, read_digits},
    {"pre_tokenizer", "Punctuation", PRE_PUNCTUATION, read_punctuation},
    {"pre_tokenizer", "Whitespace", PRE_SPLIT, read_whitespace},
    {"pre_tokenizer", "WhitespaceSplit", PRE_WHITESPACE_SPLIT, read_nothing},
    {"pre_tokenizer", "CharDelimiterSplit", PRE_SPLIT, read_delimiter},
    {"pre_tokenizer", "Metaspace", PRE_METASPACE, read_metaspace},
    {"pre_tokenizer", "ByteLevel", PRE_BYTE_LEVEL, read_pre_byte_level},
    {"decoder", "ByteLevel", DEC_BYTE_LEVEL, read_nothing},
    {"decoder", "ByteFallback", DEC_BYTE_FALLBACK, read_nothing},
    {"decoder", "Fuse", DEC_FUSE, read_nothing},
    {"decoder", "Replace", DEC_REPLACE, read_replace},
    {"decoder", "Strip", DEC_STRIP, read_dec_strip},
    {"decoder", "Metaspace", DEC_METASPACE, read_metaspace},
};

static int read_steps(Steps *out, const char *section, const json_t *spec, int depth, const char *place)
{
    if (!spec || json_is_null(spec)) return OK;
    const char *type = string_at(spec, "type");
    if (!type) return fail(E_INPUT, place, NULL, "%s has no type", section);
    if (streq(type, "Sequence")) {
        if (depth == SEQUENCE_NEST_MAX) return fail(E_INPUT, place, NULL, "%s sequences are nested too deep", section);
        const json_t *list = json_object_get(spec, "normalizers");
        if (!list) list = json_object_get(spec, "pretokenizers");
        if (!list) list = json_object_get(spec, "decoders");
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(read_steps(out, section, json_array_get(list, i), depth + 1, place));
        return OK;
    }
    for (size_t i = 0; i < COUNT_OF(step_readers); i++) {
        const StepReader *r = &step_readers[i];
        if (!streq(r->section, section) || !streq(r->type, type)) continue;
        if (out->n == STEPS_MAX) return fail(E_INPUT, place, NULL, "more than %d steps in %s", STEPS_MAX, section);
        Step *s = &out->v[out->n++];
        *s = (Step){.kind = r->kind};
        return r->read(s, spec, place);
    }
    return unsupported(place, section, type);
}

int steps_from_json(Steps *out, const char *section, const json_t *spec, const char *place)
{
    return read_steps(out, section, spec, 0, place);
}

// ---- model ----------------------------------------------------------------------------------------------------------
static int read_vocab(Bpe *b, json_t *vocab, const char *place)
{
    const char *text;
    json_t *id;
    if (!json_is_object(vocab)) return fail(E_INPUT, place, NULL, "model.vocab must be an object");
    void *it = json_object_iter(vocab);
    for (; it; it = json_object_iter_next(vocab, it)) {
        text = json_object_iter_key(it);
        id = json_object_iter_value(it);
        if (!json_is_integer(id)) return fail(E_INPUT, place, NULL, "token \"%.100s\" has no integer id", text);
        TRY(vocab_put(&b->vocab, json_integer_value(id), text, strlen(text), true, place));
    }
    return OK;
}

// "left right" or ["left", "right"]
static int read_merge(Bpe *b, const json_t *m, const char *place)
{
    const char *s = json_string_value(m), *space = s ? strchr(s, ' ') : NULL;
    if (space && !strchr(space + 1, ' '))
        return bpe_put_merge(b, s, (size_t)(space - s), space + 1, strlen(space + 1), place);
    const json_t *l = json_array_get(m, 0), *r = json_array_get(m, 1);
    if (json_array_size(m) != 2 || !json_is_string(l) || !json_is_string(r))
        return fail(E_INPUT, place, NULL, "merge %d is no pair of tokens", b->merges);
    return bpe_put_merge(b, json_string_value(l), json_string_length(l), json_string_value(r), json_string_length(r),
                         place);
}

static int read_merges(Bpe *b, const json_t *merges, const char *place)
{
    if (!json_is_array(merges)) return fail(E_INPUT, place, NULL, "model.merges must be a list");
    if (json_array_size(merges) > MERGES_MAX) return fail(E_INPUT, place, NULL, "more than %d merges", MERGES_MAX);
    bpe_merges_reserve(b, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) TRY(read_merge(b, json_array_get(merges, i), place));
    return OK;
}

static bool is_set(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) && !json_is_false(v) && !(json_is_string(v) && json_string_length(v) == 0) &&
           !(json_is_number(v) && json_number_value(v) == 0);
}

static int read_model(Bpe *b, json_t *model, const char *place)
{
    const char *type = string_at(model, "type");
    if (!json_is_object(model)) return fail(E_INPUT, place, NULL, "no \"model\": this is not a tokenizer.json");
    if (!type && json_object_get(model, "merges")) type = "BPE"; // old files do not say
    if (!type || !streq(type, "BPE")) return unsupported(place, "model", type ? type : "(no type)");
    if (is_set(model, "dropout")) return unsupported(place, "model option", "dropout");
    if (is_set(model, "continuing_subword_prefix"))
        return unsupported(place, "model option", "continuing_subword_prefix");
    if (is_set(model, "end_of_word_suffix")) return unsupported(place, "model option", "end_of_word_suffix");
    TRY(read_vocab(b, json_object_get(model, "vocab"), place));
    TRY(read_merges(b, json_object_get(model, "merges"), place));
    b->ignore_merges = flag_at(model, "ignore_merges", false);
    b->byte_fallback = flag_at(model, "byte_fallback", false);
    b->fuse_unk = flag_at(model, "fuse_unk", false);
    const char *unk = string_at(model, "unk_token");
    if (unk && (b->unk = vocab_find(&b->vocab, unk, strlen(unk))) < 0)
        log_debug("%s: unk_token %s is not in the vocabulary", place, unk);
    return OK;
}

// ---- added tokens and post-processor --------------------------------------------------------------------------------
static int read_added(Tokenizer *t, const json_t *list, const char *place)
{
    Vocab *v = &t->bpe.vocab;
    size_t total = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i), *content = json_object_get(o, "content"),
                     *id = json_object_get(o, "id");
        if (!json_is_string(content) || !json_is_integer(id))
            return fail(E_INPUT, place, NULL, "added token %zu has no content or id", i);
        const char *text = json_string_value(content);
        size_t bytes = json_string_length(content);
        if (bytes == 0) continue;
        if ((total += bytes) > ADDED_BYTES_MAX)
            return fail(E_INPUT, place, NULL, "added tokens exceed %d bytes", ADDED_BYTES_MAX);
        int known = vocab_find(v, text, bytes); // the model's id goes before the one written here
        if (known < 0) TRY(vocab_put(v, json_integer_value(id), text, bytes, false, place));
        AddedToken a = {
            .id = known >= 0 ? known : (int)json_integer_value(id),
            .special = flag_at(o, "special", false),
            .single_word = flag_at(o, "single_word", false),
            .lstrip = flag_at(o, "lstrip", false),
            .rstrip = flag_at(o, "rstrip", false),
            .normalized = flag_at(o, "normalized", true),
        };
        TRY(added_put(t, &a));
    }
    return OK;
}

static void put_ids(int32_t **list, int *n, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        *list = xrealloc(*list, (size_t)(*n + 1) * sizeof **list);
        (*list)[(*n)++] = (int32_t)json_integer_value(json_array_get(ids, i));
    }
}

// "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, ...] with "special_tokens": {"<s>": {"ids": [1]}}
static int read_template(Tokenizer *t, const json_t *spec, const char *place)
{
    const json_t *single = json_object_get(spec, "single"), *known = json_object_get(spec, "special_tokens");
    bool before = true;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i), *token = json_object_get(part, "SpecialToken");
        if (!token) {
            before = false;
            continue;
        }
        const char *name = string_at(token, "id");
        const json_t *ids = name ? json_object_get(json_object_get(known, name), "ids") : NULL;
        if (!json_is_array(ids)) return fail(E_INPUT, place, NULL, "post_processor names an unknown special token");
        if (before)
            put_ids(&t->prefix, &t->n_prefix, ids);
        else
            put_ids(&t->suffix, &t->n_suffix, ids);
    }
    return OK;
}

// ["</s>", 2]
static int read_pair_ids(Tokenizer *t, const json_t *spec, const char *place)
{
    const json_t *cls = json_array_get(json_object_get(spec, "cls"), 1),
                 *sep = json_array_get(json_object_get(spec, "sep"), 1);
    if (!json_is_integer(cls) || !json_is_integer(sep))
        return fail(E_INPUT, place, NULL, "post_processor without cls or sep id");
    json_t *one = json_pack("[O]", cls), *two = json_pack("[O]", sep);
    put_ids(&t->prefix, &t->n_prefix, one);
    put_ids(&t->suffix, &t->n_suffix, two);
    json_decref(one);
    json_decref(two);
    return OK;
}

static int read_post(Tokenizer *t, const json_t *spec, int depth, const char *place)
{
    if (!spec || json_is_null(spec)) return OK;
    const char *type = string_at(spec, "type");
    if (!type) return fail(E_INPUT, place, NULL, "post_processor has no type");
    if (streq(type, "ByteLevel")) return OK; // trims offsets only
    if (streq(type, "TemplateProcessing")) return read_template(t, spec, place);
    if (streq(type, "RobertaProcessing") || streq(type, "BertProcessing")) return read_pair_ids(t, spec, place);
    if (!streq(type, "Sequence") || depth == SEQUENCE_NEST_MAX) return unsupported(place, "post_processor", type);
    const json_t *list = json_object_get(spec, "processors");
    for (size_t i = 0; i < json_array_size(list); i++) TRY(read_post(t, json_array_get(list, i), depth + 1, place));
    return OK;
}

// ---- the file -------------------------------------------------------------------------------------------------------
static int read_tokenizer(Tokenizer *t, json_t *root, const char *place)
{
    TRY(read_model(&t->bpe, json_object_get(root, "model"), place));
    TRY(read_added(t, json_object_get(root, "added_tokens"), place));
    TRY(steps_from_json(&t->normalizer, "normalizer", json_object_get(root, "normalizer"), place));
    TRY(steps_from_json(&t->pre, "pre_tokenizer", json_object_get(root, "pre_tokenizer"), place));
    TRY(steps_from_json(&t->decoder, "decoder", json_object_get(root, "decoder"), place));
    TRY(read_post(t, json_object_get(root, "post_processor"), 0, place));
    t->has_decoder = json_is_object(json_object_get(root, "decoder"));
    for (int i = 0; i < t->n_prefix + t->n_suffix; i++) {
        int32_t id = i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix];
        if (!vocab_text(&t->bpe.vocab, id, NULL))
            return fail(E_INPUT, place, NULL, "post_processor adds id %d, which is no token", id);
    }
    return tokenizer_finish(t, place);
}

int tokenizer_open_json(Tokenizer **out, const char *json, size_t bytes, const char *place)
{
    *out = NULL;
    if (bytes > FILE_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "%zu bytes, at most %d are read", bytes, FILE_BYTES_MAX);
    json_error_t e;
    json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &e);
    if (!root) return fail(E_INPUT, tmpf("%s:%d", place, e.line), NULL, "not valid JSON: %s", e.text);
    Tokenizer *t = tokenizer_new();
    int status = read_tokenizer(t, root, place);
    json_decref(root);
    if (status < 0)
        tokenizer_free(t);
    else
        *out = t;
    return status;
}
