// source: a JSONL file as a dataset. The whole file is read and tokenized up front, a block of lines at a time and its lines in
// parallel, into one array of ids and one of marks. Lines are not kept: the few callers that need one again (generation) read it
// back from the file, which must not have changed meanwhile.
//
// Results, and the error when there are several, do not depend on the number of threads.
#include "data/data_impl.h"
#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Source { // where a row came from
    int64_t offset;
    uint64_t digest; // of the line's bytes
    int bytes;
} Source;

typedef struct Recalled { // a line read back; kept until the dataset is closed
    char *line, *reference;
    int32_t *ids; // of its prompt
    int n;
    bool has_prompt;
} Recalled;

typedef struct Recall {
    pthread_mutex_t lock;
    Recalled **row; // (rows)
} Recall;

struct Dataset {
    char *path;
    int fd;
    const Format *format;
    Encoder encoder;
    Chat *chat;             // owned
    ErrorRecord chat_error; // why there is none although the model has a template: matters only to rows that need it
    Row *rows;              // (n)
    Source *source;
    int64_t n, cap;
    int32_t *ids; // all rows' ids, one after the other
    uint8_t *train;
    size_t tokens, tokens_cap;
    RowStats stats;
    uint64_t digest;
    Recall *recall; // changes behind a const Dataset
};

// ---- one line -------------------------------------------------------------------------------------------------------
typedef struct Result { // of one line, in order of the file
    int32_t *ids;       // ids, then marks; owned until taken over
    int n;
    unsigned flags;
    uint64_t digest;
} Result;

typedef char Place[512]; // "FILE:LINE"

static void line_place(Place out, const Dataset *d, int64_t line)
{
    snprintf(out, sizeof(Place), "%s:%lld", d->path, (long long)line);
}

static FormatContext format_context(const Dataset *d, const char *place)
{
    bool broken = d->chat_error.code < 0;
    return (FormatContext){.has_chat = d->chat || broken,
                           .chat_error = broken ? &d->chat_error : NULL,
                           .prompt_only = d->encoder.prompt_only,
                           .place = place};
}

static int encode_line(const Dataset *d, const Line *line, Encoded *scratch, Result *out)
{
    Place place;
    line_place(place, d, line->number);
    json_t *row = NULL;
    Example x = {0};
    FormatContext context = format_context(d, place);
    int status;
    TRY(jsonl_parse(&row, line->text, line->bytes, place));
    TRY_DONE(format_read(d->format, &x, row, &context));
    TRY_DONE(example_encode(&d->encoder, &x, scratch, place));
    size_t n = (size_t)scratch->ids.n;
    *out = (Result){.n = (int)n, .flags = scratch->flags, .digest = hash64(line->text, line->bytes, 0)};
    if (scratch->flags & ROW_LONG && !(scratch->flags & ROW_CUT)) goto done; // dropped
    out->ids = xmalloc(MAX(n, 1) * (sizeof(int32_t) + 1));
    if (n) memcpy(out->ids, scratch->ids.id, n * sizeof(int32_t));
    if (n) memcpy(out->ids + n, scratch->train, n);
done:
    example_free(&x);
    json_decref(row);
    return status;
}

// ---- a block of lines -----------------------------------------------------------------------------------------------
static void add_row(Dataset *d, const Line *line, const Result *r)
{
    if (d->n == d->cap) {
        d->cap = MAX(1024, 2 * d->cap);
        d->rows = xrealloc(d->rows, (size_t)d->cap * sizeof *d->rows);
        d->source = xrealloc(d->source, (size_t)d->cap * sizeof *d->source);
    }
    size_t n = (size_t)r->n;
    if (d->tokens + n > d->tokens_cap) {
        d->tokens_cap = MAX(2 * d->tokens_cap, d->tokens + n + 65536);
        d->ids = xrealloc(d->ids, d->tokens_cap * sizeof *d->ids);
        d->train = xrealloc(d->train, d->tokens_cap);
    }
    memcpy(d->ids + d->tokens, r->ids, n * sizeof *d->ids);
    memcpy(d->train + d->tokens, r->ids + n, n);
    d->tokens += n;
    d->source[d->n] = (Source){line->offset, r->digest, (int)line->bytes};
    d->rows[d->n++] = (Row){.n = r->n, .line = line->number};
}

static void count(int64_t *counter, int64_t *first_line, int64_t line)
{
    if (!(*counter)++) *first_line = line;
}

static void take_result(Dataset *d, const Line *line, const Result *r)
{
    RowStats *s = &d->stats;
    if (!r->ids) {
        count(&s->dropped_long, &s->line_dropped, line->number);
        return;
    }
    if (r->flags & ROW_CUT) count(&s->cut_long, &s->line_cut, line->number);
    if (r->flags & ROW_DOUBLE_BOS) count(&s->double_bos, &s->line_double_bos, line->number);
    if (r->flags & ROW_ENDLESS) count(&s->endless, &s->line_endless, line->number);
    if (r->flags & ROW_STRADDLES) count(&s->straddling, &s->line_straddling, line->number);
    add_row(d, line, r);
}

typedef struct FirstError { // of the lines of a block: that of the lowest line, whichever thread met it first
    int line;
    ErrorRecord record;
} FirstError;

static void encode_share(const Dataset *d, const Jsonl *j, Result *results, FirstError *error)
{
    Encoded scratch = {0};
#pragma omp for schedule(dynamic, 8)
    for (int i = 0; i < j->n; i++) {
        if (encode_line(d, &j->line[i], &scratch, &results[i]) == OK) continue;
#pragma omp critical(dataset_error)
        if (i < error->line) *error = (FirstError){i, *error_last()};
        error_clear();
    }
    encoded_free(&scratch);
}

static int encode_block(Dataset *d, const Jsonl *j, int threads)
{
    Result *results = xcalloc((size_t)j->n, sizeof *results);
    FirstError error = {.line = j->n};
#pragma omp parallel num_threads(MAX(1, MIN(threads, (j->n + 7) / 8)))
    encode_share(d, j, results, &error);
    for (int i = 0; i < j->n; i++) {
        if (i < error.line) take_result(d, &j->line[i], &results[i]);
        free(results[i].ids);
    }
    free(results);
    if (error.line == j->n) return OK;
    error_adopt(&error.record);
    return error.record.code;
}

// ---- the whole file -------------------------------------------------------------------------------------------------
static int choose_format(Dataset *d, const DataConfig *c, const Line *first)
{
    bool named = c->format && *c->format && !streq(c->format, "auto");
    if (named) {
        d->format = format_find(c->format);
        return d->format ? OK : fail(E_INPUT, c->path, NULL, "unknown data format %s", c->format);
    }
    Place place;
    line_place(place, d, first->number);
    json_t *row = NULL;
    TRY(jsonl_parse(&row, first->text, first->bytes, place));
    int status = format_detect(&d->format, row, place);
    json_decref(row);
    return status;
}

static int read_file(Dataset *d, const DataConfig *c)
{
    Jsonl j;
    int status;
    TRY_DONE(jsonl_open(&j, d->path));
    for (;;) {
        TRY_DONE(jsonl_next(&j));
        if (!j.n) break;
        if (!d->format) TRY_DONE(choose_format(d, c, &j.line[0]));
        TRY_DONE(encode_block(d, &j, c->threads > 0 ? c->threads : omp_get_max_threads()));
    }
    d->fd = j.fd;
    j.fd = -1;
done:
    jsonl_close(&j);
    return status;
}

static int refuse_empty(const Dataset *d)
{
    if (d->n) return OK;
    if (!d->stats.dropped_long) return fail(E_INPUT, d->path, "one JSON object a line", "no lines in this file");
    return fail(E_INPUT, d->path, "raise data.max_tokens, or set data.overlong to cut",
                "no rows left: all %lld are longer than %d tokens", (long long)d->stats.dropped_long,
                d->encoder.max_tokens);
}

static int refuse_untrained(const Dataset *d)
{
    if (d->stats.trained_tokens || d->encoder.scoring || d->encoder.prompt_only) return OK;
    return fail(E_INPUT, d->path,
                d->stats.dropped_long ? "raise data.max_tokens, or set data.overlong to cut: longer rows were dropped"
                                      : "a row's first token is never trained: give rows of two tokens or more",
                "trains zero tokens");
}

static uint64_t place_rows(Dataset *d, uint64_t *digests)
{
    size_t at = 0;
    RowStats *s = &d->stats;
    for (int64_t i = 0; i < d->n; i++) {
        Row *r = &d->rows[i];
        size_t n = (size_t)r->n;
        r->ids = d->ids + at;
        r->train = d->train + at;
        at += n;
        const uint8_t *first = n ? memchr(r->train, 1, n) : NULL;
        r->prompt = first ? (int)(first - r->train) : r->n;
        for (size_t t = 0; t < n; t++) r->trained += r->train[t];
        if (!r->trained) count(&s->untrained, &s->line_untrained, r->line);
        s->trained_tokens += r->trained;
        s->longest = MAX(s->longest, r->n);
        digests[i] = hash64(r->ids, n * sizeof *r->ids, hash64(r->train, n, 0));
    }
    s->rows = d->n;
    s->tokens = (int64_t)d->tokens;
    return hash64(digests, (size_t)d->n * sizeof *digests, 0);
}

// Rows equal to an earlier one, by digest: an open-addressed set.
static void count_duplicates(Dataset *d, const uint64_t *digests)
{
    size_t slots = 16;
    while (slots < 2 * (size_t)d->n) slots *= 2;
    int64_t *row = xcalloc(slots, sizeof *row); // index + 1
    for (int64_t i = 0; i < d->n; i++) {
        size_t at = digests[i] & (slots - 1);
        while (row[at] && digests[row[at] - 1] != digests[i]) at = (at + 1) & (slots - 1);
        if (row[at])
            count(&d->stats.duplicates, &d->stats.line_duplicate, d->rows[i].line);
        else
            row[at] = i + 1;
    }
    free(row);
}

static void report_long(const Dataset *d)
{
    const RowStats *s = &d->stats;
    if (s->dropped_long)
        log_info("%s: %lld of %lld rows dropped, longer than %d tokens (the first: line %lld)", d->path,
                 (long long)s->dropped_long, (long long)(s->rows + s->dropped_long), d->encoder.max_tokens,
                 (long long)s->line_dropped);
    if (s->cut_long)
        log_info("%s: %lld of %lld rows cut to %d tokens (the first: line %lld)", d->path, (long long)s->cut_long,
                 (long long)s->rows, d->encoder.max_tokens, (long long)s->line_cut);
}

static int open_chat(Dataset *d, const DataConfig *c, const Tokenizer *tok)
{
    if (!tok) return OK;
    bool asked_for = c->template_path && *c->template_path && !streq(c->template_path, "auto");
    int status = c->template_source ? chat_open_source(&d->chat, c->template_source, "template", tok)
                                    : chat_open(&d->chat, c->model_path, c->template_path, tok);
    d->encoder.chat = d->chat;
    if (status == OK || asked_for) return status;
    d->chat_error = *error_last();
    error_clear();
    return OK;
}

int dataset_open(Dataset **out, const DataConfig *c, const Tokenizer *tok)
{
    Dataset *d = xcalloc(1, sizeof *d);
    int status;
    d->fd = -1;
    d->path = xstrdup(c->path);
    d->recall = xcalloc(1, sizeof *d->recall);
    pthread_mutex_init(&d->recall->lock, NULL);
    json_object_seed(0); // before several threads make objects
    d->encoder = (Encoder){.tok = tok,
                           .train_all = c->loss_on && streq(c->loss_on, "all"),
                           .cut = c->overlong && streq(c->overlong, "cut"),
                           .scoring = c->scoring,
                           .prompt_only = c->allow_prompt_only,
                           .max_tokens = c->max_tokens > 0 ? c->max_tokens : INT32_MAX,
                           .vocab = c->vocab};
    TRY_DONE(open_chat(d, c, tok));
    TRY_DONE(read_file(d, c));
    TRY_DONE(refuse_empty(d));
    uint64_t *digests = xmalloc((size_t)d->n * sizeof *digests);
    d->digest = place_rows(d, digests);
    count_duplicates(d, digests);
    free(digests);
    TRY_DONE(refuse_untrained(d));
    report_long(d);
    *out = d;
    d = NULL;
done:
    dataset_close(d);
    return status;
}

static void recall_free(Recall *recall, int64_t n)
{
    for (int64_t i = 0; recall->row && i < n; i++) {
        Recalled *r = recall->row[i];
        if (!r) continue;
        free(r->line);
        free(r->reference);
        free(r->ids);
        free(r);
    }
    free(recall->row);
    pthread_mutex_destroy(&recall->lock);
    free(recall);
}

void dataset_close(Dataset *d)
{
    if (!d) return;
    recall_free(d->recall, d->n);
    if (d->fd >= 0) close(d->fd);
    chat_close(d->chat);
    free(d->path);
    free(d->rows);
    free(d->source);
    free(d->ids);
    free(d->train);
    free(d);
}

int64_t dataset_rows(const Dataset *d)
{
    return d->n;
}
const Row *dataset_row(const Dataset *d, int64_t i)
{
    return &d->rows[i];
}
RowStats dataset_stats(const Dataset *d)
{
    return d->stats;
}
const char *dataset_format(const Dataset *d)
{
    return d->format->name;
}
uint64_t dataset_digest(const Dataset *d)
{
    return d->digest;
}

// ---- lines read back ------------------------------------------------------------------------------------------------
static int read_back(const Dataset *d, int64_t i, char **out)
{
    const Source *s = &d->source[i];
    char *line = xmalloc((size_t)s->bytes + 1);
    int have = 0;
    while (have < s->bytes) {
        ssize_t n = pread(d->fd, line + have, (size_t)(s->bytes - have), s->offset + have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        have += (int)n;
    }
    line[have] = 0;
    if (have == s->bytes && hash64(line, (size_t)have, 0) == s->digest) {
        *out = line;
        return OK;
    }
    free(line);
    return fail(E_INPUT, tmpf("%s:%lld", d->path, (long long)d->rows[i].line),
                "leave data files alone while a run reads them", "the file has changed since it was read");
}

// Call with the lock held.
static int recall_line(const Dataset *d, int64_t i, Recalled **out)
{
    Recall *recall = d->recall;
    if (!recall->row) recall->row = xcalloc((size_t)d->n, sizeof *recall->row);
    if (!recall->row[i]) {
        char *line = NULL;
        TRY(read_back(d, i, &line));
        recall->row[i] = xcalloc(1, sizeof **recall->row);
        recall->row[i]->line = line;
    }
    *out = recall->row[i];
    return OK;
}

static int make_prompt(const Dataset *d, int64_t i, Recalled *r)
{
    Place place;
    line_place(place, d, d->rows[i].line);
    json_t *row = NULL;
    Example x = {0};
    Ids ids = {0};
    Buf reference = {0};
    FormatContext context = format_context(d, place);
    int status;
    TRY(jsonl_parse(&row, r->line, (size_t)d->source[i].bytes, place));
    TRY_DONE(format_read(d->format, &x, row, &context));
    TRY_DONE(example_prompt(&d->encoder, &x, &ids, &reference, place));
    r->n = ids.n;
    r->ids = xmalloc((size_t)MAX(ids.n, 1) * sizeof *r->ids);
    if (ids.n) memcpy(r->ids, ids.id, (size_t)ids.n * sizeof *r->ids);
    if (reference.len) r->reference = xstrndup(reference.data, reference.len);
    r->has_prompt = true;
done:
    ids_free(&ids);
    buf_free(&reference);
    example_free(&x);
    json_decref(row);
    return status;
}

int dataset_prompt(const Dataset *d, int64_t i, const int32_t **ids, int *n, const char **reference)
{
    Recalled *r = NULL;
    pthread_mutex_lock(&d->recall->lock);
    int status = recall_line(d, i, &r);
    if (status == OK && !r->has_prompt) status = make_prompt(d, i, r);
    pthread_mutex_unlock(&d->recall->lock);
    if (status < 0) return status;
    *ids = r->ids;
    *n = r->n;
    if (reference) *reference = r->reference;
    return OK;
}

const char *dataset_line(const Dataset *d, int64_t i, size_t *bytes)
{
    Recalled *r = NULL;
    pthread_mutex_lock(&d->recall->lock);
    int status = recall_line(d, i, &r);
    pthread_mutex_unlock(&d->recall->lock);
    *bytes = status == OK ? (size_t)d->source[i].bytes : 0;
    return status == OK ? r->line : NULL;
}
