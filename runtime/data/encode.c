// encode: an example becomes token ids and the mask of those that are trained; or, for generation, the ids of its prompt.
// Conversations go through the chat template, and mask.c finds their assistant turns. Plain text gets what the tokenizer's
// post-processor adds. Ready ids are taken as they are.
#include "data/data_impl.h"
#include <stdlib.h>
#include <string.h>

// A fault of the template is a fault of the line it was given.
static int at_line(int status, const char *place)
{
    ErrorRecord e = *error_last();
    error_clear();
    return fail(status, place, *e.hint ? e.hint : "the chat template has to accept every conversation", "%s%s%s: %s",
                "the chat template refuses this conversation", *e.place ? ", " : "", e.place, e.what);
}

int example_render(const Encoder *e, const Example *x, const json_t *messages, size_t n, bool generation_prompt,
                   Buf *out, const char *place)
{
    out->len = 0;
    buf_put(out, "", 0);
    int status = chat_render(e->chat, messages, n, generation_prompt, x->row, out);
    return status < 0 ? at_line(status, place) : OK;
}

// ---- examples -------------------------------------------------------------------------------------------------------
static void train_range(Encoded *out, int first, int end)
{
    for (int t = first; t < end; t++) out->train[t] = 1;
}

static void reserve_mask(Encoded *out)
{
    if (out->ids.n > out->train_cap) {
        out->train_cap = MAX(out->ids.n, 2 * out->train_cap);
        out->train = xrealloc(out->train, (size_t)out->train_cap);
    }
    if (out->ids.n) memset(out->train, 0, (size_t)out->ids.n);
}

static void push_id(Ids *ids, int32_t id, int32_t start)
{
    if (ids->n == ids->cap) {
        ids->cap = MAX(64, 2 * ids->cap);
        ids->id = xrealloc(ids->id, (size_t)ids->cap * sizeof *ids->id);
        ids->start = xrealloc(ids->start, (size_t)ids->cap * sizeof *ids->start);
    }
    ids->id[ids->n] = id;
    ids->start[ids->n++] = start;
}

static bool answers(const Example *x)
{
    return x->kind == EXAMPLE_CHAT ? is_assistant(last_message(x)) : x->completion.len > 0;
}

static int encode_chat(const Encoder *e, const Example *x, bool prompt_only, Encoded *out, const char *place)
{
    TRY(example_render(e, x, x->messages, json_array_size(x->messages), prompt_only, &out->text, place));
    TRY(tokenizer_encode(e->tok, out->text.data, out->text.len, false, true, &out->ids));
    reserve_mask(out);
    if (prompt_only || (out->ids.n > e->max_tokens && !e->cut)) return OK; // a row to be dropped needs no mask
    if (e->train_all) {
        train_range(out, 1, out->ids.n);
        return OK;
    }
    return example_mask(e, x, out, place);
}

// Plain text gets the tokenizer's own special tokens, and eos at its end when it has none there (TRL does so, too).
static int encode_plain(const Encoder *e, const Example *x, bool prompt_only, Encoded *out)
{
    buf_put(&out->text, x->prompt.data, x->prompt.len);
    buf_put(&out->text, x->completion.data, x->completion.len);
    TRY(tokenizer_encode(e->tok, out->text.data, out->text.len, true, true, &out->ids));
    Ids *ids = &out->ids;
    int eos = tokenizer_eos(e->tok);
    bool ended = ids->n && ids->id[ids->n - 1] == eos;
    if (eos >= 0 && !ended && !prompt_only && !e->scoring) push_id(ids, eos, (int32_t)out->text.len);
    if (prompt_only && ended) ids->n--;
    reserve_mask(out);
    if (prompt_only) return OK;
    int first = 1;
    if (x->prompt.len && !e->train_all) {
        while (first < ids->n && (size_t)ids->start[first] < x->prompt.len) first++;
        if (first < ids->n && (size_t)ids->start[first] > x->prompt.len) out->flags |= ROW_STRADDLES;
    }
    train_range(out, first, ids->n);
    if (eos < 0) out->flags |= ROW_ENDLESS;
    return OK;
}

static int encode_ids(const Encoder *e, const Example *x, Encoded *out, const char *place)
{
    for (size_t i = 0; i < json_array_size(x->ids); i++) {
        const json_t *id = json_array_get(x->ids, i);
        json_int_t value = json_integer_value(id), limit = e->vocab > 0 ? e->vocab : INT32_MAX;
        if (!json_is_integer(id)) return fail(E_INPUT, place, NULL, "token %zu is not an integer", i);
        if (value < 0 || value >= limit)
            return fail(E_INPUT, place, "the ids have to come from this model's tokenizer",
                        "token %zu is %" JSON_INTEGER_FORMAT ", the model has ids 0 to %" JSON_INTEGER_FORMAT, i, value,
                        limit - 1);
        push_id(&out->ids, (int32_t)value, 0);
    }
    reserve_mask(out);
    train_range(out, 1, out->ids.n);
    return OK;
}

// The model's embedding must have a row for whatever the tokenizer gives.
static int check_ids(const Encoder *e, const Ids *ids, const char *place)
{
    for (int i = 0; e->vocab > 0 && i < ids->n; i++)
        if (ids->id[i] >= e->vocab)
            return fail(E_INPUT, place, "use the tokenizer that belongs to the model",
                        "the tokenizer gives id %d, the model has ids 0 to %d", ids->id[i], e->vocab - 1);
    return OK;
}

static int need_tokenizer(const Encoder *e, const char *place)
{
    if (e->tok) return OK;
    return fail(E_INPUT, place, "give ready ids as {\"tokens\": [...]}, or add the model's tokenizer.json",
                "the model has no tokenizer");
}

static void cut_row(const Encoder *e, Encoded *out)
{
    if (out->ids.n <= e->max_tokens) return;
    out->flags |= ROW_LONG;
    if (e->cut && memchr(out->train, 1, (size_t)e->max_tokens)) {
        out->flags = (out->flags | ROW_CUT) & ~(unsigned)ROW_ENDLESS;
        out->ids.n = e->max_tokens;
    }
}

int example_encode(const Encoder *e, const Example *x, Encoded *out, const char *place)
{
    bool prompt_only = e->prompt_only && x->kind != EXAMPLE_IDS && !answers(x);
    out->ids.n = 0;
    out->flags = 0;
    out->text.len = 0;
    buf_put(&out->text, "", 0);
    if (x->kind != EXAMPLE_IDS) TRY(need_tokenizer(e, place));
    switch (x->kind) {
    case EXAMPLE_CHAT: TRY(encode_chat(e, x, prompt_only, out, place)); break;
    case EXAMPLE_PLAIN: TRY(encode_plain(e, x, prompt_only, out)); break;
    case EXAMPLE_IDS: TRY(encode_ids(e, x, out, place)); break;
    }
    const Ids *ids = &out->ids;
    int bos = e->tok ? tokenizer_bos(e->tok) : -1;
    if (x->kind != EXAMPLE_IDS && ids->n >= 2 && bos >= 0 && ids->id[0] == bos && ids->id[1] == bos)
        out->flags |= ROW_DOUBLE_BOS;
    cut_row(e, out);
    if (!ids->n) return fail(E_INPUT, place, "remove the line", "no tokens");
    TRY(check_ids(e, ids, place));
    // Ready ids are taken as they come: a lone id trains nothing and is carried along, so that rows stay the file's lines.
    if (prompt_only || e->scoring || x->kind == EXAMPLE_IDS || out->flags & ROW_LONG ||
        memchr(out->train, 1, (size_t)ids->n))
        return OK;
    return fail(E_INPUT, place, "remove the line", "trains zero tokens");
}

void encoded_free(Encoded *x)
{
    ids_free(&x->ids);
    free(x->train);
    buf_free(&x->text);
    buf_free(&x->other);
}

// ---- prompts --------------------------------------------------------------------------------------------------------
static int chat_prompt(const Encoder *e, const Example *x, Ids *ids, Buf *reference, const char *place)
{
    Buf text = {0};
    size_t n = json_array_size(x->messages), given = n;
    while (given && !is_assistant(json_array_get(x->messages, given - 1))) given--;
    given =
        given && !(e->prompt_only && given < n) ? given - 1 : n; // a row that ends with a question asks that question
    if (given < n) message_text(json_array_get(x->messages, given), reference);
    int status = example_render(e, x, x->messages, given, true, &text, place);
    if (status == OK) status = tokenizer_encode(e->tok, text.data, text.len, false, false, ids);
    buf_free(&text);
    return status < 0 ? status : check_ids(e, ids, place);
}

int example_prompt(const Encoder *e, const Example *x, Ids *ids, Buf *reference, const char *place)
{
    if (x->kind == EXAMPLE_IDS || !x->prompt.len) {
        if (x->kind != EXAMPLE_CHAT)
            return fail(E_INPUT, place, "generation takes messages, {\"prompt\"} or {\"instruction\"} lines",
                        "a line without a prompt to complete");
        TRY(need_tokenizer(e, place));
        return chat_prompt(e, x, ids, reference, place);
    }
    TRY(need_tokenizer(e, place));
    TRY(tokenizer_encode(e->tok, x->prompt.data, x->prompt.len, true, false, ids));
    if (ids->n && ids->id[ids->n - 1] == tokenizer_eos(e->tok))
        ids->n--; // from the post-processor: a prompt is not at its end
    buf_put(reference, x->completion.data, x->completion.len);
    return check_ids(e, ids, place);
}
