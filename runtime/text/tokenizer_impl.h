// What the tokenizer's files share. The stages of an encoding, each in its own file:
//   added_tokens.c  cuts whole tokens ("<|im_end|>") out of the text       normalize.c    changes text (NFC, prefixes, ...)
//   pretokenize.c   cuts text into words                                   bpe.c          turns a word into ids
//   tokenizer.c     runs them, opens and frees                             decode.c       the way back
//   tokenizer_json.c, tokenizer_gguf.c                                     fill a Tokenizer from a file
#pragma once
#include "text/regex.h"
#include "text/tokenizer.h"
#include <jansson.h>

enum {
    TEXT_BYTES_MAX = 64 << 20, // of one call, also after normalisation
    TOKEN_BYTES_MAX = 4096,
    TOKEN_ID_MAX = 1 << 23,
    VOCAB_MAX = 4 << 20,
    MERGES_MAX = 4 << 20,
    ADDED_BYTES_MAX = 4 << 20,
    STEPS_MAX = 64,
};

// ---- text under work ------------------------------------------------------------------------------------------------
// A stretch of text, and where its bytes stem from in the caller's text.
typedef struct Text {
    const char *s;
    int32_t bytes;
    const int32_t *origin; // (bytes); NULL: byte i stems from byte base + i
    int32_t base;
} Text;
static inline int32_t text_origin(const Text *t, int32_t i)
{
    return t->origin ? t->origin[i] : t->base + i;
}
static inline Text text_slice(const Text *t, int32_t begin, int32_t end)
{
    return (Text){t->s + begin, end - begin, t->origin ? t->origin + begin : NULL, t->base + begin};
}

// A text being written; at most TEXT_BYTES_MAX, after which `full` is set and nothing more is taken.
typedef struct TextBuf {
    char *s;
    int32_t *origin;
    int32_t bytes, cap;
    bool full;
} TextBuf;
void textbuf_put(TextBuf *b, const char *s, int32_t bytes, int32_t origin); // all of it stems from one byte
void textbuf_copy(TextBuf *b, const Text *from, int32_t begin, int32_t end);
Text textbuf_text(const TextBuf *b);
int textbuf_check(const TextBuf *b); // E_INPUT when full
void textbuf_free(TextBuf *b);

typedef struct Span {
    int32_t begin, end;
} Span;
typedef struct Spans {
    Span *v;
    int n, cap;
} Spans;
void spans_put(Spans *s, int32_t begin, int32_t end);

// ---- steps: what tokenizer.json lists under normalizer, pre_tokenizer and decoder, sequences flattened ----------------
typedef enum StepKind {
    NORM_FORM,
    NORM_LOWERCASE,
    NORM_STRIP,
    NORM_STRIP_ACCENTS,
    NORM_PREPEND,
    NORM_REPLACE,
    NORM_BYTE_LEVEL,
    PRE_SPLIT,
    PRE_DIGITS,
    PRE_PUNCTUATION,
    PRE_WHITESPACE_SPLIT,
    PRE_METASPACE,
    PRE_BYTE_LEVEL,
    DEC_BYTE_LEVEL,
    DEC_BYTE_FALLBACK,
    DEC_FUSE,
    DEC_REPLACE,
    DEC_STRIP,
    DEC_METASPACE,
} StepKind;

// What becomes of the matches of a split.
typedef enum Behavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS } Behavior;
typedef enum Prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } Prepend;

typedef struct Step {
    StepKind kind;
    Regex *pattern;    // NORM_REPLACE, PRE_SPLIT, PRE_BYTE_LEVEL (NULL: no split), DEC_REPLACE
    char *text;        // content to prepend, to put in, to strip; Metaspace's replacement
    int32_t bytes;     // of text
    Behavior behavior; // splits
    bool invert;       // PRE_SPLIT: what lies between matches is the match
    int form;          // NORM_FORM: NormalForm
    bool left, right;  // NORM_STRIP
    bool prefix_space; // PRE_BYTE_LEVEL
    Prepend prepend;   // Metaspace
    bool split;        // PRE_METASPACE
    int start, stop;   // DEC_STRIP: how many at most
} Step;
typedef struct Steps {
    Step v[STEPS_MAX];
    int n;
} Steps;

// ---- vocabulary and merges ------------------------------------------------------------------------------------------
typedef struct TokenText {
    uint32_t at, bytes; // in Vocab.text; at == UINT32_MAX: no such id
} TokenText;
typedef struct Vocab {
    Buf text;         // all token texts, NUL after each
    TokenText *token; // (n), by id; added tokens included
    int n, cap;       // n: largest id + 1
    uint32_t *slot;   // hash table of the model's own tokens: id + 1, 0 empty
    uint32_t mask;
    int used;
} Vocab;
int vocab_put(Vocab *v, int64_t id, const char *text, size_t bytes, bool in_model, const char *place);
int vocab_find(const Vocab *v, const char *text, size_t bytes); // the model's token, or -1
TokenText vocab_keep_text(Vocab *v, const char *text, size_t bytes);
const char *vocab_text(const Vocab *v, int id, uint32_t *bytes); // NULL: no such id

typedef struct Merge {
    uint64_t pair; // left << 32 | right; UINT64_MAX empty
    int32_t rank, id;
} Merge;

typedef struct Bpe {
    Vocab vocab;
    Merge *merge; // hash table
    uint64_t merge_mask;
    int merges;
    bool byte_level;    // words are raw bytes, a symbol each (ByteLevel ends the pre-tokenizer)
    bool ignore_merges; // a word that is a token stays whole
    bool byte_fallback, fuse_unk;
    int unk;                  // or -1
    int32_t byte_id[256];     // byte_level: the token of each byte, or -1
    int32_t fallback_id[256]; // "<0xXX>", or -1
} Bpe;
// By id; E_INPUT when the joined text is no token. A pair given twice keeps the later rank.
int bpe_put_merge(Bpe *b, const char *left, size_t left_bytes, const char *right, size_t right_bytes,
                  const char *place);
void bpe_finish(Bpe *b); // after vocabulary, merges and flags are set
void bpe_free(Bpe *b);

typedef struct BpeWork BpeWork; // scratch and word cache of one call
BpeWork *bpe_work_new(const Bpe *b, size_t text_bytes);
void bpe_work_free(BpeWork *w);
// Ids of one word and how many of its bytes each covers; valid until the next call. Returns their number.
int bpe_word(BpeWork *w, const char *s, int32_t bytes, const int32_t **ids, const int32_t **lengths);

// The printable character that stands for a byte in byte-level vocabularies, and back (-1: none).
uint32_t byte_to_char(unsigned char b);
int char_to_byte(uint32_t cp);

// ---- added tokens ---------------------------------------------------------------------------------------------------
typedef struct AddedToken {
    int id;
    bool special, single_word, lstrip, rstrip, normalized;
    TokenText shown; // decoding gives a normalized token in its normalised form; at == UINT32_MAX: it is the same
} AddedToken;
typedef struct TrieNode {
    int32_t child, sibling; // first child, next child of the parent; 0: none
    int32_t token;          // index in the AddedToken array, or -1
    unsigned char byte;
} TrieNode;
typedef struct Trie {
    TrieNode *node; // node[0] is the root
    int32_t n, cap;
    int32_t first[256]; // the root's children by byte
} Trie;
void trie_put(Trie *t, const char *text, size_t bytes, int32_t token); // an earlier entry of the same text stays
void trie_free(Trie *t);

// A part of the text: an added token, or (id == -1) text for the later stages.
typedef struct Cut {
    int32_t begin, end, id;
} Cut;
typedef struct Cuts {
    Cut *v;
    int n, cap;
} Cuts;

typedef enum TokenMark { MARK_SPECIAL = 1, MARK_SHOWN = 2 } TokenMark; // MARK_SHOWN: see AddedToken.shown

struct Tokenizer {
    Bpe bpe;
    AddedToken *added;
    int n_added, cap_added;
    Trie raw, normal; // added tokens found before and after normalisation
    Regex *word;      // one word character, for single_word; NULL when no token asks
    Steps normalizer, pre, decoder;
    bool has_decoder;
    int32_t *prefix, *suffix; // what the post-processor adds
    int n_prefix, n_suffix;
    uint8_t *marks; // (vocabulary size) TokenMark
    int bos, eos, pad;
};

void added_put(Tokenizer *t, const AddedToken *a);
int added_finish(Tokenizer *t);                                       // builds the tries and the marks
const char *added_shown(const Tokenizer *t, int id, uint32_t *bytes); // of a token with MARK_SHOWN
int added_cut(const Tokenizer *t, const Trie *trie, RegexMatch *m, const char *s, int32_t bytes, Cuts *out);

// ---- stages ---------------------------------------------------------------------------------------------------------
// *out is in or one of the two buffers.
int normalize(const Steps *steps, RegexMatch *m, const Text *in, TextBuf buf[2], Text *out);
typedef struct PreWork {
    TextBuf buf[2];
    Spans spans[2];
} PreWork;
// Words of `in`: *text (in, or a buffer of w) and spans of it. raw_bytes: a final ByteLevel leaves the bytes as they are.
int pretokenize(const Steps *steps, RegexMatch *m, const Text *in, bool raw_bytes, PreWork *w, Text *text,
                Spans **words);
void prework_free(PreWork *w);
// Every match of the pattern and every stretch between two, in order: fn(ctx, begin, end, is_match).
typedef void MatchFn(void *ctx, int32_t begin, int32_t end, bool is_match);
int regex_each(const Regex *r, RegexMatch *m, const char *s, int32_t bytes, MatchFn *fn, void *ctx);

// ---- opening --------------------------------------------------------------------------------------------------------
Tokenizer *tokenizer_new(void);
int tokenizer_finish(Tokenizer *t, const char *place); // vocabulary, steps and flags are set: indexes and checks
// "normalizer", "pre_tokenizer" and "decoder" objects of tokenizer.json.
int steps_from_json(Steps *out, const char *section, const json_t *spec, const char *place);
void steps_free(Steps *s);

// ---- GGUF (tokenizer_gguf.c, tokenizer_export.c) --------------------------------------------------------------------
enum { GGUF_TOKEN_CONTROL = 3, GGUF_TOKEN_USER_DEFINED = 4 }; // tokenizer.ggml.token_type
// What tokenizer.json says for the pre-tokenizer that the file names; new references.
int gguf_steps_json(const Weights *gguf, const char *place, json_t **normalizer, json_t **pre_tokenizer,
                    bool *ignore_merges);
