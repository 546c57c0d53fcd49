// decode: ids back to text, as the `tokenizers` package's decoders do: a list of token texts that each decoder step maps to
// another list; the last one is joined.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

typedef struct Pieces {
    Buf text;     // all pieces, one after the other
    int32_t *end; // (n) where piece i ends
    int n, cap;
} Pieces;

static void piece_end(Pieces *p) // what was put since the last end is a piece
{
    if (p->n == p->cap) {
        p->cap = MAX(64, p->cap * 2);
        p->end = xrealloc(p->end, (size_t)p->cap * sizeof *p->end);
    }
    p->end[p->n++] = (int32_t)p->text.len;
}

static Text piece(const Pieces *p, int i)
{
    int32_t begin = i ? p->end[i - 1] : 0;
    return (Text){.s = p->text.data ? p->text.data + begin : "", .bytes = p->end[i] - begin};
}

static void pieces_free(Pieces *p)
{
    buf_free(&p->text);
    free(p->end);
}

// A token in the byte alphabet becomes its bytes; any other stays as it is.
static void put_token_bytes(Buf *out, const char *s, int32_t bytes)
{
    size_t before = out->len;
    for (int32_t i = 0; i < bytes;) {
        int byte = char_to_byte(utf8_next(s, &i));
        if (byte < 0) {
            out->len = before;
            buf_put(out, s, (size_t)bytes);
            return;
        }
        char c = (char)byte;
        buf_put(out, &c, 1);
    }
}

static void step_byte_level(const Pieces *in, Pieces *out)
{
    Buf raw = {0};
    for (int i = 0; i < in->n; i++) {
        Text t = piece(in, i);
        put_token_bytes(&raw, t.s, t.bytes);
    }
    utf8_put_lossy(&out->text, raw.data ? raw.data : "", raw.len);
    piece_end(out);
    buf_free(&raw);
}

static int fallback_byte(Text t) // "<0xAB>": its byte, else -1
{
    unsigned value = 0;
    if (t.bytes != 6 || memcmp(t.s, "<0x", 3) != 0 || t.s[5] != '>') return -1;
    for (int i = 3; i < 5; i++) {
        char c = t.s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + (unsigned)digit;
    }
    return (int)value;
}

static void flush_bytes(Buf *bytes, Pieces *out)
{
    if (bytes->len == 0) return;
    if (utf8_valid(bytes->data, bytes->len, NULL)) {
        buf_put(&out->text, bytes->data, bytes->len);
        piece_end(out);
    } else {
        for (size_t i = 0; i < bytes->len; i++) {
            buf_puts(&out->text, "\xEF\xBF\xBD");
            piece_end(out);
        }
    }
    bytes->len = 0;
}

static void step_byte_fallback(const Pieces *in, Pieces *out)
{
    Buf bytes = {0};
    for (int i = 0; i < in->n; i++) {
        Text t = piece(in, i);
        int byte = fallback_byte(t);
        if (byte >= 0) {
            char c = (char)byte;
            buf_put(&bytes, &c, 1);
            continue;
        }
        flush_bytes(&bytes, out);
        buf_put(&out->text, t.s, (size_t)t.bytes);
        piece_end(out);
    }
    flush_bytes(&bytes, out);
    buf_free(&bytes);
}

static void step_fuse(const Pieces *in, Pieces *out)
{
    buf_put(&out->text, in->text.data ? in->text.data : "", in->text.len);
    piece_end(out);
}

typedef struct Replace {
    const Step *step;
    Text in;
    Buf *out;
} Replace;
static void replace_part(void *ctx, int32_t begin, int32_t end, bool is_match)
{
    Replace *r = ctx;
    if (is_match)
        buf_put(r->out, r->step->text, (size_t)r->step->bytes);
    else
        buf_put(r->out, r->in.s + begin, (size_t)(end - begin));
}

static int step_replace(const Step *step, const Pieces *in, Pieces *out)
{
    RegexMatch *m = regex_match_new();
    int status = OK;
    for (int i = 0; i < in->n; i++) {
        Replace r = {step, piece(in, i), &out->text};
        TRY_DONE(regex_each(step->pattern, m, r.in.s, r.in.bytes, replace_part, &r));
        piece_end(out);
    }
done:
    regex_match_free(m);
    return status;
}

// Up to `start` times the character at each piece's front, up to `stop` times at its end.
static void step_strip(const Step *step, const Pieces *in, Pieces *out)
{
    for (int i = 0; i < in->n; i++) {
        Text t = piece(in, i);
        size_t w = (size_t)step->bytes;
        for (int k = 0; k < step->start && (size_t)t.bytes >= w && memcmp(t.s, step->text, w) == 0; k++)
            t = text_slice(&t, step->bytes, t.bytes);
        for (int k = 0; k < step->stop && (size_t)t.bytes >= w && memcmp(t.s + t.bytes - w, step->text, w) == 0; k++)
            t.bytes -= step->bytes;
        buf_put(&out->text, t.s, (size_t)t.bytes);
        piece_end(out);
    }
}

static void step_metaspace(const Step *step, const Pieces *in, Pieces *out)
{
    for (int i = 0; i < in->n; i++) {
        Text t = piece(in, i);
        for (int32_t k = 0; k < t.bytes;) {
            bool mark = t.bytes - k >= step->bytes && memcmp(t.s + k, step->text, (size_t)step->bytes) == 0;
            if (!mark)
                buf_put(&out->text, t.s + k, 1);
            else if (i > 0 || step->prepend == PREPEND_NEVER)
                buf_puts(&out->text, " ");
            k += mark ? step->bytes : 1;
        }
        piece_end(out);
    }
}

static int run_step(const Step *step, const Pieces *in, Pieces *out)
{
    switch (step->kind) {
    case DEC_BYTE_LEVEL: step_byte_level(in, out); return OK;
    case DEC_BYTE_FALLBACK: step_byte_fallback(in, out); return OK;
    case DEC_FUSE: step_fuse(in, out); return OK;
    case DEC_REPLACE: return step_replace(step, in, out);
    case DEC_STRIP: step_strip(step, in, out); return OK;
    case DEC_METASPACE: step_metaspace(step, in, out); return OK;
    default: ASSERT(!"not a decoder"); return OK;
    }
}

int tokenizer_decode(const Tokenizer *t, const int32_t *ids, int n, bool skip_special, Buf *out)
{
    Pieces pieces[2] = {0};
    int turn = 0, status = OK;
    for (int i = 0; i < n; i++) {
        uint32_t bytes;
        const char *text = vocab_text(&t->bpe.vocab, ids[i], &bytes);
        if (!text || (skip_special && tokenizer_is_special(t, ids[i]))) continue; // ids without a token say nothing
        if (t->marks[ids[i]] & MARK_SHOWN) text = added_shown(t, ids[i], &bytes);
        if (pieces[0].text.len + bytes > INT32_MAX / 8) {
            status = fail(E_INPUT, NULL, NULL, "%d ids are too many to decode at once", n);
            goto done;
        }
        if (!t->has_decoder && pieces[0].n) buf_puts(&pieces[0].text, " ");
        buf_put(&pieces[0].text, text, bytes);
        piece_end(&pieces[0]);
    }
    for (int i = 0; i < t->decoder.n; i++, turn ^= 1) {
        Pieces *to = &pieces[turn ^ 1];
        to->text.len = 0;
        to->n = 0;
        TRY_DONE(run_step(&t->decoder.v[i], &pieces[turn], to));
    }
    buf_put(out, pieces[turn].text.data ? pieces[turn].text.data : "", pieces[turn].text.len);
done:
    pieces_free(&pieces[0]);
    pieces_free(&pieces[1]);
    return status;
}
