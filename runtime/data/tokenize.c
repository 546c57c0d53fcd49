// tokenize: `attune tokenize`, what the model sees of a file of texts or conversations, and back.
#include "data/data_impl.h"
#include <stdlib.h>
#include <string.h>

typedef struct Tokenizing {
    const Tokenizer *tok;
    const Chat *chat; // NULL: the model has no template
    bool add_special;
    Ids ids;  // scratch
    Buf text; // scratch
    Buf *out;
} Tokenizing;

static int encode_row(Tokenizing *z, const json_t *row, const char *place)
{
    Example x = {0};
    FormatContext context = {.has_chat = z->chat, .place = place};
    bool chat = json_object_get(row, "messages");
    int status;
    z->ids.n = 0;
    z->text.len = 0;
    if (!chat && !json_is_string(json_object_get(row, "text")))
        return fail(E_INPUT, place, "{\"text\": \"...\"} or {\"messages\": [...]}",
                    "neither a \"text\" nor \"messages\"");
    if (chat) {
        TRY_DONE(format_read(format_find("messages"), &x, row, &context));
        TRY_DONE(chat_render(z->chat, x.messages, json_array_size(x.messages), false, row, &z->text));
    } else {
        const json_t *text = json_object_get(row, "text");
        buf_put(&z->text, json_string_value(text), json_string_length(text));
    }
    TRY_DONE(tokenizer_encode(z->tok, z->text.data, z->text.len, !chat && z->add_special, false, &z->ids));
    buf_puts(z->out, "{\"ids\": [");
    for (int i = 0; i < z->ids.n; i++) buf_printf(z->out, i ? ", %d" : "%d", z->ids.id[i]);
    buf_puts(z->out, "]}\n");
done:
    example_free(&x);
    return status;
}

static int decode_row(Tokenizing *z, const json_t *row, const char *place)
{
    const json_t *ids = json_object_get(row, "ids");
    int limit = tokenizer_vocab_size(z->tok), n = (int)json_array_size(ids);
    if (!json_is_array(ids)) return fail(E_INPUT, place, "{\"ids\": [...]}", "no list \"ids\"");
    int32_t *id = xmalloc((size_t)MAX(n, 1) * sizeof *id);
    int status = OK;
    for (int i = 0; i < n && status == OK; i++) {
        const json_t *value = json_array_get(ids, (size_t)i);
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= limit)
            status = fail(E_INPUT, place, NULL, "token %d is not an id from 0 to %d", i, limit - 1);
        else
            id[i] = (int32_t)json_integer_value(value);
    }
    z->text.len = 0;
    if (status == OK) status = tokenizer_decode(z->tok, id, n, false, &z->text);
    if (status == OK) {
        buf_puts(z->out, "{\"text\": ");
        buf_json_string(z->out, z->text.data, z->text.len);
        buf_puts(z->out, "}\n");
    }
    free(id);
    return status;
}

static int each_line(Tokenizing *z, Jsonl *j, bool decode)
{
    for (;;) {
        TRY(jsonl_next(j));
        if (!j->n) return OK;
        for (int i = 0; i < j->n; i++) {
            char place[512];
            snprintf(place, sizeof place, "%s:%lld", j->path, (long long)j->line[i].number);
            json_t *row = NULL;
            TRY(jsonl_parse(&row, j->line[i].text, j->line[i].bytes, place));
            int status = decode ? decode_row(z, row, place) : encode_row(z, row, place);
            json_decref(row);
            TRY(status);
        }
    }
}

int tokenize_file(const Tokenizer *tok, const char *model_path, const char *path, const char *out, bool decode,
                  bool add_special)
{
    Buf text = {0};
    Chat *chat = NULL;
    Tokenizing z = {.tok = tok, .add_special = add_special, .out = &text};
    Jsonl j = {.fd = -1};
    int status;
    if (!decode) TRY_DONE(chat_open(&chat, model_path, "auto", tok));
    z.chat = chat;
    TRY_DONE(jsonl_open(&j, path));
    TRY_DONE(each_line(&z, &j, decode));
    TRY_DONE(file_write_atomic(out, text.data, text.len));
done:
    jsonl_close(&j);
    chat_close(chat);
    ids_free(&z.ids);
    buf_free(&z.text);
    buf_free(&text);
    return status;
}
