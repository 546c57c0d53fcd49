// normalize: the normalizer steps of tokenizer.json, and the texts under work that they write.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

// ---- texts under work -----------------------------------------------------------------------------------------------
static bool textbuf_room(TextBuf *b, int32_t bytes)
{
    if (bytes > TEXT_BYTES_MAX - b->bytes) b->full = true;
    if (b->full) return false;
    if (b->bytes + bytes <= b->cap) return true;
    b->cap = MAX(b->bytes + bytes, MAX(256, b->cap * 2));
    b->s = xrealloc(b->s, (size_t)b->cap);
    b->origin = xrealloc(b->origin, (size_t)b->cap * sizeof *b->origin);
    return true;
}

void textbuf_put(TextBuf *b, const char *s, int32_t bytes, int32_t origin)
{
    if (bytes == 0 || !textbuf_room(b, bytes)) return;
    memcpy(b->s + b->bytes, s, (size_t)bytes);
    for (int32_t i = 0; i < bytes; i++) b->origin[b->bytes + i] = origin;
    b->bytes += bytes;
}

void textbuf_copy(TextBuf *b, const Text *from, int32_t begin, int32_t end)
{
    if (begin >= end || !textbuf_room(b, end - begin)) return;
    memcpy(b->s + b->bytes, from->s + begin, (size_t)(end - begin));
    for (int32_t i = begin; i < end; i++) b->origin[b->bytes + i - begin] = text_origin(from, i);
    b->bytes += end - begin;
}

Text textbuf_text(const TextBuf *b)
{
    return (Text){.s = b->s ? b->s : "", .bytes = b->bytes, .origin = b->origin};
}

int textbuf_check(const TextBuf *b)
{
    return b->full ? fail(E_INPUT, NULL, "split the text into smaller rows", "text exceeds %d MiB once normalised",
                          TEXT_BYTES_MAX >> 20)
                   : OK;
}

void textbuf_free(TextBuf *b)
{
    free(b->s);
    free(b->origin);
}

// ---- steps ----------------------------------------------------------------------------------------------------------
typedef struct Job { // one step under way
    const Step *step;
    const Text *in;
    TextBuf *out;
    RegexMatch *m;
} Job;

// Most text is in normal form: false when nothing below U+0300 or above needs a look.
static bool may_change(NormalForm form, const Text *in)
{
    // U+0300 starts with 0xCC; the decomposing and compatibility forms also change Latin-1
    unsigned char first = form == FORM_NFC ? 0xCC : 0xC2;
    for (int32_t i = 0; i < in->bytes; i++)
        if ((unsigned char)in->s[i] >= first) return true;
    return false;
}

static int step_form(Job *j)
{
    Buf run = {0};
    const Text *in = j->in;
    NormalForm form = (NormalForm)j->step->form;
    for (int32_t at = 0, end; at < in->bytes; at = end) {
        end = normal_run_end(in->s, in->bytes, at);
        run.len = 0;
        if (normal_run(form, in->s + at, end - at, &run))
            textbuf_put(j->out, run.data, (int32_t)run.len, text_origin(in, at));
        else
            textbuf_copy(j->out, in, at, end);
    }
    buf_free(&run);
    return OK;
}

static int step_lowercase(Job *j)
{
    for (int32_t at = 0, next = 0; at < j->in->bytes; at = next) {
        uint32_t lower[3];
        char text[4];
        int n = to_lower(utf8_next(j->in->s, &next), lower);
        for (int i = 0; i < n; i++) textbuf_put(j->out, text, utf8_encode(lower[i], text), text_origin(j->in, at));
    }
    return OK;
}

static int step_strip(Job *j)
{
    const char *s = j->in->s;
    int32_t begin = 0, end = j->in->bytes;
    for (int32_t next = 0; j->step->left && begin < end; begin = next)
        if (!is_white_space(utf8_next(s, &next))) break;
    while (j->step->right && end > begin) {
        int32_t at = end - 1;
        while (!utf8_is_start(s[at])) at--;
        int32_t next = at;
        if (!is_white_space(utf8_next(s, &next))) break;
        end = at;
    }
    textbuf_copy(j->out, j->in, begin, end);
    return OK;
}

static int step_strip_accents(Job *j)
{
    for (int32_t at = 0, next = 0; at < j->in->bytes; at = next)
        if (!is_mark(utf8_next(j->in->s, &next))) textbuf_copy(j->out, j->in, at, next);
    return OK;
}

static int step_prepend(Job *j)
{
    if (j->in->bytes) textbuf_put(j->out, j->step->text, j->step->bytes, text_origin(j->in, 0));
    textbuf_copy(j->out, j->in, 0, j->in->bytes);
    return OK;
}

static void replace_part(void *ctx, int32_t begin, int32_t end, bool is_match)
{
    Job *j = ctx;
    if (!is_match)
        textbuf_copy(j->out, j->in, begin, end);
    else
        textbuf_put(j->out, j->step->text, j->step->bytes, begin < j->in->bytes ? text_origin(j->in, begin) : 0);
}

static int step_replace(Job *j)
{
    return regex_each(j->step->pattern, j->m, j->in->s, j->in->bytes, replace_part, j);
}

static int step_byte_level(Job *j)
{
    for (int32_t i = 0; i < j->in->bytes; i++) {
        char text[4];
        textbuf_put(j->out, text, utf8_encode(byte_to_char((unsigned char)j->in->s[i]), text), text_origin(j->in, i));
    }
    return OK;
}

static int run_step(Job *j)
{
    switch (j->step->kind) {
    case NORM_FORM: return step_form(j);
    case NORM_LOWERCASE: return step_lowercase(j);
    case NORM_STRIP: return step_strip(j);
    case NORM_STRIP_ACCENTS: return step_strip_accents(j);
    case NORM_PREPEND: return step_prepend(j);
    case NORM_REPLACE: return step_replace(j);
    case NORM_BYTE_LEVEL: return step_byte_level(j);
    default: ASSERT(!"not a normalizer"); return OK;
    }
}

int normalize(const Steps *steps, RegexMatch *m, const Text *in, TextBuf buf[2], Text *out)
{
    Text text = *in;
    int turn = 0;
    for (int i = 0; i < steps->n; i++) {
        const Step *step = &steps->v[i];
        if (step->kind == NORM_FORM && !may_change((NormalForm)step->form, &text)) continue;
        TextBuf *to = &buf[turn];
        to->bytes = 0;
        to->full = false;
        Job job = {step, &text, to, m};
        TRY(run_step(&job));
        TRY(textbuf_check(to));
        text = textbuf_text(to);
        turn = !turn;
    }
    *out = text;
    return OK;
}
