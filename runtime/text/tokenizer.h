// tokenizer: byte-level BPE, id for id what the `tokenizers` package gives. Read from tokenizer.json (pre-tokenizer regexes by
// PCRE2, added and special tokens, NFC/NFKC/lowercase normalizers where asked) or from GGUF keys.
// A Tokenizer is immutable after opening: any number of threads may encode with it.
#pragma once
#include "io/weights.h"

typedef struct Tokenizer Tokenizer;
// path: a model directory or a .gguf file. E_INPUT when there is none or it is not supported, with what and where.
int tokenizer_open(Tokenizer **out, const char *path);
int tokenizer_open_json(Tokenizer **out, const char *json, size_t bytes, const char *place); // tokenizer.json text
int tokenizer_open_gguf(Tokenizer **out, const Weights *gguf, const char *place);
void tokenizer_free(Tokenizer *t);
// A GGUF file's tokenizer as tokenizer.json, tokenizer_config.json and generation_config.json in dir, for transformers.
int tokenizer_export_gguf(const char *gguf_path, const char *dir);
int tokenizer_vocab_size(const Tokenizer *t);            // largest id + 1, added tokens included
int tokenizer_id(const Tokenizer *t, const char *token); // of a whole token ("<|im_end|>"), or -1
const char *tokenizer_token(const Tokenizer *t, int id); // its text as in the vocabulary, or NULL
// Special ids from tokenizer_config.json / generation_config.json / GGUF keys; -1 when absent
int tokenizer_bos(const Tokenizer *t);
int tokenizer_eos(const Tokenizer *t);
int tokenizer_pad(const Tokenizer *t);
// Does the post-processor add a bos (eos) to plain text? (Rendered chat text never gets one.)
bool tokenizer_adds_bos(const Tokenizer *t);

typedef struct Ids {
    int32_t *id;
    int32_t *
        start; // byte offset in the text where token i begins (NULL unless asked); end = start of the next, or the length
    int n, cap;
} Ids; // zero-initialise; ids_free
// Appends the ids of text. add_special: run the post-processor (bos/eos). with_offsets: fill `start`.
// Special tokens written in the text are recognised, as the tokenizers package does.
int tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, bool add_special, bool with_offsets, Ids *out);
// Text of ids; skip_special drops special tokens. Incomplete UTF-8 at the end is kept as bytes when raw, else U+FFFD as
// tokenizers' decode gives.
int tokenizer_decode(const Tokenizer *t, const int32_t *ids, int n, bool skip_special, Buf *out);
bool tokenizer_is_special(const Tokenizer *t, int id);
void ids_free(Ids *ids);
