// added_tokens: finds whole tokens ("<|im_end|>") in text, the way the `tokenizers` package's AddedVocabulary does: at each
// place the longest token, leftmost first; single_word, lstrip and rstrip then reject or widen a match.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

// ---- trie -----------------------------------------------------------------------------------------------------------
static int32_t trie_node(Trie *t, unsigned char byte)
{
    if (t->n == t->cap) {
        t->cap = MAX(256, t->cap * 2);
        t->node = xrealloc(t->node, (size_t)t->cap * sizeof *t->node);
    }
    t->node[t->n] = (TrieNode){.token = -1, .byte = byte};
    return t->n++;
}

static int32_t trie_child(const Trie *t, int32_t node, unsigned char byte)
{
    if (node == 0) return t->first[byte];
    int32_t i = t->node[node].child;
    while (i && t->node[i].byte != byte) i = t->node[i].sibling;
    return i;
}

void trie_put(Trie *t, const char *text, size_t bytes, int32_t token)
{
    if (bytes == 0) return;
    if (t->n == 0) trie_node(t, 0);
    int32_t at = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t child = trie_child(t, at, byte);
        if (!child) {
            child = trie_node(t, byte);
            if (at == 0) {
                t->first[byte] = child;
            } else {
                t->node[child].sibling = t->node[at].child;
                t->node[at].child = child;
            }
        }
        at = child;
    }
    if (t->node[at].token < 0) t->node[at].token = token;
}

void trie_free(Trie *t)
{
    free(t->node);
}

// The longest token that starts at s[0]: its bytes, or 0.
static int32_t trie_longest(const Trie *t, const char *s, int32_t bytes, int32_t *token)
{
    int32_t best = 0, at = 0;
    for (int32_t i = 0; i < bytes; i++) {
        at = trie_child(t, at, (unsigned char)s[i]);
        if (!at) break;
        if (t->node[at].token < 0) continue;
        best = i + 1;
        *token = t->node[at].token;
    }
    return best;
}

// ---- cutting --------------------------------------------------------------------------------------------------------
static void cuts_put(Cuts *c, int32_t begin, int32_t end, int32_t id)
{
    if (c->n == c->cap) {
        c->cap = MAX(16, c->cap * 2);
        c->v = xrealloc(c->v, (size_t)c->cap * sizeof *c->v);
    }
    c->v[c->n++] = (Cut){begin, end, id};
}

static int32_t last_char(const char *s, int32_t end)
{
    do end--;
    while (!utf8_is_start(s[end]));
    return end;
}

static int32_t blanks_before(const char *s, int32_t end)
{
    while (end > 0) {
        int32_t at = last_char(s, end), next = at;
        if (!is_white_space(utf8_next(s, &next))) break;
        end = at;
    }
    return end;
}

static int32_t blanks_after(const char *s, int32_t bytes, int32_t at)
{
    for (int32_t next = at; at < bytes; at = next)
        if (!is_white_space(utf8_next(s, &next))) break;
    return at;
}

// 1: the match stands between two non-word characters.
static int stands_alone(const Tokenizer *t, RegexMatch *m, const char *s, int32_t bytes, int32_t begin, int32_t end)
{
    size_t b, e;
    int word = 0;
    if (begin > 0) {
        int32_t at = last_char(s, begin);
        TRY(word = regex_find(t->word, m, s + at, (size_t)(begin - at), 0, &b, &e));
    }
    if (word || end == bytes) return !word;
    int32_t next = end;
    utf8_next(s, &next);
    TRY(word = regex_find(t->word, m, s + end, (size_t)(next - end), 0, &b, &e));
    return !word;
}

int added_cut(const Tokenizer *t, const Trie *trie, RegexMatch *m, const char *s, int32_t bytes, Cuts *out)
{
    out->n = 0;
    int32_t done = 0; // text before this has been cut
    for (int32_t i = 0; i < bytes;) {
        int32_t token = -1,
                length = trie->first[(unsigned char)s[i]] ? trie_longest(trie, s + i, bytes - i, &token) : 0;
        if (length == 0) {
            i++;
            continue;
        }
        const AddedToken *a = &t->added[token];
        int32_t begin = i, end = i + length;
        i = end; // the search goes on behind the token itself, whatever becomes of the match
        if (a->single_word) {
            int alone = stands_alone(t, m, s, bytes, begin, end);
            TRY(alone);
            if (!alone) continue;
        }
        if (a->lstrip) begin = MAX(blanks_before(s, begin), done);
        if (a->rstrip) end = blanks_after(s, bytes, end);
        if (done < begin) cuts_put(out, done, begin, -1);
        cuts_put(out, begin, end, a->id);
        done = end;
    }
    if (done < bytes) cuts_put(out, done, bytes, -1);
    return OK;
}

// ---- the list -------------------------------------------------------------------------------------------------------
void added_put(Tokenizer *t, const AddedToken *a)
{
    if (t->n_added == t->cap_added) {
        t->cap_added = MAX(64, t->cap_added * 2);
        t->added = xrealloc(t->added, (size_t)t->cap_added * sizeof *t->added);
    }
    t->added[t->n_added] = *a;
    t->added[t->n_added++].shown.at = UINT32_MAX;
}

static int put_normalized(Tokenizer *t, int32_t i, const char *text, int32_t bytes, RegexMatch *m, TextBuf buf[2])
{
    Text in = {.s = text, .bytes = bytes}, out;
    TRY(normalize(&t->normalizer, m, &in, buf, &out));
    if (out.bytes != bytes || memcmp(out.s, text, (size_t)bytes) != 0) {
        t->marks[t->added[i].id] |= MARK_SHOWN;
        t->added[i].shown = vocab_keep_text(&t->bpe.vocab, out.s, (size_t)out.bytes);
    }
    trie_put(&t->normal, out.s, (size_t)out.bytes, i);
    return OK;
}

const char *added_shown(const Tokenizer *t, int id, uint32_t *bytes)
{
    int i = 0;
    while (t->added[i].id != id || t->added[i].shown.at == UINT32_MAX) i++;
    *bytes = t->added[i].shown.bytes;
    return t->bpe.vocab.text.data + t->added[i].shown.at;
}

int added_finish(Tokenizer *t)
{
    t->marks = xcalloc((size_t)t->bpe.vocab.n, sizeof *t->marks);
    RegexMatch *m = regex_match_new();
    TextBuf buf[2] = {0};
    int status = OK;
    bool single = false;
    // special tokens come first: of two with one text the package finds the special one
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < t->n_added; i++) {
            const AddedToken *a = &t->added[i];
            if (a->special == (pass == 1)) continue;
            uint32_t bytes;
            const char *text = vocab_text(&t->bpe.vocab, a->id, &bytes);
            single |= a->single_word;
            if (a->special) t->marks[a->id] |= MARK_SPECIAL;
            if (!a->normalized)
                trie_put(&t->raw, text, bytes, i);
            else
                TRY_DONE(put_normalized(t, i, text, (int32_t)bytes, m, buf));
        }
    }
    static const char word[] = "[\\w\\x{200c}\\x{200d}]";
    if (single) TRY_DONE(regex_compile(&t->word, word, sizeof word - 1, false, NULL));
done:
    regex_match_free(m);
    textbuf_free(&buf[0]);
    textbuf_free(&buf[1]);
    return status;
}
