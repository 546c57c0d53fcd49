// score.c: the verb `score`: log-probabilities of the trained tokens of each line.
#include "evaluate.h"
#include "gather.h"
#include "runtime.h"
#include <stdlib.h>

enum { SCORE_MICRO_TOKENS = 1024 };

// Log-probabilities by dataset row; NULL: another rank has it.
typedef struct Scores {
    const Dataset *d;
    float **logp;
} Scores;

static int keep_scores(void *ctx, const Batch *b, const float *logp)
{
    Scores *s = ctx;
    for (int i = 0; i < b->M; i++) {
        int64_t row = b->row[b->head_seq[i]];
        int first = i;
        while (i + 1 < b->M && b->head_seq[i + 1] == b->head_seq[first]) i++;
        size_t n = (size_t)(i + 1 - first);
        s->logp[row] = xmalloc(n * sizeof(float));
        for (size_t k = 0; k < n; k++) s->logp[row][k] = logp[first + (int)k];
    }
    return OK;
}

// logp: NULL when the row trains nothing
static char *score_line(const Row *r, const float *logp)
{
    Buf b = {0};
    double sum = 0;
    int n = 0;
    buf_puts(&b, "{\"tokens\": [");
    for (int i = 0; i < r->n; i++)
        if (r->train[i]) buf_printf(&b, "%s%d", n++ ? ", " : "", r->ids[i]);
    buf_puts(&b, "], \"logprobs\": [");
    for (int i = 0; logp && i < n; i++) {
        buf_printf(&b, "%s%.9g", i ? ", " : "", (double)logp[i]);
        sum += (double)logp[i];
    }
    buf_printf(&b, "], \"sum\": %.9g, \"prompt_tokens\": %d}\n", sum, r->prompt);
    return b.data;
}

static int score_opened(Session *s, const Dataset *d, const char *out)
{
    const Mesh *mesh = &s->mesh;
    int64_t rows = dataset_rows(d);
    LoaderBounds b = evaluate_bounds(d, SCORE_MICRO_TOKENS, 0, mesh);
    Activations *a = NULL;
    Scores scores = {d, xcalloc((size_t)rows + 1, sizeof *scores.logp)};
    char **lines = xcalloc((size_t)rows + 1, sizeof *lines);
    int status = comm_agree(mesh->world, session_inference(s, &a, b.T, b.S, b.M, b.T));
    if (status == OK)
        status = comm_agree(mesh->world, evaluate_rows(s, a, d, SCORE_MICRO_TOKENS, 0, keep_scores, &scores));
    for (int64_t i = 0; status == OK && i < rows; i++) {
        const Row *r = dataset_row(d, i);
        bool mine = scores.logp[i] || (!r->trained && mesh->data_rank == 0);
        if (mine) lines[i] = score_line(r, scores.logp[i]);
    }
    if (status == OK) status = gather_lines(s, lines, rows, out);
    for (int64_t i = 0; i < rows; i++) {
        free(scores.logp[i]);
        free(lines[i]);
    }
    free(scores.logp);
    free(lines);
    activations_close(a);
    return status;
}

int run_score(Comm *world, const ModelArgs *m, const char *data, const char *out)
{
    Session s = {0};
    Dataset *d = NULL;
    int status = session_open_model(&s, world, m);
    if (status == OK) status = session_dataset(&s, &d, data, "--data", ROWS_SCORED);
    status = comm_agree(world, status);
    if (status == OK) status = score_opened(&s, d, out);
    dataset_close(d);
    session_close(&s);
    return status;
}
