// tokenizer_json: a Tokenizer from the text of a Hugging Face tokenizer.json. Truncation and padding settings in it are not
// followed: transformers resets them for every call.
#include "text/json_scan.h"
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
static int bad_json(const char *place, const char *what)
{
    return fail(E_INPUT, place, NULL, "model.%s is not the JSON that a BPE tokenizer holds there", what);
}

static int read_vocab(Bpe *b, JsonRange range, const char *place)
{
    JsonScan s = {.p = range.begin, .end = range.end};
    bool first = true;
    int status = OK;
    if (!range.begin || !scan_take(&s, '{')) return bad_json(place, "vocab");
    while (scan_more(&s, '}', &first)) {
        const char *text;
        size_t bytes;
        int64_t id;
        if (!scan_string(&s, &text, &bytes) || !scan_take(&s, ':')) break;
        // the text may stand in the scanner's buffer: it is copied before the next string is read
        if (!scan_int(&s, &id)) break;
        TRY_DONE(vocab_put(&b->vocab, id, text, bytes, true, place));
    }
    if (s.bad || s.p != s.end) status = bad_json(place, "vocab");
done:
    json_scan_free(&s);
    return status;
}

// "left right"
static int read_spaced_merge(Bpe *b, JsonScan *s, const char *place)
{
    const char *text;
    size_t bytes;
    if (!scan_string(s, &text, &bytes)) return bad_json(place, "merges");
    const char *space = bytes ? memchr(text, ' ', bytes) : NULL, *right = space ? space + 1 : NULL;
    if (!space || memchr(right, ' ', (size_t)(text + bytes - right)))
        return fail(E_INPUT, place, NULL, "merge %d (%.*s) is no pair of tokens", b->merges, (int)MIN(bytes, 100u),
                    text);
    return bpe_put_merge(b, text, (size_t)(space - text), right, (size_t)(text + bytes - right), place);
}

// ["left", "right"]
static int read_listed_merge(Bpe *b, JsonScan *s, const char *place)
{
    const char *text, *right;
    size_t bytes, right_bytes;
    char left[TOKEN_BYTES_MAX];
    scan_take(s, '[');
    if (!scan_string(s, &text, &bytes) || bytes > sizeof left) return bad_json(place, "merges");
    memcpy(left, text, bytes);
    if (!scan_take(s, ',') || !scan_string(s, &right, &right_bytes) || !scan_take(s, ']'))
        return bad_json(place, "merges");
    return bpe_put_merge(b, left, bytes, right, right_bytes, place);
}

static int read_merges(Bpe *b, JsonRange range, const char *place)
{
    JsonScan s = {.p = range.begin, .end = range.end};
    bool first = true;
    int status = OK;
    if (!range.begin || !scan_take(&s, '[')) return bad_json(place, "merges");
    while (scan_more(&s, ']', &first))
        TRY_DONE(scan_peek(&s) == '[' ? read_listed_merge(b, &s, place) : read_spaced_merge(b, &s, place));
    if (s.bad || s.p != s.end) status = bad_json(place, "merges");
done:
    json_scan_free(&s);
    return status;
}

static bool is_set(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) && !json_is_false(v) && !(json_is_string(v) && json_string_length(v) == 0) &&
           !(json_is_number(v) && json_number_value(v) == 0);
}

static int read_model(Bpe *b, const json_t *model, JsonRange vocab, JsonRange merges, const char *place)
{
    const char *type = string_at(model, "type");
    if (!json_is_object(model)) return fail(E_INPUT, place, NULL, "no \"model\": this is not a tokenizer.json");
    if (!type && merges.begin) type = "BPE"; // old files do not say
    if (!type || !streq(type, "BPE")) return unsupported(place, "model", type ? type : "(no type)");
    if (is_set(model, "dropout")) return unsupported(place, "model option", "dropout");
    if (is_set(model, "continuing_subword_prefix"))
        return unsupported(place, "model option", "continuing_subword_prefix");
    if (is_set(model, "end_of_word_suffix")) return unsupported(place, "model option", "end_of_word_suffix");
    TRY(read_vocab(b, vocab, place));
    TRY(read_merges(b, merges, place));
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
        added_put(t, &a);
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
static int read_tokenizer(Tokenizer *t, const json_t *root, JsonRange vocab, JsonRange merges, const char *place)
{
    TRY(read_model(&t->bpe, json_object_get(root, "model"), vocab, merges, place));
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

// The file without its vocabulary and merges, whose places are taken by null.
static json_t *read_rest(const char *json, size_t bytes, JsonRange vocab, JsonRange merges, json_error_t *e)
{
    Buf rest = {0};
    const char *p = json;
    JsonRange cuts[2] = {vocab, merges};
    if (merges.begin && (!vocab.begin || merges.begin < vocab.begin)) cuts[0] = merges, cuts[1] = vocab;
    for (int i = 0; i < 2; i++) {
        if (!cuts[i].begin) continue;
        buf_put(&rest, p, (size_t)(cuts[i].begin - p));
        buf_puts(&rest, "null");
        p = cuts[i].end;
    }
    buf_put(&rest, p, (size_t)(json + bytes - p));
    json_t *root = json_loadb(rest.data, rest.len, JSON_REJECT_DUPLICATES, e);
    buf_free(&rest);
    return root;
}

int tokenizer_open_json(Tokenizer **out, const char *json, size_t bytes, const char *place)
{
    *out = NULL;
    if (bytes > FILE_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "%zu bytes, at most %d are read", bytes, FILE_BYTES_MAX);
    JsonRange vocab, merges;
    json_find_members(json, bytes, "model", "vocab", "merges", &vocab, &merges);
    json_error_t e;
    json_t *root = read_rest(json, bytes, vocab, merges, &e);
    if (!root) return fail(E_INPUT, place, NULL, "not valid JSON: %s", e.text);
    Tokenizer *t = tokenizer_new();
    int status = read_tokenizer(t, root, vocab, merges, place);
    json_decref(root);
    if (status < 0)
        tokenizer_free(t);
    else
        *out = t;
    return status;
}
