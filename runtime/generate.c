// generate.c: continuous batching. A fixed number of cache slots; a finished sequence gives its slot to the next prompt. Also the
// verb: one prompt, a file of rows, or a chat.
#include "generate.h"
#include "gather.h"
#include "runtime.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 16, CHAT_LINE = 1 << 16 };

// ---- the engine -----------------------------------------------------------------------------------------------------
typedef struct Engine {
    Session *s;
    const GenerateConfig *c;
    Arena *cache_arena, *step_arena;
    KvCache *cache;
    Activations *act;
    int slots;
    int *slot, *count; // (slots) of the extension
    int32_t *tokens;   // of the extension
    Generation **in;   // (slots) who decodes there; NULL: free
    int32_t *next;     // (slots) its last token, not yet in the cache
    double *started;   // (slots)
    uint64_t *draw;    // (slots) random bits and
    int32_t *id;       // token of each sequence of the extension
} Engine;

static void engine_close(Engine *e)
{
    kvcache_close(e->cache);
    activations_close(e->act);
    arena_free(e->cache_arena);
    arena_free(e->step_arena);
    free(e->slot);
    free(e->count);
    free(e->tokens);
    free(e->in);
    free(e->next);
    free(e->started);
    free(e->draw);
    free(e->id);
}

// Decoding is micro-batches of a prompt, or of a token per slot.
static int slots_for(int n)
{
    return MAX(MIN(n, SLOTS), 1);
}

size_t generate_bytes(const Model *m, int n, int longest, int max_new)
{
    if ((!n && m->zero < 3) || max_new < 1) return 0;
    const int slots = slots_for(n);
    const size_t logits = (size_t)slots * (size_t)m->cfg.V * sizeof(float);
    const bool joined = m->mesh && m->mesh->tensor_size > 1; // on the host: the ranks' columns, then rows
    return kvcache_bytes(m, slots, longest + max_new) + activations_bytes(m, MAX(longest, slots), slots, false, false) +
           (joined ? 2 * logits : 0);
}

static int engine_open(Engine *e, Session *s, const GenerateConfig *c, int slots, int longest_prompt)
{
    const int capacity = longest_prompt + c->max_new, T = MAX(longest_prompt, slots);
    *e = (Engine){.s = s, .c = c, .slots = slots};
    const size_t n = (size_t)slots;
    if (capacity > s->model->positions)
        return fail(E_INPUT, "generate", "shorten the prompt or lower --max-new",
                    "%d prompt tokens and %d new ones, %d positions", longest_prompt, c->max_new, s->model->positions);
    if (s->model->cfg.V > SAMPLE_MOST_TOKENS)
        return fail(E_INPUT, "generate", NULL, "a vocabulary of %d words; tokens are drawn from up to %d",
                    s->model->cfg.V, SAMPLE_MOST_TOKENS);
    TRY(device_arena(&e->cache_arena, s->dev, "cache", kvcache_bytes(s->model, slots, capacity) + 4096));
    TRY(kvcache_open(&e->cache, s->model, e->cache_arena, slots, capacity));
    TRY(device_arena(&e->step_arena, s->dev, "step", activations_bytes(s->model, T, slots, false, false) + 4096));
    TRY(activations_open(&e->act, s->model, e->step_arena, T, slots, slots, false, false));
    e->slot = xcalloc(n, sizeof *e->slot);
    e->count = xcalloc(n, sizeof *e->count);
    e->tokens = xcalloc((size_t)T, sizeof *e->tokens);
    e->in = xcalloc(n, sizeof *e->in);
    e->next = xcalloc(n, sizeof *e->next);
    e->started = xcalloc(n, sizeof *e->started);
    e->draw = xcalloc(n, sizeof *e->draw);
    e->id = xcalloc(n, sizeof *e->id);
    return OK;
}

static bool ends_text(const Session *s, int32_t id)
{
    const ModelConfig *c = &s->model->cfg;
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return true;
    return s->tok && id == tokenizer_eos(s->tok);
}

// The next token of the sequence in `slot`; frees the slot when the sequence is done.
static int take_token(Engine *e, int slot, int32_t id)
{
    Generation *g = e->in[slot];
    if (id < 0) return fail(E_FAILED, "generate", NULL, "the logits are not finite");
    double now = now_ms();
    if (!g->n_out) g->ttft_ms = now - e->started[slot];
    g->total_ms = now - e->started[slot];
    g->ended = ends_text(e->s, id);
    if (!g->ended) {
        g->out[g->n_out++] = id;
        if (e->c->on_token) e->c->on_token(e->c->ctx, id);
    }
    e->next[slot] = id;
    if (g->ended || g->n_out == e->c->max_new) {
        e->in[slot] = NULL;
        kvcache_clear(e->cache, slot);
    }
    return OK;
}

// Where parameters are exchanged (ZeRO 3) the data ranks run the decoder the same number of times: `own` when this rank has tokens;
// *any: some rank has.
static int meet(const Session *s, bool own, bool *any)
{
    int32_t flag = own;
    if (s->model->zero == 3) TRY(comm_all_reduce(s->mesh.data, &flag, 1, DT_I32, REDUCE_MAX));
    *any = flag;
    return OK;
}

// Tokens into the cache, and for each of the n sequences its next one.
static int extend(Engine *e, const int *slot, const int *count, const int32_t *tokens, int n)
{
    const SamplerConfig *c = &e->c->sampler;
    bool any;
    TRY(meet(e->s, true, &any));
    TRY(decoder_extend(e->act, e->cache, slot, count, tokens, n, NULL));
    for (int i = 0; i < n; i++)
        e->draw[i] = sampler_draw(c->seed, e->in[slot[i]]->sequence, (uint64_t)e->in[slot[i]]->n_out);
    TRY(decoder_sample(e->act, e->cache, c, e->draw, e->id));
    for (int i = 0; i < n; i++) TRY(take_token(e, slot[i], e->id[i]));
    return OK;
}

// Until the other ranks are done too.
static int keep_company(Engine *e)
{
    bool any;
    TRY(meet(e->s, false, &any));
    while (any) {
        TRY(decoder_extend(e->act, e->cache, NULL, NULL, NULL, 0, NULL));
        TRY(meet(e->s, false, &any));
    }
    return OK;
}

static int admit(Engine *e, Generation *g, int slot)
{
    e->in[slot] = g;
    e->started[slot] = now_ms();
    g->out = xmalloc((size_t)e->c->max_new * sizeof *g->out + 1);
    return extend(e, &slot, &g->n_prompt, g->prompt, 1);
}

static int decode_step(Engine *e)
{
    int n = 0;
    for (int i = 0; i < e->slots; i++) {
        if (!e->in[i]) continue;
        e->slot[n] = i;
        e->count[n] = 1;
        e->tokens[n++] = e->next[i];
    }
    if (!n) return 0;
    TRY(extend(e, e->slot, e->count, e->tokens, n));
    return n;
}

static int decode_all(Engine *e, Generation *g, int n)
{
    int next = 0, busy = 0;
    do {
        for (int i = 0; i < e->slots && next < n; i++)
            while (!e->in[i] && next < n) TRY(admit(e, &g[next++], i)); // a first token may already end the text
        TRY(busy = decode_step(e));
    } while (busy || next < n);
    return OK;
}

int generate_all(Session *s, Generation *g, int n, const GenerateConfig *c)
{
    int longest = 1, status = OK;
    for (int i = 0; i < n; i++) {
        if (!g[i].n_prompt)
            return fail(E_INPUT, "generate", NULL, "row %llu: the prompt is empty",
                        (unsigned long long)g[i].sequence + 1);
        longest = MAX(longest, g[i].n_prompt);
    }
    if ((!n && s->model->zero < 3) || c->max_new < 1) return OK;
    Engine e;
    TRY_DONE(engine_open(&e, s, c, slots_for(n), longest));
    TRY_DONE(decode_all(&e, g, n));
    status = keep_company(&e);
done:
    engine_close(&e);
    return status;
}

void generations_free(Generation *g, int n)
{
    for (int i = 0; i < n; i++) free(g[i].out);
    free(g);
}

// ---- the verb: rows of a file ---------------------------------------------------------------------------------------
static double tokens_per_s(const Generation *g)
{
    return g->total_ms > 0 ? (double)g->n_out / g->total_ms * 1e3 : 0;
}

// The input line's object with the output added.
static int output_line(Session *s, const Dataset *d, const Generation *g, Buf *out)
{
    Buf text = {0};
    size_t bytes;
    const char *line = dataset_line(d, (int64_t)g->sequence, &bytes);
    json_t *row = json_loadb(line, bytes, 0, NULL), *ids = json_array();
    int status = tokenizer_decode(s->tok, g->out, g->n_out, true, &text);
    for (int i = 0; i < g->n_out; i++) json_array_append_new(ids, json_integer(g->out[i]));
    if (status == OK) {
        json_object_set_new(row, "output", json_stringn_nocheck(text.data ? text.data : "", text.len));
        json_object_set_new(row, "output_tokens", json_integer(g->n_out));
        json_object_set_new(row, "output_ids", ids);
        json_object_set_new(row, "ttft_ms", json_real(g->ttft_ms));
        json_object_set_new(row, "tokens_per_s", json_real(tokens_per_s(g)));
        char *dumped = json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(9));
        buf_printf(out, "%s\n", dumped);
        free(dumped);
    }
    json_decref(row);
    buf_free(&text);
    return status;
}

static GenerateConfig config_of(const GenerateArgs *a)
{
    return (GenerateConfig){.max_new = a->max_new, .sampler = {a->temperature, a->top_p, a->top_k, a->seed}};
}

static int generate_rows(Session *s, const GenerateArgs *a)
{
    Dataset *d = NULL;
    const GenerateConfig c = config_of(a);
    const Mesh *mesh = &s->mesh;
    int n = 0, longest = 1, status = session_dataset(s, &d, a->data, "--data", ROWS_PROMPTS);
    int64_t rows = d ? dataset_rows(d) : 0;
    Generation *g = xcalloc((size_t)rows + 1, sizeof *g);
    char **lines = xcalloc((size_t)rows + 1, sizeof *lines);
    for (int64_t i = mesh->data_rank; status == OK && i < rows; i += mesh->data_size, n++) {
        g[n].sequence = (uint64_t)i;
        status = dataset_prompt(d, i, &g[n].prompt, &g[n].n_prompt, &g[n].reference);
        longest = MAX(longest, g[n].n_prompt);
    }
    if (status == OK) status = session_model(s, longest + a->max_new, false, 0);
    if (status == OK) status = generate_all(s, g, n, &c);
    for (int i = 0; status == OK && i < n; i++) {
        Buf line = {0};
        status = output_line(s, d, &g[i], &line);
        lines[g[i].sequence] = line.data;
    }
    status = comm_agree(mesh->world, status);
    if (status == OK) status = gather_lines(s, lines, rows, a->out);
    for (int64_t i = 0; i < rows; i++) free(lines[i]);
    free(lines);
    generations_free(g, n);
    dataset_close(d);
    return status;
}

// ---- the verb: one prompt, and chat ---------------------------------------------------------------------------------
// Prints tokens as they come; bytes of an unfinished character wait for the next token.
typedef struct Printer {
    const Tokenizer *tok;
    Ids ids;
    size_t printed;
    Buf text;
} Printer;

static void print_token(void *ctx, int32_t id)
{
    Printer *p = ctx;
    if (p->ids.n == p->ids.cap)
        p->ids.id = xrealloc(p->ids.id, sizeof *p->ids.id * (size_t)(p->ids.cap = MAX(64, 2 * p->ids.cap)));
    p->ids.id[p->ids.n++] = id;
    p->text.len = 0;
    if (tokenizer_decode(p->tok, p->ids.id, p->ids.n, true, &p->text) < 0) return;
    size_t whole = p->text.len;
    if (whole >= 3 && !memcmp(p->text.data + whole - 3, "\xEF\xBF\xBD", 3)) whole -= 3;
    if (whole <= p->printed) return;
    fwrite(p->text.data + p->printed, 1, whole - p->printed, stdout);
    fflush(stdout);
    p->printed = whole;
}

// One answer to `text` (already rendered); the printed answer is left in p->text.
static int answer(Session *s, const GenerateArgs *a, const char *text, size_t bytes, bool add_special, uint64_t turn,
                  Printer *p)
{
    Ids ids = {0};
    GenerateConfig c = config_of(a);
    c.on_token = print_token;
    c.ctx = p;
    int status = tokenizer_encode(s->tok, text, bytes, add_special, false, &ids);
    if (status == OK && !s->model) status = session_model(s, MAX(ids.n + a->max_new, a->chat ? 8192 : 0), false, 0);
    Generation *g = xcalloc(1, sizeof *g);
    *g = (Generation){.prompt = ids.id, .n_prompt = ids.n, .sequence = turn};
    if (status == OK) status = generate_all(s, g, 1, &c);
    if (status == OK && p->text.len > p->printed)
        fwrite(p->text.data + p->printed, 1, p->text.len - p->printed, stdout);
    if (status == OK) printf("\n");
    if (status == OK && isatty(STDOUT_FILENO))
        log_info("  %d tokens, first after %.0f ms, %.1f tokens/s", g->n_out, g->ttft_ms, tokens_per_s(g));
    generations_free(g, 1);
    ids_free(&ids);
    return status;
}

static void printer_close(Printer *p)
{
    ids_free(&p->ids);
    buf_free(&p->text);
}

static int generate_prompt(Session *s, const Chat *t, const GenerateArgs *a)
{
    Printer p = {.tok = s->tok};
    Buf text = {0};
    int status = OK;
    if (t && !a->raw) {
        json_t *messages = json_array();
        if (a->system) json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", a->system));
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", a->prompt));
        status = chat_render(t, messages, json_array_size(messages), true, NULL, &text);
        json_decref(messages);
    } else {
        buf_puts(&text, a->prompt);
    }
    if (status == OK) status = answer(s, a, text.data, text.len, !t || a->raw, 0, &p);
    printer_close(&p);
    buf_free(&text);
    return status;
}

static int chat(Session *s, const Chat *t, const GenerateArgs *a)
{
    static char line[CHAT_LINE];
    json_t *messages = json_array();
    int status = OK;
    if (!t) return fail(E_INPUT, a->model.model, "use --prompt TEXT --raw", "the model has no chat template");
    if (a->system) json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", a->system));
    log_info("chat with %s; an empty line or Ctrl-D ends it", a->model.model);
    for (uint64_t turn = 0; status == OK; turn++) {
        if (isatty(STDOUT_FILENO)) printf("> ");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) break;
        line[strcspn(line, "\n")] = 0;
        if (!*line) break;
        if (!utf8_valid(line, strlen(line), NULL)) {
            log_warn("that line is not UTF-8 and was left out");
            continue;
        }
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", line));
        Printer p = {.tok = s->tok};
        Buf text = {0};
        status = chat_render(t, messages, json_array_size(messages), true, NULL, &text);
        if (status == OK) status = answer(s, a, text.data, text.len, false, turn, &p);
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", "assistant", "content", p.text.data ? p.text.data : ""));
        printer_close(&p);
        buf_free(&text);
    }
    json_decref(messages);
    return status;
}

int run_generate(Comm *world, const GenerateArgs *a)
{
    Session s = {0};
    Chat *t = NULL;
    int status = session_open_model(&s, world, &a->model);
    if (status == OK && !s.tok) status = fail(E_INPUT, a->model.model, NULL, "text generation needs a tokenizer");
    status = comm_agree(world, status);
    if (status == OK && a->data) {
        status = generate_rows(&s, a);
    } else if (status == OK && comm_rank(world) == 0) {
        status = chat_open(&t, s.recipe.model, "auto", s.tok);
        if (status == OK) status = a->chat ? chat(&s, t, a) : generate_prompt(&s, t, a);
    }
    chat_close(t);
    session_close(&s);
    return comm_agree(world, status);
}
