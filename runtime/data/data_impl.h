// data_impl: what the files of this folder share with each other and with nobody else.
#pragma once
#include "data/data.h"

// ---- jsonl.c: a file as blocks of lines -----------------------------------------------------------------------------
#define JSONL_LINE_BYTES ((size_t)16 << 20) // longest line
#define JSON_DEPTH       64                 // deepest nesting of arrays and objects

typedef struct Line {
    const char *text; // no newline, no carriage return before it; not NUL-terminated
    size_t bytes;
    int64_t number; // 1-based
    int64_t offset; // in the file
} Line;

typedef struct Jsonl {
    const char *path; // the caller's
    int fd;
    char *block; // bytes read; the lines point into it
    size_t room, len, used;
    int64_t offset, number; // of the block's first byte in the file; lines seen so far
    bool ended;
    Line *line; // (n) the lines of this block, blank ones left out
    int n, cap;
} Jsonl;
int jsonl_open(Jsonl *j, const char *path);
int jsonl_next(Jsonl *j); // the next block; n == 0 at the end of the file. Lines are valid until the next call.
void jsonl_close(Jsonl *j);
// Checks and parses one line into an object. place: "FILE:LINE".
int jsonl_parse(json_t **out, const char *text, size_t bytes, const char *place);

// ---- formats.c: a parsed line as an example, whatever its format ----------------------------------------------------
typedef enum ExampleKind { EXAMPLE_CHAT, EXAMPLE_PLAIN, EXAMPLE_IDS } ExampleKind;
typedef struct Example {
    ExampleKind kind;
    const json_t *row;   // the whole line, borrowed: a chat template may want more of it
    json_t *messages;    // CHAT: owned; checked: roles known, contents not empty
    size_t trained_from; // CHAT: assistant turns before this message are context
    Buf prompt;          // PLAIN: may be empty ("text")
    Buf completion;      // PLAIN: empty when the row is a prompt only
    const json_t *ids;   // IDS: borrowed from row, an array
} Example;
void example_free(Example *x);

typedef struct FormatContext {
    bool has_chat;                 // the model has a chat template
    const ErrorRecord *chat_error; // and cannot use it; NULL when it can
    bool prompt_only;              // a row without completion is fine
    const char *place;
} FormatContext;

typedef struct Format {
    const char *name;  // as in data.format
    const char *key;   // a line that has it is of this format
    const char *shape; // for people
    const char *rule;  // for people: how it becomes tokens
    int (*read)(Example *x, const json_t *row, const FormatContext *c);
} Format;
const Format *format_find(const char *name);
int format_detect(const Format **out, const json_t *row, const char *place);
// x is to be freed in any case.
int format_read(const Format *f, Example *x, const json_t *row, const FormatContext *c);
const json_t *last_message(const Example *x); // CHAT
bool is_assistant(const json_t *message);
void message_text(const json_t *message, Buf *out); // appends its content, text parts joined

// ---- encode.c: an example as ids and the mask of the trained ones -----------------------------------------------------
typedef enum RowFlag {
    ROW_LONG = 1, // more than max_tokens: dropped, or cut when ROW_CUT is set too
    ROW_CUT = 2,
    ROW_DOUBLE_BOS = 4, // the counters of RowStats
    ROW_ENDLESS = 8,
    ROW_STRADDLES = 16,
} RowFlag;

typedef struct Encoder {  // immutable; shared by the threads
    const Tokenizer *tok; // may be NULL
    const Chat *chat;     // may be NULL
    bool train_all, cut, scoring, prompt_only;
    int max_tokens, vocab;
} Encoder;

typedef struct Encoded { // owned by the thread that encodes; reused from row to row
    Ids ids;
    uint8_t *train; // (ids.n)
    int train_cap;
    unsigned flags;
    Buf text, other;
} Encoded;
int example_encode(const Encoder *e, const Example *x, Encoded *out, const char *place);
// The ids a model is given to complete the example, and the text it should answer with (empty: none given).
int example_prompt(const Encoder *e, const Example *x, Ids *ids, Buf *reference, const char *place);
void encoded_free(Encoded *x);
// Renders messages[0, n) of x; a template that raises is an error of the line. Replaces what out holds.
int example_render(const Encoder *e, const Example *x, const json_t *messages, size_t n, bool generation_prompt,
                   Buf *out, const char *place);

// ---- mask.c ---------------------------------------------------------------------------------------------------------
// Marks the trained tokens of a rendered and tokenized conversation.
int example_mask(const Encoder *e, const Example *x, Encoded *out, const char *place);
