// data: JSONL files become rows of token ids with a mask of the trained ones (source.c), rows become micro-batches (pack.c),
// and a prefetching loader hands a step's micro-batches to the training loop (loader.c).
//
// Which tokens are trained is decided by position, never by token id. Rendered chat text is tokenized with no special tokens
// added.
//
// Beside them: jsonl.c reads lines, formats.c makes conversations or plain text of them, chat.c renders conversations, encode.c
// makes ids, mask.c finds the trained ones; tokenize.c is the verb `attune tokenize`.
#pragma once
#include "text/template.h"
#include "text/tokenizer.h"

// ---- conversations as text: the model's chat template with what it is rendered with ----
typedef struct Chat Chat;
// template_path: "auto" (the model's own) or a file. *out is NULL (and the status OK) when "auto" finds none.
int chat_open(Chat **out, const char *model_path, const char *template_path, const Tokenizer *tok);
int chat_open_source(Chat **out, const char *source, const char *place,
                     const Tokenizer *tok); // the template's text itself
void chat_close(Chat *c);
// Appends messages[0, n) as the template renders them. row: may be NULL; its "tools", "documents" and the members of its
// "chat_template_kwargs" go to the template.
int chat_render(const Chat *c, const json_t *messages, size_t n, bool generation_prompt, const json_t *row, Buf *out);

typedef struct Row {
    int32_t *ids;   // (n)
    uint8_t *train; // (n): 1 when the token's log-probability counts (token 0 never does)
    int n;
    int prompt;   // tokens before the first trained one; n when there is none
    int trained;  // number of trained ones; 0 only where the row's use allows it (see dataset_open)
    int64_t line; // 1-based line in the file
} Row;

typedef struct RowStats {
    int64_t rows, dropped_long, cut_long, duplicates; // rows kept; rows longer than max_tokens; exact duplicates (kept)
    int64_t tokens, trained_tokens, longest;
    // Worth a look (see `attune data`): rows that begin with two bos; rows with a trained turn that no end-of-turn token
    // follows; rows with a token that begins in the prompt and ends in the completion (it is not trained); rows that train
    // nothing, such as a lone id
    int64_t double_bos, endless, straddling, untrained;
    // 1-based line of the first row counted in the field of that name, 0 when there is none
    int64_t line_dropped, line_cut, line_duplicate, line_double_bos, line_endless, line_straddling, line_untrained;
} RowStats;

typedef struct DataConfig {
    const char *path;
    const char *format;   // "auto" or one of the names in source.c's table
    const char *loss_on;  // "completion" or "all"
    const char *overlong; // "drop" or "cut"
    int max_tokens;
    const char *template_path; // recipe's data.template: "auto" (the model's own) or a file
    const char *model_path;
    int vocab;                   // ids must be below this
    int threads;                 // 0: as many as OpenMP would use
    bool allow_prompt_only;      // generation: rows without a completion are fine
    bool scoring;                // plain text as it is, no eos appended; rows with nothing to train are kept
    const char *template_source; // the chat template's text; instead of template_path when not NULL
} DataConfig;

typedef struct Dataset Dataset;
// Reads, validates and tokenizes the whole file. E_INPUT names FILE:LINE: not JSON, no role, null or empty content, unknown
// format, non-UTF-8, template raised, and, unless for scoring or generation, a row or a file that trains zero tokens ("tokens"
// rows may be one id long, not all of them). tok may be NULL for "tokens" rows only.
int dataset_open(Dataset **out, const DataConfig *c, const Tokenizer *tok);
void dataset_close(Dataset *d);
int64_t dataset_rows(const Dataset *d);
const Row *dataset_row(const Dataset *d, int64_t i);
RowStats dataset_stats(const Dataset *d);
const char *dataset_format(const Dataset *d);
uint64_t dataset_digest(const Dataset *d); // of ids and masks: a resumed run checks that it sees the same data
// For generation and ROUGE: the rendered prompt's ids (with the generation prompt) and the reference completion's text.
// Not for "text" and "tokens" rows (E_INPUT). *reference is owned by the dataset and NULL when the row has none.
int dataset_prompt(const Dataset *d, int64_t i, const int32_t **ids, int *n, const char **reference);
// The input line as read, for outputs that extend it; owned by the dataset. NULL (and an error) when the file has changed.
const char *dataset_line(const Dataset *d, int64_t i, size_t *bytes);
void dataset_formats_help(Buf *out); // for people: one line per format and how it becomes tokens
// `attune tokenize`: {"text"} or {"messages"} lines to {"ids"} lines, or back ({"ids"} to {"text"}); out appears whole or not
// at all.
int tokenize_file(const Tokenizer *tok, const char *model_path, const char *path, const char *out, bool decode,
                  bool add_special);

// ---- packing: the rows of one step into micro-batches; looks at lengths only, never at the number of ranks ----
typedef struct Micro {
    int first, rows; // slice of PackPlan.order
    int tokens;
} Micro;
typedef struct PackPlan {
    int *order; // (n) positions in the step's row list, micro-batch by micro-batch
    Micro *micro;
    int n_micro;
    int cap;       // rows that fit the arrays
    uint64_t *key; // (cap) scratch: what is sorted
    int *home;     // (cap) scratch: micro-batch of a row
    int64_t *load; // (cap) scratch: tokens dealt to a rank
} PackPlan;        // zero-initialise; pack_free. Reused between steps without allocation once large enough.
// best-fit decreasing into at most `capacity` tokens each (a longer row stands alone); pack=false: one row each
void pack_rows(PackPlan *p, const int *lengths, int n, int capacity, bool pack);
// Deals micro-batches to `ranks` (longest first to the least loaded); owner (n_micro). Ties by index: same on every rank.
void pack_deal(const PackPlan *p, int ranks, int *owner);
void pack_free(PackPlan *p);

// ---- a micro-batch as the model takes it (host memory) ----
typedef struct Batch {
    int T, S, M;                  // packed tokens, sequences, trained positions
    int32_t *tokens, *pos;        // (T); pos restarts at 0 in each sequence
    int32_t *seq_start, *seq_len; // (S)
    uint64_t *row_key;            // (T) identity of a token for random masks: hash of (seed, step, row, position)
    int32_t *head_row;            // (M) row of the hidden state that predicts trained token i
    int32_t *target;              // (M) the trained token
    int64_t *row;                 // (S) dataset row
    int32_t *head_seq;            // (M) which sequence trained token i belongs to
} Batch;

typedef struct StepBatches {
    Batch *batch;     // this data-parallel rank's micro-batches, in micro-batch order
    int *micro_index; // (n) index of the micro-batch within the step, the same whatever the number of ranks
    int n;
    int n_most;                           // the most that any data-parallel rank has
    int n_micro;                          // of the whole step over all ranks
    int64_t step, tokens, trained_tokens; // of the whole step over all ranks
} StepBatches;

typedef struct LoaderConfig {
    const Dataset *data;
    uint64_t seed;
    bool shuffle, pack;
    int batch, micro_tokens;
    int data_rank, data_size;
    int64_t steps; // total; wraps around the data, reshuffled by (seed, epoch)
} LoaderConfig;
typedef struct Loader Loader;
int loader_open(Loader **out, const LoaderConfig *c, int64_t first_step); // starts the prefetch thread
void loader_close(Loader *l);
int loader_next(Loader *l, const StepBatches **out);         // valid until the next call; steps come in order
int64_t loader_steps_per_epoch(const Dataset *d, int batch); // rows/batch rounded up
// Dataset row of position i of step `step`: unshuffled (step*batch+i) mod rows; shuffled by a permutation keyed by (seed, epoch)
int64_t loader_row(const LoaderConfig *c, int64_t step, int i);
// Upper bounds over the run, for sizing arenas: tokens, sequences, trained tokens of the largest micro-batch, and micro-batches
// per step; memory: of this rank's micro-batches, in all slots of a loader
typedef struct LoaderBounds {
    int T, S, M, micros;
    size_t memory;
} LoaderBounds;
LoaderBounds loader_bounds(const LoaderConfig *c);
