// mask: which tokens of a conversation are trained.
//
// A conversation is rendered once and tokenized once (encode.c); here it is found out which bytes of that text each assistant turn
// owns, and a token is trained when it begins inside them. Ids never decide: an end-of-turn token that is also the padding, or one that the
// user typed, is judged by where it stands.
//
// Where a turn begins: at the end of the prompt that the model would be given there, that is, the messages before it rendered
// with the generation prompt. That prompt has to be a literal prefix of the text. Many templates are not prefix-stable (they drop
// the thinking of earlier turns, or open a thinking block in the generation prompt only); there the turn begins with its content.
// Where its content ends: the content usually stands right after the prompt. If not, the conversation is rendered a second time
// with a mark, a character that occurs nowhere in it, behind each assistant content; the two texts must agree but for the marks
// and for white space that the template trims. Neither guess is ever taken unverified: if nothing fits, the row is refused.
// Where the turn ends: with the first special token after its content, the end-of-turn token. White space that templates put
// behind that is not trained. A turn with tool calls ends with the last special token of what it renders to.
#include "data/data_impl.h"
#include <stdlib.h>
#include <string.h>

#define SPACE     " \t\r\n" // what templates trim
#define MASK_HINT "train with loss_on: all, or give the row as plain \"prompt\" and \"completion\""

typedef struct Conversation { // one being masked; everything is borrowed but marks
    const Encoder *e;
    const Example *x;
    Encoded *out;
    const char *place;
    size_t *content_end; // (messages) found by marks, 0 for other roles; NULL until asked for
} Conversation;

typedef struct Turn { // byte offsets in the rendered text
    size_t start, content_end;
    size_t end; // of a turn with tool calls: where its own text ends; 0 for others
} Turn;

static bool has_prefix(const Buf *text, size_t at, const char *s, size_t n)
{
    return at <= text->len && n <= text->len - at && !memcmp(text->data + at, s, n);
}

// ---- rendering ------------------------------------------------------------------------------------------------------
static int render(const Conversation *v, const json_t *messages, size_t n, bool generation_prompt, Buf *out)
{
    return example_render(v->e, v->x, messages, n, generation_prompt, out, v->place);
}

// How much of messages[0, n) rendered on its own is how the whole text begins, in *common; returned when that is all of it, else
// 0. Templates may refuse to render a part of a conversation: then nothing is.
static size_t rendered_prefix(Conversation *v, size_t n, bool generation_prompt, size_t *common)
{
    const Buf *part = &v->out->other, *text = &v->out->text;
    *common = 0;
    if (render(v, v->x->messages, n, generation_prompt, &v->out->other) < 0) {
        error_clear();
        return 0;
    }
    while (*common < part->len && *common < text->len && part->data[*common] == text->data[*common]) ++*common;
    return *common == part->len ? part->len : 0;
}

// ---- marks ----------------------------------------------------------------------------------------------------------
// One of the 32 noncharacters U+FDD0..U+FDEF that does not occur in the text.
static int choose_mark(const Buf *text, char mark[4])
{
    for (int i = 0; i < 32; i++) {
        memcpy(mark, "\xEF\xB7\x90", 4);
        mark[2] = (char)(0x90 + i);
        if (!strstr(text->data, mark)) return OK;
    }
    return E_INPUT;
}

static json_t *marked_content(const json_t *content, const char *mark)
{
    if (json_is_string(content)) return json_sprintf("%s%s", json_string_value(content), mark);
    json_t *parts = json_deep_copy(content), *last = json_array_get(parts, json_array_size(parts) - 1);
    json_object_set_new(last, "text", json_sprintf("%s%s", json_string_value(json_object_get(last, "text")), mark));
    return parts;
}

static bool has_content(const json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    return json_is_array(content) || json_string_length(content) > 0;
}

static json_t *marked_messages(const Conversation *v, const char *mark)
{
    json_t *marked = json_array();
    for (size_t i = 0; i < json_array_size(v->x->messages); i++) {
        json_t *message = json_copy(json_array_get(v->x->messages, i));
        if (is_assistant(message) && has_content(message))
            json_object_set_new(message, "content", marked_content(json_object_get(message, "content"), mark));
        json_array_append_new(marked, message);
    }
    return marked;
}

// Walks the marked text and the real one together. trimmed: white space before a mark is missing in the real text.
static bool align_marks(const Conversation *v, const Buf *marked, const char *mark, bool trimmed)
{
    const char *piece = marked->data, *next;
    size_t at = 0, i = 0, n = json_array_size(v->x->messages);
    for (;; piece = next + strlen(mark), i++) {
        next = strstr(piece, mark);
        size_t bytes = next ? (size_t)(next - piece) : strlen(piece);
        while (next && trimmed && bytes && strchr(SPACE, piece[bytes - 1])) bytes--;
        if (!has_prefix(&v->out->text, at, piece, bytes)) return false;
        at += bytes;
        if (!next) break;
        while (i < n &&
               !(is_assistant(json_array_get(v->x->messages, i)) && has_content(json_array_get(v->x->messages, i))))
            i++;
        if (i == n) return false; // a content that is rendered twice
        v->content_end[i] = at;
    }
    for (; i < n; i++)
        if (is_assistant(json_array_get(v->x->messages, i)) && has_content(json_array_get(v->x->messages, i)))
            return false;
    return at == v->out->text.len;
}

static int find_marks(Conversation *v)
{
    char mark[4];
    Buf marked = {0};
    v->content_end = xcalloc(json_array_size(v->x->messages), sizeof *v->content_end);
    int status = choose_mark(&v->out->text, mark);
    if (status == OK) {
        json_t *messages = marked_messages(v, mark);
        status = render(v, messages, json_array_size(messages), false, &marked);
        json_decref(messages);
    }
    bool found = status == OK && (align_marks(v, &marked, mark, false) || align_marks(v, &marked, mark, true));
    buf_free(&marked);
    if (found) return OK;
    error_clear();
    return fail(E_INPUT, v->place, MASK_HINT,
                "the chat template changes or drops an assistant turn: cannot tell which tokens are its own");
}

// ---- turns ----------------------------------------------------------------------------------------------------------
// A message's content, put in v->out->other: its core without the white space around it, and the white space behind it.
typedef struct Content {
    const char *core, *tail;
    size_t core_bytes, tail_bytes;
} Content;

static Content content_of(const Conversation *v, const json_t *message)
{
    Buf *b = &v->out->other;
    b->len = 0;
    buf_put(b, "", 0);
    message_text(message, b);
    size_t first = strspn(b->data, SPACE), last = b->len;
    while (last > first && strchr(SPACE, b->data[last - 1])) last--;
    return (Content){b->data + first, b->data + last, last - first, b->len - last};
}

// Does the content stand right behind `at`, but for white space? Then where it ends, else 0.
static size_t content_at(const Conversation *v, const json_t *message, size_t at)
{
    const Buf *text = &v->out->text;
    Content c = content_of(v, message);
    at += strspn(text->data + at, SPACE);
    if (!c.core_bytes || !has_prefix(text, at, c.core, c.core_bytes)) return 0;
    at += c.core_bytes;
    return has_prefix(text, at, c.tail, c.tail_bytes) ? at + c.tail_bytes : at;
}

// Does the content stand before `end`, but for white space? Then *start is where it begins.
static bool content_before(const Conversation *v, const json_t *message, size_t end, size_t *start)
{
    const Buf *text = &v->out->text;
    Content c = content_of(v, message);
    while (end && strchr(SPACE, text->data[end - 1])) end--;
    if (!c.core_bytes || c.core_bytes > end || !has_prefix(text, end - c.core_bytes, c.core, c.core_bytes))
        return false;
    *start = end - c.core_bytes;
    return true;
}

static bool is_space(const Buf *text, size_t from, size_t to)
{
    while (from < to && strchr(SPACE, text->data[from])) from++;
    return from == to;
}

// The start of the token that holds byte `at`.
static size_t token_floor(const Ids *ids, size_t at)
{
    int low = 0, high = ids->n; // of the tokens before `high` and from `low` on, low begins at or before `at`
    while (high - low > 1) {
        int middle = (low + high) / 2;
        *((size_t)ids->start[middle] <= at ? &low : &high) = middle;
    }
    return low < ids->n ? (size_t)ids->start[low] : 0;
}

// A template that knows nothing of tool calls drops them in silence, and the turn would teach to say nothing.
static int check_calls(const Conversation *v, size_t i, const Turn *turn)
{
    const json_t *calls = json_object_get(json_array_get(v->x->messages, i), "tool_calls");
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k), *function = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(function ? function : call, "name"));
        if (!name || !strstr(v->out->text.data + turn->start, name))
            return fail(E_INPUT, v->place, "use a model whose template renders tool calls, or write them as content",
                        "the chat template does not render the tool calls of message %zu", i + 1);
    }
    return OK;
}

// Where a turn begins that does not follow its prompt, of which the text has `common` bytes: with its content, and the white
// space before it that the prompt leaves to it. Content that the template alters cannot be found; if the messages before the
// turn stand unaltered, the turn begins where the text leaves the generation prompt.
static int find_start(Conversation *v, size_t i, size_t common, Turn *out)
{
    const Buf *text = &v->out->text;
    const json_t *message = json_array_get(v->x->messages, i);
    size_t ignored;
    bool has_text = has_content(message);
    if (has_text && content_before(v, message, out->content_end, &out->start)) {
        if (common < out->start && is_space(text, common, out->start)) out->start = common;
        return OK;
    }
    size_t before = rendered_prefix(v, i, false, &ignored);
    out->start = common = token_floor(&v->out->ids, common); // "<think>" and "</s>" agree in a byte
    if (before && common > before && (!has_text || common < out->content_end)) return OK;
    return fail(E_INPUT, v->place, MASK_HINT,
                "cannot tell where the assistant turn in message %zu begins in the rendered text", i + 1);
}

static int locate_turn(Conversation *v, size_t i, Turn *out)
{
    const json_t *message = json_array_get(v->x->messages, i);
    const Buf *text = &v->out->text;
    size_t common, ignored, prompt = rendered_prefix(v, i, true, &common);
    bool has_text = has_content(message), calls = json_array_size(json_object_get(message, "tool_calls")) > 0;
    *out = (Turn){.start = prompt, .content_end = prompt};
    if (has_text && !(prompt && (out->content_end = content_at(v, message, prompt)))) {
        if (!v->content_end) TRY(find_marks(v));
        out->content_end = v->content_end[i];
        // Without a generation prompt, what stands between is the turn's header; with one, it is the model's to write.
        if (prompt && rendered_prefix(v, i, false, &ignored) == prompt) prompt = 0;
    }
    if (!prompt) TRY(find_start(v, i, common, out));
    if (!has_text) out->content_end = out->start;
    if (calls) {
        TRY(check_calls(v, i, out));
        out->end = rendered_prefix(v, i + 1, false, &ignored);
    }
    while (out->end > out->content_end && strchr(SPACE, text->data[out->end - 1])) out->end--;
    return OK;
}

static bool is_trained_turn(const Example *x, size_t i)
{
    const json_t *message = json_array_get(x->messages, i), *weight = json_object_get(message, "weight");
    return i >= x->trained_from && is_assistant(message) && !(weight && json_number_value(weight) == 0);
}

// ---- tokens ---------------------------------------------------------------------------------------------------------
static bool ends_turn(const Encoder *e, int32_t id)
{
    return tokenizer_is_special(e->tok, id) || id == tokenizer_eos(e->tok);
}

// Trains the tokens of a turn, beginning the search at token *next and leaving it behind the last one. A token that begins
// before the turn is part of the prompt, even if it ends in the turn.
static void train_turn(const Encoder *e, Encoded *out, const Turn *turn, size_t limit, int *next)
{
    const Ids *ids = &out->ids;
    int t = *next, stop = -1;
    while (t < ids->n && (size_t)ids->start[t] < turn->start) t++;
    if (t < ids->n && (size_t)ids->start[t] > turn->start) out->flags |= ROW_STRADDLES;
    int first = t;
    for (; t < ids->n && (size_t)ids->start[t] < turn->content_end; t++) continue;
    int content = t;
    for (; t < ids->n && (size_t)ids->start[t] < limit && (stop < 0 || turn->end); t++)
        if (ends_turn(e, ids->id[t])) stop = t;
    if (stop < 0) out->flags |= ROW_ENDLESS;
    *next = stop >= 0 ? stop + 1 : turn->end ? t : content;
    memset(out->train + first, 1, (size_t)MAX(*next - first, 0));
}

static int mask_turns(Conversation *v)
{
    const Encoder *e = v->e;
    const Ids *ids = &v->out->ids;
    size_t n = json_array_size(v->x->messages);
    size_t seen =
        ids->n > e->max_tokens ? (size_t)ids->start[e->max_tokens] : v->out->text.len + 1; // the rest is cut off
    int next = 0;
    bool any = false;
    Turn turn = {0}, following;
    for (size_t i = 0; i < n && turn.start < seen; i++) {
        if (!is_trained_turn(v->x, i)) continue;
        TRY(locate_turn(v, i, &following));
        if (any) train_turn(e, v->out, &turn, turn.end ? turn.end : following.start, &next);
        turn = following;
        any = true;
    }
    if (!any)
        return fail(E_INPUT, v->place, "a conversation needs an answer to learn from", "no assistant turn to train on");
    train_turn(e, v->out, &turn, turn.end ? turn.end : v->out->text.len, &next);
    return OK;
}

int example_mask(const Encoder *e, const Example *x, Encoded *out, const char *place)
{
    Conversation v = {.e = e, .x = x, .out = out, .place = place};
    int status = mask_turns(&v);
    free(v.content_end);
    return status;
}
