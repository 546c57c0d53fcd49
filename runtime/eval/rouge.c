// rouge: ROUGE-1, -2, -L and -Lsum (Lin 2004), number for number what rouge-score 0.1.2 gives. Owns the
// tokenizer and the overlap counts; the stemmer is porter.c.
//
//   tokens   lower case (Unicode), every run outside [a-z0-9] separates, words over 3 letters are stemmed
//   ROUGE-N  matches = Σ over n-grams of min(count in reference, count in hypothesis)
//   ROUGE-L  matches = length of the longest common subsequence (LCS)
//   Lsum     matches = Σ over reference lines of the union, over hypothesis lines, of *one* LCS each; a token
//   counts at most as
//            often as it occurs in either text. Which LCS is read from the table t of prefix lengths, from
//            its end: a match goes diagonally, else left when t[i][j-1] > t[i-1][j], else up.
//   P = matches / hypothesis, R = matches / reference, F = 2PR / (P + R); 0 where a side has none
//
// Time is O(n·m) for texts of n and m words. Memory stays small for long texts: lengths need one row of the
// table; reading an LCS back needs one bit a cell, kept for a block of rows at a time (see LcsReader).
#include "eval/rouge.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- words to small integers, shared by both texts
// ------------------------------------------------------------------
typedef struct Vocab {
    Buf text;        // the words, each NUL-terminated
    size_t *offset;  // (n) of word i in text
    int32_t *bucket; // (buckets) word + 1, or 0; open addressing
    int n, buckets;  // buckets is a power of two and more than 2 n
} Vocab;

static int32_t *vocab_slot(const Vocab *v, const char *word, size_t bytes)
{
    size_t mask = (size_t)v->buckets - 1;
    for (size_t i = hash64(word, bytes, 0) & mask;; i = (i + 1) & mask)
        if (!v->bucket[i] || streq(v->text.data + v->offset[v->bucket[i] - 1], word)) return &v->bucket[i];
}

static void vocab_grow(Vocab *v)
{
    v->buckets = MAX(64, 2 * v->buckets);
    free(v->bucket);
    v->bucket = xcalloc((size_t)v->buckets, sizeof *v->bucket);
    v->offset = xrealloc(v->offset, (size_t)v->buckets / 2 * sizeof *v->offset);
    for (int i = 0; i < v->n; i++) {
        const char *word = v->text.data + v->offset[i];
        *vocab_slot(v, word, strlen(word)) = i + 1;
    }
}

static int32_t vocab_id(Vocab *v, const char *word, size_t bytes)
{
    if (2 * (v->n + 1) >= v->buckets) vocab_grow(v);
    int32_t *slot = vocab_slot(v, word, bytes);
    if (!*slot) {
        v->offset[v->n] = v->text.len;
        buf_put(&v->text, word, bytes + 1);
        *slot = ++v->n;
    }
    return *slot - 1;
}

static void vocab_free(Vocab *v)
{
    buf_free(&v->text);
    free(v->offset);
    free(v->bucket);
}

// ---- tokenizer
// ------------------------------------------------------------------------------------------------------
typedef struct Text {
    int32_t *id; // (n)
    int n, cap;
    int *line; // (lines + 1) first token of each line, and n
    int lines, line_cap;
} Text;

static void text_token(Text *t, int32_t id)
{
    if (t->n == t->cap) t->id = xrealloc(t->id, (size_t)(t->cap = MAX(64, 2 * t->cap)) * sizeof *t->id);
    t->id[t->n++] = id;
}

static void text_line(Text *t)
{
    if (t->lines + 2 > t->line_cap)
        t->line = xrealloc(t->line, (size_t)(t->line_cap = MAX(16, 2 * t->line_cap)) * sizeof *t->line);
    t->line[t->lines + 1] = t->n;
    t->lines++;
}

static void text_free(Text *t)
{
    free(t->id);
    free(t->line);
}

// The letter or digit at s in lower case, or 0 for a separator. Two characters beyond ASCII become ASCII
// letters when lowered: U+212A KELVIN SIGN -> k, U+0130 (dotted capital I) -> i and a combining dot, which
// separates. *used: bytes read.
static char word_char(const char *s, size_t *used)
{
    static const struct {
        const char *utf8;
        char lower;
    } beyond[] = {{"\u212a", 'k'}, {"\u0130", 'i'}};
    *used = 1;
    if ((*s >= 'a' && *s <= 'z') || (*s >= '0' && *s <= '9')) return *s;
    if (*s >= 'A' && *s <= 'Z') return (char)(*s - 'A' + 'a');
    for (size_t i = 0; i < COUNT_OF(beyond); i++) {
        size_t bytes = strlen(beyond[i].utf8);
        if (strncmp(s, beyond[i].utf8, bytes)) continue;
        *used = bytes;
        return beyond[i].lower;
    }
    return 0;
}

static void end_word(Text *t, Vocab *v, Buf *word, bool stem)
{
    if (!word->len) return;
    if (stem && word->len > 3) {
        porter_stem(word->data);
        word->len = strlen(word->data);
    }
    if (word->len) text_token(t, vocab_id(v, word->data, word->len));
    word->len = 0;
}

static void tokenize(Text *t, Vocab *v, const char *s, bool stem)
{
    Buf word = {0};
    t->line = xcalloc((size_t)(t->line_cap = 16), sizeof *t->line);
    for (size_t used; *s; s += used) {
        char c = word_char(s, &used);
        if (c) buf_put(&word, &c, 1);
        if (!c || used == 2) end_word(t, v, &word, stem); // two bytes: U+0130, whose combining dot ends the word
        if (*s == '\n') text_line(t);
    }
    end_word(t, v, &word, stem);
    text_line(t);
    buf_free(&word);
}

// ---- n-grams
// --------------------------------------------------------------------------------------------------------
static RougeScore score(double matches, double hypothesis, double reference)
{
    RougeScore s = {matches / MAX(hypothesis, 1), matches / MAX(reference, 1), 0};
    if (s.precision + s.recall > 0) s.f1 = 2 * s.precision * s.recall / (s.precision + s.recall);
    return s;
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Sorted keys of a text's n-grams (n is 1 or 2): count of them in *count
static uint64_t *ngrams(const Text *t, int n, int *count)
{
    *count = MAX(0, t->n - n + 1);
    uint64_t *key = xmalloc(((size_t)*count + 1) * sizeof *key);
    for (int i = 0; i < *count; i++)
        key[i] = n == 1 ? (uint64_t)t->id[i] : (uint64_t)t->id[i] << 32 | (uint64_t)t->id[i + 1];
    qsort(key, (size_t)*count, sizeof *key, by_key);
    return key;
}

static RougeScore score_ngrams(const Text *ref, const Text *hyp, int n)
{
    int nr, nh, matches = 0;
    uint64_t *r = ngrams(ref, n, &nr), *h = ngrams(hyp, n, &nh);
    for (int i = 0, j = 0; i < nr && j < nh;) {
        matches += r[i] == h[j];
        uint64_t low = MIN(r[i], h[j]);
        i += r[i] == low;
        j += h[j] == low;
    }
    free(r);
    free(h);
    return score(matches, nh, nr);
}

// ---- longest common subsequences
// ------------------------------------------------------------------------------------ One row of the table:
// row (m+1) holds t[i-1][..] on entry and t[i][..] on return. left (a bit a column, may be NULL) is set where
// t[i][j-1] > t[i-1][j].
static void lcs_row(int32_t *row, uint64_t *left, int32_t token, const int32_t *hyp, int m)
{
    int32_t diagonal = row[0];
    for (int j = 1; j <= m; j++) {
        int32_t up = row[j];
        if (left && row[j - 1] > up) left[j / 64] |= 1ull << j % 64;
        row[j] = hyp[j - 1] == token ? diagonal + 1 : MAX(up, row[j - 1]);
        diagonal = up;
    }
}

static int lcs_length(const int32_t *ref, int n, const int32_t *hyp, int m)
{
    int32_t *row = xcalloc((size_t)m + 1, sizeof *row);
    for (int i = 0; i < n; i++) lcs_row(row, NULL, ref[i], hyp, m);
    int length = row[m];
    free(row);
    return length;
}

// Reads an LCS back without the whole table: a first pass keeps every `block`-th row, and the way back
// computes one block's direction bits at a time. With block = sqrt(32 n) both take 4·m·n/block bytes: 100,000
// words by 100,000 need 45 MB, not 40 GB.
typedef struct LcsReader {
    const int32_t *ref, *hyp;
    int n, m, block;
    size_t words;   // 64-bit words of a row of bits
    int32_t *saved; // (n / block + 1, m + 1) rows 0, block, 2·block, ...
    int32_t *row;   // (m + 1) scratch
    uint64_t *left; // (block, words)
} LcsReader;

static void reader_open(LcsReader *r)
{
    size_t width = (size_t)r->m + 1;
    r->block = MAX(64, (int)ceil(sqrt(32.0 * r->n)));
    r->words = width / 64 + 1;
    r->saved = xcalloc(((size_t)r->n / (size_t)r->block + 1) * width, sizeof *r->saved);
    r->row = xcalloc(width, sizeof *r->row);
    r->left = xmalloc((size_t)r->block * r->words * sizeof *r->left);
    for (int i = 1; i <= r->n / r->block * r->block; i++) {
        lcs_row(r->row, NULL, r->ref[i - 1], r->hyp, r->m);
        if (i % r->block == 0) memcpy(r->saved + (size_t)(i / r->block) * width, r->row, width * sizeof *r->row);
    }
}

// Direction bits of rows b·block+1 ... up to last
static void reader_block(LcsReader *r, int b, int last)
{
    memcpy(r->row, r->saved + (size_t)b * ((size_t)r->m + 1), ((size_t)r->m + 1) * sizeof *r->row);
    memset(r->left, 0, (size_t)r->block * r->words * sizeof *r->left);
    for (int i = b * r->block; i < last; i++)
        lcs_row(r->row, r->left + (size_t)(i % r->block) * r->words, r->ref[i], r->hyp, r->m);
}

static void reader_close(LcsReader *r)
{
    free(r->saved);
    free(r->row);
    free(r->left);
}

// Sets in_lcs[i] for the reference tokens of one LCS with a line of the hypothesis.
static void lcs_mark(const int32_t *ref, int n, const int32_t *hyp, int m, bool *in_lcs)
{
    if (!n || !m) return;
    LcsReader r = {.ref = ref, .hyp = hyp, .n = n, .m = m};
    reader_open(&r);
    int loaded = -1;
    for (int i = n, j = m; i > 0 && j > 0;) {
        int b = (i - 1) / r.block;
        if (b != loaded) reader_block(&r, loaded = b, i);
        const uint64_t *left = r.left + (size_t)((i - 1) % r.block) * r.words;
        if (ref[i - 1] == hyp[j - 1]) {
            in_lcs[--i] = true;
            j--;
        } else if (left[j / 64] >> j % 64 & 1) {
            j--;
        } else {
            i--;
        }
    }
    reader_close(&r);
}

static RougeScore score_lsum(const Text *ref, const Text *hyp, int vocab)
{
    bool *in_lcs = xcalloc((size_t)ref->n + 1, sizeof *in_lcs);
    int32_t *left_r = xcalloc((size_t)vocab + 1, sizeof *left_r), *left_h = xcalloc((size_t)vocab + 1, sizeof *left_h);
    for (int i = 0; i < ref->n; i++) left_r[ref->id[i]]++;
    for (int i = 0; i < hyp->n; i++) left_h[hyp->id[i]]++;
    for (int i = 0; i < ref->lines; i++)
        for (int j = 0; j < hyp->lines; j++)
            lcs_mark(ref->id + ref->line[i], ref->line[i + 1] - ref->line[i], hyp->id + hyp->line[j],
                     hyp->line[j + 1] - hyp->line[j], in_lcs + ref->line[i]);
    int matches = 0;
    for (int i = 0; i < ref->n; i++) {
        int32_t id = ref->id[i];
        if (!in_lcs[i] || left_r[id] <= 0 || left_h[id] <= 0) continue;
        matches++;
        left_r[id]--;
        left_h[id]--;
    }
    free(in_lcs);
    free(left_r);
    free(left_h);
    return score(matches, hyp->n, ref->n);
}

Rouge rouge_score(const char *reference, const char *hypothesis, bool stem)
{
    Vocab v = {0};
    Text ref = {0}, hyp = {0};
    tokenize(&ref, &v, reference, stem);
    tokenize(&hyp, &v, hypothesis, stem);
    Rouge out = {.r1 = score_ngrams(&ref, &hyp, 1), .r2 = score_ngrams(&ref, &hyp, 2)};
    if (ref.n && hyp.n) {
        out.rl = score(lcs_length(ref.id, ref.n, hyp.id, hyp.n), hyp.n, ref.n);
        out.rlsum = score_lsum(&ref, &hyp, v.n);
    }
    text_free(&ref);
    text_free(&hyp);
    vocab_free(&v);
    return out;
}
