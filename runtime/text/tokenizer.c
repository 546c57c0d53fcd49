// tokenizer: runs the stages of an encoding and answers questions about tokens. The stages are in tokenizer_impl.h's list;
// opening from files in tokenizer_open.c, tokenizer_json.c and tokenizer_gguf.c.
#include "text/tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

// ---- life -----------------------------------------------------------------------------------------------------------
Tokenizer *tokenizer_new(void)
{
    Tokenizer *t = xcalloc(1, sizeof *t);
    t->bpe.unk = t->bos = t->eos = t->pad = -1;
    return t;
}

void steps_free(Steps *s)
{
    for (int i = 0; i < s->n; i++) {
        regex_free(s->v[i].pattern);
        free(s->v[i].text);
    }
    s->n = 0;
}

void tokenizer_free(Tokenizer *t)
{
    if (!t) return;
    bpe_free(&t->bpe);
    free(t->added);
    trie_free(&t->raw);
    trie_free(&t->normal);
    regex_free(t->word);
    steps_free(&t->normalizer);
    steps_free(&t->pre);
    steps_free(&t->decoder);
    free(t->prefix);
    free(t->suffix);
    free(t->marks);
    free(t);
}

int tokenizer_finish(Tokenizer *t, const char *place)
{
    if (t->bpe.vocab.n == 0) return fail(E_INPUT, place, NULL, "vocabulary is empty");
    const Steps *pre = &t->pre;
    t->bpe.byte_level = pre->n && pre->v[pre->n - 1].kind == PRE_BYTE_LEVEL;
    bpe_finish(&t->bpe);
    return added_finish(t);
}

// ---- questions ------------------------------------------------------------------------------------------------------
int tokenizer_vocab_size(const Tokenizer *t)
{
    return t->bpe.vocab.n;
}
const char *tokenizer_token(const Tokenizer *t, int id)
{
    return vocab_text(&t->bpe.vocab, id, NULL);
}
int tokenizer_bos(const Tokenizer *t)
{
    return t->bos;
}
int tokenizer_eos(const Tokenizer *t)
{
    return t->eos;
}
int tokenizer_pad(const Tokenizer *t)
{
    return t->pad;
}
bool tokenizer_adds_bos(const Tokenizer *t)
{
    return t->n_prefix > 0;
}
bool tokenizer_is_special(const Tokenizer *t, int id)
{
    return id >= 0 && id < t->bpe.vocab.n && (t->marks[id] & MARK_SPECIAL);
}

int tokenizer_id(const Tokenizer *t, const char *token)
{
    for (int i = 0; i < t->n_added; i++)
        if (streq(vocab_text(&t->bpe.vocab, t->added[i].id, NULL), token)) return t->added[i].id;
    return vocab_find(&t->bpe.vocab, token, strlen(token));
}

// ---- ids ------------------------------------------------------------------------------------------------------------
static void ids_reserve(Ids *ids, int more, bool with_offsets)
{
    if (ids->n + more > ids->cap) {
        ids->cap = MAX(ids->n + more, MAX(64, ids->cap + ids->cap / 2));
        ids->id = xrealloc(ids->id, (size_t)ids->cap * sizeof *ids->id);
        if (ids->start) ids->start = xrealloc(ids->start, (size_t)ids->cap * sizeof *ids->start);
    }
    if (with_offsets && !ids->start) ids->start = xcalloc((size_t)ids->cap, sizeof *ids->start);
}

void ids_free(Ids *ids)
{
    free(ids->id);
    free(ids->start);
    *ids = (Ids){0};
}

// ---- encoding -------------------------------------------------------------------------------------------------------
typedef struct Encoding { // one call's scratch
    const Tokenizer *t;
    RegexMatch *match;
    BpeWork *bpe;
    TextBuf normal[2];
    PreWork pre;
    Cuts raw_cuts, cuts;
    Ids *out;
    bool with_offsets;
} Encoding;

static void put_id(Encoding *e, int32_t id, int32_t start)
{
    Ids *out = e->out;
    ids_reserve(out, 1, e->with_offsets);
    if (e->with_offsets) out->start[out->n] = start;
    out->id[out->n++] = id;
}

static void encode_word(Encoding *e, const Text *text, Span word)
{
    const int32_t *ids, *lengths;
    int n = bpe_word(e->bpe, text->s + word.begin, word.end - word.begin, &ids, &lengths);
    int32_t at = word.begin;
    for (int i = 0; i < n; i++) {
        put_id(e, ids[i], text_origin(text, MIN(at, word.end - 1)));
        at += lengths[i];
    }
}

// Text without added tokens that are found before normalisation.
static int encode_chunk(Encoding *e, const Text *chunk)
{
    const Tokenizer *t = e->t;
    Text normal, text;
    TRY(normalize(&t->normalizer, e->match, chunk, e->normal, &normal));
    TRY(added_cut(t, &t->normal, e->match, normal.s, normal.bytes, &e->cuts));
    for (int i = 0; i < e->cuts.n; i++) {
        Cut c = e->cuts.v[i];
        if (c.id >= 0) {
            put_id(e, c.id, text_origin(&normal, c.begin));
            continue;
        }
        Text part = text_slice(&normal, c.begin, c.end);
        Spans *words;
        TRY(pretokenize(&t->pre, e->match, &part, t->bpe.byte_level, &e->pre, &text, &words));
        for (int k = 0; k < words->n; k++) encode_word(e, &text, words->v[k]);
    }
    return OK;
}

static int encode_text(Encoding *e, const char *text, int32_t bytes)
{
    Text all = {.s = text, .bytes = bytes};
    TRY(added_cut(e->t, &e->t->raw, e->match, text, bytes, &e->raw_cuts));
    for (int i = 0; i < e->raw_cuts.n; i++) {
        Cut c = e->raw_cuts.v[i];
        Text chunk = text_slice(&all, c.begin, c.end);
        if (c.id >= 0)
            put_id(e, c.id, c.begin);
        else
            TRY(encode_chunk(e, &chunk));
    }
    return OK;
}

static void encoding_free(Encoding *e)
{
    regex_match_free(e->match);
    bpe_work_free(e->bpe);
    textbuf_free(&e->normal[0]);
    textbuf_free(&e->normal[1]);
    prework_free(&e->pre);
    free(e->raw_cuts.v);
    free(e->cuts.v);
}

int tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, bool add_special, bool with_offsets, Ids *out)
{
    size_t bad = 0;
    if (bytes > TEXT_BYTES_MAX)
        return fail(E_INPUT, NULL, "split the text into smaller rows",
                    "text of %zu bytes, at most %d MiB are encoded at once", bytes, TEXT_BYTES_MAX >> 20);
    if (!utf8_valid(text, bytes, &bad))
        return fail(E_INPUT, NULL, "convert it to UTF-8", "text is not UTF-8 at byte %zu", bad);
    Encoding e = {.t = t, .out = out, .with_offsets = with_offsets};
    e.match = regex_match_new();
    e.bpe = bpe_work_new(&t->bpe, bytes);
    int n = out->n;
    ids_reserve(out, (int)(bytes / 4) + 8, with_offsets);
    for (int i = 0; add_special && i < t->n_prefix; i++) put_id(&e, t->prefix[i], 0);
    int status = encode_text(&e, text, (int32_t)bytes);
    for (int i = 0; add_special && i < t->n_suffix; i++) put_id(&e, t->suffix[i], (int32_t)bytes);
    if (status < 0) out->n = n;
    encoding_free(&e);
    return status;
}
