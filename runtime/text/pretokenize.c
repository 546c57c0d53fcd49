// pretokenize: cuts text into the words that merging works on. Each step cuts every span of the one before.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

void spans_put(Spans *s, int32_t begin, int32_t end)
{
    if (begin >= end) return; // empty pieces vanish
    if (s->n == s->cap) {
        s->cap = MAX(64, s->cap * 2);
        s->v = xrealloc(s->v, (size_t)s->cap * sizeof *s->v);
    }
    s->v[s->n++] = (Span){begin, end};
}

int regex_each(const Regex *r, RegexMatch *m, const char *s, int32_t bytes, MatchFn *fn, void *ctx)
{
    size_t from = 0, begin, end, done = 0, n = (size_t)bytes, last_match = SIZE_MAX;
    while (from <= n) {
        int found = regex_find(r, m, s, n, from, &begin, &end);
        TRY(found);
        if (!found) break;
        if (begin == end && end == last_match) { // an empty match right behind a match is skipped
            do from++;
            while (from < n && !utf8_is_start(s[from]));
            continue;
        }
        if (done < begin) fn(ctx, (int32_t)done, (int32_t)begin, false);
        fn(ctx, (int32_t)begin, (int32_t)end, true);
        done = from = last_match = end;
    }
    if (done < n) fn(ctx, (int32_t)done, bytes, false);
    return OK;
}

// ---- cutting one span -----------------------------------------------------------------------------------------------
// Takes a span's parts in order and puts the pieces that `behavior` makes of them.
typedef struct Cutter {
    Spans *out;
    int32_t base; // of the span in the text
    Behavior behavior;
    bool invert;
    bool any, last_was_match;
    Span piece; // not yet put (not for REMOVED and ISOLATED)
} Cutter;

static void cutter_part(void *ctx, int32_t begin, int32_t end, bool is_match)
{
    Cutter *c = ctx;
    begin += c->base;
    end += c->base;
    is_match ^= c->invert;
    bool joins = false; // does this part lengthen the pending piece?
    switch (c->behavior) {
    case REMOVED:
        if (!is_match) spans_put(c->out, begin, end);
        return;
    case ISOLATED: spans_put(c->out, begin, end); return;
    case CONTIGUOUS: joins = is_match == c->last_was_match; break;
    case MERGED_WITH_PREVIOUS: joins = is_match && !c->last_was_match; break;
    case MERGED_WITH_NEXT: joins = !is_match && c->last_was_match; break;
    }
    if (c->any && joins) {
        c->piece.end = end;
    } else {
        if (c->any) spans_put(c->out, c->piece.begin, c->piece.end);
        c->piece = (Span){begin, end};
    }
    c->any = true;
    c->last_was_match = is_match;
}

static void cutter_end(Cutter *c)
{
    if (c->any) spans_put(c->out, c->piece.begin, c->piece.end);
}

typedef bool CharTest(uint32_t cp);

static void cut_by_char(Cutter *c, const char *s, int32_t bytes, CharTest *test)
{
    int32_t done = 0;
    ASSERT(test);
    for (int32_t at = 0, next = 0; at < bytes; at = next) {
        if (!test(utf8_next(s, &next))) continue;
        if (done < at) cutter_part(c, done, at, false);
        cutter_part(c, at, next, true);
        done = next;
    }
    if (done < bytes) cutter_part(c, done, bytes, false);
}

// ---- steps ----------------------------------------------------------------------------------------------------------
typedef struct Pre { // pre-tokenization under way
    PreWork *w;
    RegexMatch *m;
    Text text;
    Spans *words;
    int text_turn, span_turn;
} Pre;

static Spans *other_spans(Pre *p)
{
    Spans *s = &p->w->spans[p->span_turn ^= 1];
    s->n = 0;
    return s;
}

static int cut_all(Pre *p, const Regex *pattern, CharTest *test, Behavior behavior, bool invert)
{
    Spans *in = p->words, *out = other_spans(p);
    for (int i = 0; i < in->n; i++) {
        Span v = in->v[i];
        Cutter c = {.out = out, .base = v.begin, .behavior = behavior, .invert = invert};
        if (pattern)
            TRY(regex_each(pattern, p->m, p->text.s + v.begin, v.end - v.begin, cutter_part, &c));
        else
            cut_by_char(&c, p->text.s + v.begin, v.end - v.begin, test);
        cutter_end(&c);
    }
    p->words = out;
    return OK;
}

// Writes every word anew into the other buffer by put(out, text, word, step).
typedef void PutWord(TextBuf *out, const Text *text, Span word, const Step *step);

static int rewrite_all(Pre *p, const Step *step, PutWord *put)
{
    Spans *in = p->words, *out = other_spans(p);
    TextBuf *to = &p->w->buf[p->text_turn ^= 1];
    to->bytes = 0;
    to->full = false;
    for (int i = 0; i < in->n; i++) {
        int32_t begin = to->bytes;
        put(to, &p->text, in->v[i], step);
        spans_put(out, begin, to->bytes);
    }
    TRY(textbuf_check(to));
    p->text = textbuf_text(to);
    p->words = out;
    return OK;
}

static void put_with_prefix_space(TextBuf *out, const Text *text, Span word, const Step *step)
{
    (void)step;
    if (text->s[word.begin] != ' ') textbuf_put(out, " ", 1, text_origin(text, word.begin));
    textbuf_copy(out, text, word.begin, word.end);
}

static void put_as_byte_chars(TextBuf *out, const Text *text, Span word, const Step *step)
{
    (void)step;
    for (int32_t i = word.begin; i < word.end; i++) {
        char c[4];
        textbuf_put(out, c, utf8_encode(byte_to_char((unsigned char)text->s[i]), c), text_origin(text, i));
    }
}

static void put_metaspace(TextBuf *out, const Text *text, Span word, const Step *step)
{
    int32_t n = word.end - word.begin, origin = text_origin(text, word.begin);
    bool marked = text->s[word.begin] == ' ' ||
                  (n >= step->bytes && memcmp(text->s + word.begin, step->text, (size_t)step->bytes) == 0);
    bool prepend = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && origin == 0);
    if (prepend && !marked) textbuf_put(out, step->text, step->bytes, origin);
    for (int32_t i = word.begin, from = i; i <= word.end; i++) {
        if (i < word.end && text->s[i] != ' ') continue;
        textbuf_copy(out, text, from, i);
        if (i < word.end) textbuf_put(out, step->text, step->bytes, text_origin(text, i));
        from = i + 1;
    }
}

static int step_byte_level(Pre *p, const Step *step, bool raw_bytes)
{
    if (step->prefix_space) TRY(rewrite_all(p, step, put_with_prefix_space));
    if (step->pattern) TRY(cut_all(p, step->pattern, NULL, ISOLATED, false));
    return raw_bytes ? OK : rewrite_all(p, step, put_as_byte_chars);
}

static int step_metaspace(Pre *p, const Step *step)
{
    TRY(rewrite_all(p, step, put_metaspace));
    return step->split ? cut_all(p, step->pattern, NULL, MERGED_WITH_NEXT, false) : OK;
}

static int run_step(Pre *p, const Step *step, bool raw_bytes)
{
    switch (step->kind) {
    case PRE_SPLIT: return cut_all(p, step->pattern, NULL, step->behavior, step->invert);
    case PRE_DIGITS: return cut_all(p, NULL, is_numeric, step->behavior, false);
    case PRE_PUNCTUATION: return cut_all(p, NULL, is_punctuation, step->behavior, false);
    case PRE_WHITESPACE_SPLIT: return cut_all(p, NULL, is_white_space, REMOVED, false);
    case PRE_METASPACE: return step_metaspace(p, step);
    case PRE_BYTE_LEVEL: return step_byte_level(p, step, raw_bytes);
    default: ASSERT(!"not a pre-tokenizer"); return OK;
    }
}

int pretokenize(const Steps *steps, RegexMatch *m, const Text *in, bool raw_bytes, PreWork *w, Text *text,
                Spans **words)
{
    Pre p = {.w = w, .m = m, .text = *in, .words = &w->spans[0]};
    p.words->n = 0;
    spans_put(p.words, 0, in->bytes);
    for (int i = 0; i < steps->n; i++) TRY(run_step(&p, &steps->v[i], raw_bytes && i + 1 == steps->n));
    *text = p.text;
    *words = p.words;
    return OK;
}

void prework_free(PreWork *w)
{
    for (int i = 0; i < 2; i++) {
        textbuf_free(&w->buf[i]);
        free(w->spans[i].v);
    }
}
