// bpe: vocabulary and merge tables, and the merging of one word.
//
// Byte-pair encoding (Sennrich et al., 2016) as the `tokenizers` package runs it: a word starts as one symbol per character
// (or per byte); of all adjacent pairs that are a merge, the one of lowest rank, leftmost first, is joined, until none is left.
// Short words search all pairs at each step; long ones keep a heap of candidates, O(n log n), so that a megabyte without
// a blank costs no more per byte than prose.
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include <stdlib.h>
#include <string.h>

// ---- vocabulary -----------------------------------------------------------------------------------------------------
static void vocab_reserve(Vocab *v, int n)
{
    if (n <= v->cap) return;
    int cap = MAX(n, MAX(1024, v->cap * 2));
    v->token = xrealloc(v->token, (size_t)cap * sizeof *v->token);
    for (int i = v->cap; i < cap; i++) v->token[i] = (TokenText){UINT32_MAX, 0};
    v->cap = cap;
}

static uint32_t *vocab_slot(const Vocab *v, const char *text, size_t bytes)
{
    uint32_t i = (uint32_t)hash64(text, bytes, 0) & v->mask;
    for (; v->slot[i]; i = (i + 1) & v->mask) {
        const TokenText *t = &v->token[v->slot[i] - 1];
        if (t->bytes == bytes && memcmp(v->text.data + t->at, text, bytes) == 0) break;
    }
    return &v->slot[i];
}

static void vocab_grow_table(Vocab *v)
{
    uint32_t size = v->slot ? (v->mask + 1) * 2 : 1024, *old = v->slot;
    uint32_t old_size = old ? v->mask + 1 : 0;
    v->slot = xcalloc(size, sizeof *v->slot);
    v->mask = size - 1;
    for (uint32_t i = 0; i < old_size; i++) {
        if (!old[i]) continue;
        const TokenText *t = &v->token[old[i] - 1];
        *vocab_slot(v, v->text.data + t->at, t->bytes) = old[i];
    }
    free(old);
}

TokenText vocab_keep_text(Vocab *v, const char *text, size_t bytes)
{
    TokenText t = {(uint32_t)v->text.len, (uint32_t)bytes};
    buf_put(&v->text, text, bytes);
    buf_put(&v->text, "", 1);
    return t;
}

int vocab_put(Vocab *v, int64_t id, const char *text, size_t bytes, bool in_model, const char *place)
{
    if (id < 0 || id >= TOKEN_ID_MAX)
        return fail(E_INPUT, place, NULL, "token id %lld is outside [0, %d)", (long long)id, TOKEN_ID_MAX);
    if (bytes > TOKEN_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "token %lld has %zu bytes, at most %d are read", (long long)id, bytes,
                    TOKEN_BYTES_MAX);
    if (!utf8_valid(text, bytes, NULL)) return fail(E_INPUT, place, NULL, "token %lld is not UTF-8", (long long)id);
    if (in_model && v->used >= VOCAB_MAX) return fail(E_INPUT, place, NULL, "more than %d tokens", VOCAB_MAX);
    vocab_reserve(v, (int)id + 1);
    if (v->token[id].at != UINT32_MAX) return fail(E_INPUT, place, NULL, "token id %lld is given twice", (long long)id);
    if (v->text.len + bytes >= UINT32_MAX) return fail(E_INPUT, place, NULL, "vocabulary text exceeds 4 GiB");
    v->token[id] = vocab_keep_text(v, text, bytes);
    v->n = MAX(v->n, (int)id + 1);
    if (!in_model) return OK;
    if (!v->slot || (uint32_t)v->used * 2 >= v->mask) vocab_grow_table(v);
    uint32_t *slot = vocab_slot(v, text, bytes);
    *slot = (uint32_t)id + 1; // of two tokens with one text the last is found
    v->used++;
    return OK;
}

int vocab_find(const Vocab *v, const char *text, size_t bytes)
{
    return v->slot ? (int)*vocab_slot(v, text, bytes) - 1 : -1;
}

const char *vocab_text(const Vocab *v, int id, uint32_t *bytes)
{
    if (id < 0 || id >= v->n || v->token[id].at == UINT32_MAX) return NULL;
    if (bytes) *bytes = v->token[id].bytes;
    return v->text.data + v->token[id].at;
}

// ---- merges ---------------------------------------------------------------------------------------------------------
static Merge *merge_slot(const Bpe *b, uint64_t pair)
{
    uint64_t i = (pair * 0x9E3779B97F4A7C15u >> 32) & b->merge_mask;
    while (b->merge[i].pair != pair && b->merge[i].pair != UINT64_MAX) i = (i + 1) & b->merge_mask;
    return &b->merge[i];
}

static void grow_merges(Bpe *b)
{
    uint64_t old_size = b->merge ? b->merge_mask + 1 : 0, size = b->merge ? old_size * 4 : 4096;
    Merge *old = b->merge;
    b->merge = xmalloc(size * sizeof *b->merge);
    b->merge_mask = size - 1;
    for (uint64_t i = 0; i < size; i++) b->merge[i].pair = UINT64_MAX;
    for (uint64_t i = 0; i < old_size; i++)
        if (old[i].pair != UINT64_MAX) *merge_slot(b, old[i].pair) = old[i];
    free(old);
}

int bpe_put_merge(Bpe *b, const char *left, size_t left_bytes, const char *right, size_t right_bytes, const char *place)
{
    char joined[2 * TOKEN_BYTES_MAX];
    if (b->merges >= MERGES_MAX) return fail(E_INPUT, place, NULL, "more than %d merges", MERGES_MAX);
    if ((uint64_t)b->merges * 2 >= b->merge_mask) grow_merges(b);
    int l = vocab_find(&b->vocab, left, left_bytes), r = vocab_find(&b->vocab, right, right_bytes), id = -1;
    if (l >= 0 && r >= 0) { // both are tokens: at most TOKEN_BYTES_MAX bytes each
        memcpy(joined, left, left_bytes);
        memcpy(joined + left_bytes, right, right_bytes);
        id = vocab_find(&b->vocab, joined, left_bytes + right_bytes);
    }
    if (id < 0)
        return fail(E_INPUT, place, "vocabulary and merges must come from the same tokenizer",
                    "merge %d (%.*s %.*s) names a token that is not in the vocabulary", b->merges,
                    (int)MIN(left_bytes, 100u), left, (int)MIN(right_bytes, 100u), right);
    uint64_t pair = (uint64_t)l << 32 | (uint32_t)r;
    *merge_slot(b, pair) = (Merge){pair, b->merges++, id};
    return OK;
}

static inline const Merge *find_merge(const Bpe *b, int32_t left, int32_t right)
{
    const Merge *m = merge_slot(b, (uint64_t)left << 32 | (uint32_t)right);
    return m->pair == UINT64_MAX ? NULL : m;
}

// ---- byte alphabet --------------------------------------------------------------------------------------------------
// GPT-2's: bytes that print in Latin-1 stand for themselves, the other 68 for U+0100 onwards, in order.
static bool byte_prints(int b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

uint32_t byte_to_char(unsigned char b)
{
    if (byte_prints(b)) return b;
    return b <= 32 ? 256u + b : b <= 160 ? 256u + 33 + (b - 127u) : 256u + 33 + 34; // 0-32, 127-160, 173
}

int char_to_byte(uint32_t cp)
{
    if (cp < 256) return byte_prints((int)cp) ? (int)cp : -1;
    cp -= 256;
    return cp <= 32 ? (int)cp : cp <= 66 ? (int)cp - 33 + 127 : cp == 67 ? 173 : -1;
}

void bpe_finish(Bpe *b)
{
    if (!b->merge) grow_merges(b);
    for (int i = 0; i < 256; i++) {
        char text[8];
        int n = utf8_encode(byte_to_char((unsigned char)i), text);
        b->byte_id[i] = vocab_find(&b->vocab, text, (size_t)n);
        n = snprintf(text, sizeof text, "<0x%02X>", i);
        b->fallback_id[i] = vocab_find(&b->vocab, text, (size_t)n);
    }
}

void bpe_free(Bpe *b)
{
    buf_free(&b->vocab.text);
    free(b->vocab.token);
    free(b->vocab.slot);
    free(b->merge);
}

// ---- one word -------------------------------------------------------------------------------------------------------
enum {
    SHORT_SYMBOLS = 24, // up to here every step searches all pairs
    CACHE_WORD_BYTES = 24,
    CACHE_WORD_IDS = 8,
    CACHE_TEXT_MIN = 2048, // shorter texts repeat too few words to pay for the table
    CACHE_ENTRIES_MAX = 8192,
};

typedef struct CacheEntry {
    uint8_t bytes, n; // bytes == 0: empty
    uint8_t length[CACHE_WORD_IDS];
    char word[CACHE_WORD_BYTES];
    int32_t id[CACHE_WORD_IDS];
} CacheEntry;

typedef struct Candidate {
    int32_t rank, at, id; // joining symbol `at` with its successor gives `id`
} Candidate;

struct BpeWork {
    const Bpe *b;
    int32_t *id, *length; // (cap) symbols; long words: id -1 once joined to the left
    int32_t *prev, *next; // (cap) neighbours, long words only
    int32_t n, cap;
    Candidate *heap;
    int32_t heap_n, heap_cap;
    CacheEntry *cache;
    uint32_t cache_mask;
    Buf mapped; // the word in the byte alphabet
};

BpeWork *bpe_work_new(const Bpe *b, size_t text_bytes)
{
    BpeWork *w = xcalloc(1, sizeof *w);
    w->b = b;
    if (text_bytes < CACHE_TEXT_MIN) return w;
    uint32_t entries = 256;
    while (entries < CACHE_ENTRIES_MAX && entries < text_bytes / 16) entries *= 2;
    w->cache = xcalloc(entries, sizeof *w->cache);
    w->cache_mask = entries - 1;
    return w;
}

void bpe_work_free(BpeWork *w)
{
    if (!w) return;
    free(w->id);
    free(w->length);
    free(w->prev);
    free(w->next);
    free(w->heap);
    free(w->cache);
    buf_free(&w->mapped);
    free(w);
}

static void symbols_reserve(BpeWork *w, int32_t n)
{
    if (n <= w->cap) return;
    w->cap = MAX(n, MAX(64, w->cap * 2));
    size_t bytes = (size_t)w->cap * sizeof(int32_t);
    w->id = xrealloc(w->id, bytes);
    w->length = xrealloc(w->length, bytes);
    w->prev = xrealloc(w->prev, bytes);
    w->next = xrealloc(w->next, bytes);
}

static void put_symbol(BpeWork *w, int32_t id, int32_t length)
{
    symbols_reserve(w, w->n + 1);
    w->id[w->n] = id;
    w->length[w->n++] = length;
}

// Symbols of a word whose characters may be missing from the vocabulary: bytes, the unknown token, or nothing stand in.
// An unknown run is written when a known character follows it, after byte fall-backs in between, as the package does.
static void split_chars(BpeWork *w, const char *s, int32_t bytes)
{
    const Bpe *b = w->b;
    int32_t unknown = 0; // bytes of the run not yet written
    for (int32_t i = 0, end; i < bytes; i = end) {
        char mapped[4];
        const char *text = s + i;
        int n;
        end = i;
        if (b->byte_level) {
            text = mapped;
            n = utf8_encode(byte_to_char((unsigned char)s[end++]), mapped);
        } else {
            utf8_next(s, &end);
            n = end - i;
        }
        int id = vocab_find(&b->vocab, text, (size_t)n);
        if (id >= 0) {
            if (unknown) put_symbol(w, b->unk, unknown);
            unknown = 0;
            put_symbol(w, id, end - i);
            continue;
        }
        bool fallback = b->byte_fallback;
        for (int k = 0; k < n; k++) fallback = fallback && b->fallback_id[(unsigned char)text[k]] >= 0;
        if (fallback) {
            for (int k = 0; k < n; k++) put_symbol(w, b->fallback_id[(unsigned char)text[k]], k < end - i ? 1 : 0);
        } else if (b->unk >= 0) {
            if (unknown && !b->fuse_unk) {
                put_symbol(w, b->unk, unknown);
                unknown = 0;
            }
            unknown += end - i;
        }
    }
    if (unknown) put_symbol(w, b->unk, unknown);
}

static void split_symbols(BpeWork *w, const char *s, int32_t bytes)
{
    const Bpe *b = w->b;
    w->n = 0;
    symbols_reserve(w, bytes);
    if (b->byte_level) {
        int32_t i = 0;
        for (; i < bytes && b->byte_id[(unsigned char)s[i]] >= 0; i++)
            put_symbol(w, b->byte_id[(unsigned char)s[i]], 1);
        if (i == bytes) return;
        w->n = 0;
    }
    split_chars(w, s, bytes);
}

static void merge_short(BpeWork *w)
{
    const Merge *pair[SHORT_SYMBOLS]; // pair[i]: the merge of symbols i and i+1, or NULL
    int n = w->n;
    for (int i = 0; i + 1 < n; i++) pair[i] = find_merge(w->b, w->id[i], w->id[i + 1]);
    for (;;) {
        int best = -1;
        for (int i = 0; i + 1 < n; i++)
            if (pair[i] && (best < 0 || pair[i]->rank < pair[best]->rank)) best = i;
        if (best < 0) break;
        w->id[best] = pair[best]->id;
        w->length[best] += w->length[best + 1];
        n--;
        for (int i = best + 1; i < n; i++) {
            w->id[i] = w->id[i + 1];
            w->length[i] = w->length[i + 1];
            pair[i] = pair[i + 1 < n ? i + 1 : i];
        }
        if (best > 0) pair[best - 1] = find_merge(w->b, w->id[best - 1], w->id[best]);
        pair[best] = best + 1 < n ? find_merge(w->b, w->id[best], w->id[best + 1]) : NULL;
    }
    w->n = n;
}

static bool before(const Candidate *a, const Candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_down(Candidate *h, int32_t n, int32_t i)
{
    Candidate c = h[i];
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&h[child + 1], &h[child])) child++;
        if (!before(&h[child], &c)) break;
        h[i] = h[child];
    }
    h[i] = c;
}

static void heap_put(BpeWork *w, Candidate c)
{
    if (w->heap_n == w->heap_cap) {
        w->heap_cap = MAX(256, w->heap_cap * 2);
        w->heap = xrealloc(w->heap, (size_t)w->heap_cap * sizeof *w->heap);
    }
    int32_t i = w->heap_n++;
    for (; i > 0 && before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static void put_candidate(BpeWork *w, int32_t at)
{
    if (at < 0 || w->next[at] < 0) return;
    const Merge *m = find_merge(w->b, w->id[at], w->id[w->next[at]]);
    if (m) heap_put(w, (Candidate){m->rank, at, m->id});
}

static void merge_long(BpeWork *w)
{
    w->heap_n = 0;
    for (int32_t i = 0; i < w->n; i++) {
        w->prev[i] = i - 1;
        w->next[i] = i + 1 < w->n ? i + 1 : -1;
    }
    for (int32_t i = 0; i < w->n; i++) put_candidate(w, i);
    while (w->heap_n) {
        Candidate c = w->heap[0];
        w->heap[0] = w->heap[--w->heap_n];
        if (w->heap_n) heap_down(w->heap, w->heap_n, 0);
        int32_t right = w->id[c.at] < 0 ? -1 : w->next[c.at];
        const Merge *m = right < 0 ? NULL : find_merge(w->b, w->id[c.at], w->id[right]);
        if (!m || m->id != c.id) continue; // one of the two has been joined meanwhile
        w->id[c.at] = c.id;
        w->length[c.at] += w->length[right];
        w->id[right] = -1;
        w->next[c.at] = w->next[right];
        if (w->next[right] >= 0) w->prev[w->next[right]] = c.at;
        put_candidate(w, w->prev[c.at]);
        put_candidate(w, c.at);
    }
    int32_t n = 0;
    for (int32_t i = 0; i < w->n; i++) {
        if (w->id[i] < 0) continue;
        w->id[n] = w->id[i];
        w->length[n++] = w->length[i];
    }
    w->n = n;
}

// The word itself as a token, or -1.
static int whole_word(BpeWork *w, const char *s, int32_t bytes)
{
    if (!w->b->byte_level) return vocab_find(&w->b->vocab, s, (size_t)bytes);
    if (bytes > TOKEN_BYTES_MAX) return -1;
    w->mapped.len = 0;
    for (int32_t i = 0; i < bytes; i++) {
        char text[4];
        buf_put(&w->mapped, text, (size_t)utf8_encode(byte_to_char((unsigned char)s[i]), text));
    }
    return vocab_find(&w->b->vocab, w->mapped.data, w->mapped.len);
}

static void merge_word(BpeWork *w, const char *s, int32_t bytes)
{
    int whole = w->b->ignore_merges ? whole_word(w, s, bytes) : -1;
    if (whole >= 0) {
        w->n = 0;
        put_symbol(w, whole, bytes);
        return;
    }
    split_symbols(w, s, bytes);
    if (w->n > SHORT_SYMBOLS)
        merge_long(w);
    else if (w->n > 1)
        merge_short(w);
}

static void cache_fill(CacheEntry *e, const BpeWork *w, const char *s, int32_t bytes)
{
    if (w->n > CACHE_WORD_IDS) return;
    e->bytes = (uint8_t)bytes;
    e->n = (uint8_t)w->n;
    memcpy(e->word, s, (size_t)bytes);
    for (int32_t i = 0; i < CACHE_WORD_IDS && i < w->n; i++) {
        e->id[i] = w->id[i];
        e->length[i] = (uint8_t)w->length[i];
    }
}

int bpe_word(BpeWork *w, const char *s, int32_t bytes, const int32_t **ids, const int32_t **lengths)
{
    CacheEntry *e = NULL;
    if (w->cache && bytes <= CACHE_WORD_BYTES) {
        e = &w->cache[(uint32_t)hash64(s, (size_t)bytes, 0) & w->cache_mask];
        if (e->bytes == bytes && memcmp(e->word, s, (size_t)bytes) == 0) {
            w->n = 0;
            for (int i = 0; i < e->n; i++) put_symbol(w, e->id[i], e->length[i]);
            *ids = w->id;
            *lengths = w->length;
            return w->n;
        }
    }
    merge_word(w, s, bytes);
    if (e) cache_fill(e, w, s, bytes);
    *ids = w->id;
    *lengths = w->length;
    return w->n;
}
