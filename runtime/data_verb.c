// data_verb: `attune data RECIPE` shows what the model will see before anything is trained: rows, what was dropped and why,
// lengths, and samples with their trained tokens marked; it ends with E_INPUT on data that would train wrongly. Also the verb
// `attune tokenize`, which is data/tokenize.c with a tokenizer opened for it.
#include "session.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int run_tokenize(const char *model, const char *data, const char *out, bool decode, bool add_special)
{
    Tokenizer *tok = NULL;
    TRY(tokenizer_open(&tok, model));
    int status = tokenize_file(tok, model, data, out, decode, add_special);
    tokenizer_free(tok);
    return status;
}

// ---- numbers --------------------------------------------------------------------------------------------------------
static const char *grouped(int64_t n) // 1234567 as 1,234,567
{
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)n);
    size_t len = strlen(digits), used = 0;
    char text[48];
    for (size_t i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = 0;
    return tmpf("%s", text);
}

static int by_size(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

// values are sorted in place. The p-th percentile is the smallest value that p % of them do not exceed.
static void print_percentiles(const char *name, int *values, int64_t n)
{
    static const int percents[] = {50, 90, 99};
    qsort(values, (size_t)n, sizeof *values, by_size);
    printf("  %-12s min %s", name, grouped(values[0]));
    for (size_t i = 0; i < COUNT_OF(percents); i++)
        printf(" · p%d %s", percents[i], grouped(values[(n * percents[i] + 99) / 100 - 1]));
    printf(" · max %s\n", grouped(values[n - 1]));
}

static void print_histogram(const int *lengths, int64_t n) // of sorted lengths, by powers of two
{
    int64_t most = 0, bins[32] = {0};
    int last = 0, first = 31;
    for (int64_t i = 0; i < n; i++) {
        int bin = 0;
        while (lengths[i] > 1 << bin) bin++;
        bins[bin]++;
        most = MAX(most, bins[bin]);
        first = MIN(first, bin);
        last = MAX(last, bin);
    }
    for (int bin = first; bin <= last; bin++) {
        printf("    to %7s %9s ", grouped((int64_t)1 << bin), grouped(bins[bin]));
        for (int64_t i = 0; i < bins[bin] * 40 / most; i++) fputs("#", stdout);
        puts("");
    }
}

static void print_lengths(const Dataset *d)
{
    int64_t n = dataset_rows(d);
    int *lengths = xmalloc((size_t)n * sizeof *lengths), *trained = xmalloc((size_t)n * sizeof *trained);
    for (int64_t i = 0; i < n; i++) {
        lengths[i] = dataset_row(d, i)->n;
        trained[i] = dataset_row(d, i)->trained;
    }
    print_percentiles("length", lengths, n);
    print_histogram(lengths, n);
    print_percentiles("trained", trained, n);
    free(lengths);
    free(trained);
}

// ---- findings -------------------------------------------------------------------------------------------------------
static void print_count(const char *name, int64_t n, int64_t line, const char *what)
{
    if (n) printf("  %-12s %s %s (the first: line %lld)\n", name, grouped(n), what, (long long)line);
}

static void print_counts(const Dataset *d, const Recipe *r)
{
    RowStats s = dataset_stats(d);
    double share = s.tokens ? 100.0 * (double)s.trained_tokens / (double)s.tokens : 0;
    int64_t steps = loader_steps_per_epoch(d, (int)r->train.batch);
    printf("  %-12s %s (%s steps of %lld an epoch)\n", "rows", grouped(s.rows), grouped(steps),
           (long long)r->train.batch);
    printf("  %-12s %s, of which %s trained (%.1f %%)\n", "tokens", grouped(s.tokens), grouped(s.trained_tokens),
           share);
    print_lengths(d);
    print_count("dropped", s.dropped_long, s.line_dropped,
                tmpf("longer than %lld tokens", (long long)r->data.max_tokens));
    print_count("cut", s.cut_long, s.line_cut, tmpf("longer than %lld tokens", (long long)r->data.max_tokens));
    print_count("duplicates", s.duplicates, s.line_duplicate, "equal to an earlier row, kept");
    print_count("note", s.straddling, s.line_straddling,
                "rows have a token that begins in the prompt and ends in the answer; it is not trained");
    print_count("note", s.untrained, s.line_untrained, "rows are one token long and train nothing");
    print_count("warning", s.endless, s.line_endless,
                "rows have an answer that no end-of-turn token follows: the model would not learn to stop");
    print_count("error", s.double_bos, s.line_double_bos, "rows begin with two bos tokens");
}

static int refuse_findings(const Dataset *d, const char *path)
{
    RowStats s = dataset_stats(d);
    if (s.double_bos)
        return fail(E_INPUT, tmpf("%s:%lld", path, (long long)s.line_double_bos),
                    "the tokenizer adds bos itself: remove it from the text or the template",
                    "%lld rows begin with two bos tokens", (long long)s.double_bos);
    if (s.endless == s.rows)
        return fail(E_INPUT, tmpf("%s:%lld", path, (long long)s.line_endless),
                    "let the chat template write an end-of-turn token, or name eos in tokenizer_config.json",
                    "no row trains an end-of-turn token: the model would never learn to stop");
    return OK;
}

// ---- samples --------------------------------------------------------------------------------------------------------
typedef struct Marks {
    const char *on, *off;
} Marks;

static Marks choose_marks(void)
{
    bool colour = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
    return colour ? (Marks){"\033[4;32m", "\033[0m"} : (Marks){"[[", "]]"};
}

// Data must not steer the terminal: control characters are spelled out.
static void print_text(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

static int print_run(const Tokenizer *tok, const Row *r, int first, int end, Marks marks)
{
    Buf text = {0};
    int status = OK;
    if (tok)
        status = tokenizer_decode(tok, r->ids + first, end - first, false, &text);
    else
        for (int t = first; t < end; t++) buf_printf(&text, t > first ? " %d" : "%d", r->ids[t]);
    fputs(r->train[first] ? marks.on : "", stdout);
    print_text(text.data ? text.data : "", text.len);
    fputs(r->train[first] ? marks.off : tok ? "" : " ", stdout);
    buf_free(&text);
    return status;
}

static int print_samples(const Dataset *d, const Tokenizer *tok, int show)
{
    Marks marks = choose_marks();
    for (int64_t i = 0; i < MIN(show, dataset_rows(d)); i++) {
        const Row *r = dataset_row(d, i);
        printf("\n  line %lld: %d tokens, trained ones %s (%d)\n", (long long)r->line, r->n,
               *marks.on == '[' ? "in [[ ]]" : "underlined", r->trained);
        for (int t = 0, end; t < r->n; t = end) {
            for (end = t + 1; end < r->n && r->train[end] == r->train[t]; end++) continue;
            TRY(print_run(tok, r, t, end, marks));
        }
        puts("");
    }
    return OK;
}

// ---- the verb -------------------------------------------------------------------------------------------------------
static int show_file(Session *s, const char *key, const char *path, int show)
{
    const Recipe *r = &s->recipe;
    Dataset *d = NULL;
    int status;
    TRY_DONE(session_dataset(s, &d, path, key, ROWS_TRAINED));
    bool all = streq(r->objective, "pretrain") || streq(r->data.loss_on, "all");
    printf("%s: %s (%s, loss on %s)\n", key, path, dataset_format(d), all ? "all" : "completion");
    print_counts(d, r);
    TRY_DONE(print_samples(d, s->tok, show));
    puts("");
    TRY_DONE(refuse_findings(d, path));
done:
    fflush(stdout); // what was found stands before the error
    dataset_close(d);
    return status;
}

static int show_files(Session *s, int show)
{
    const Recipe *r = &s->recipe;
    const struct {
        const char *key, *path;
    } files[] = {{"data.train", r->data.train}, {"data.valid", r->data.valid}, {"data.test", r->data.test}};
    int shown = 0;
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        if (!*files[i].path) continue;
        TRY(show_file(s, files[i].key, files[i].path, show));
        shown++;
    }
    if (shown) return OK;
    return fail(E_INPUT, *r->file ? r->file : "recipe", "data: {train: FILE.jsonl}",
                "no data.train, data.valid or data.test");
}

int run_data(const TrainArgs *a, int show)
{
    Session s = {0}; // of which only the recipe and the tokenizer are opened: nothing here needs a model's weights
    TRY(recipe_load(&s.recipe, a->recipe, a->overrides, a->n_overrides));
    int status;
    TRY_DONE(session_tokenizer(&s, s.recipe.model));
    TRY_DONE(show_files(&s, show));
done:
    tokenizer_free(s.tok);
    recipe_free(&s.recipe);
    return status;
}
