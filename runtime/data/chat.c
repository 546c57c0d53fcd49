// chat: a chat template together with the tokenizer's bos and eos, which templates write into the text. The template is the
// model's own unless the recipe names a file. Rendered text is to be tokenized with no special tokens added.
#include "data/data.h"
#include <stdlib.h>
#include <string.h>

#define TEMPLATE_BYTES ((size_t)1 << 20) // largest template file; published ones are below 20 KB

struct Chat {
    Template *template;
    char *place;
    const char *bos, *eos; // the tokenizer's, which outlives the Chat; "" when there is none
};

static const char *token_text(const Tokenizer *tok, int id)
{
    const char *text = tok && id >= 0 ? tokenizer_token(tok, id) : NULL;
    return text ? text : "";
}

int chat_open_source(Chat **out, const char *source, const char *place, const Tokenizer *tok)
{
    Chat *c = xcalloc(1, sizeof *c);
    c->place = xstrdup(place);
    c->bos = token_text(tok, tok ? tokenizer_bos(tok) : -1);
    c->eos = token_text(tok, tok ? tokenizer_eos(tok) : -1);
    int status = template_parse(&c->template, source, strlen(source), c->place);
    if (status < 0) {
        chat_close(c);
        return status;
    }
    *out = c;
    return OK;
}

int chat_open(Chat **out, const char *model_path, const char *template_path, const Tokenizer *tok)
{
    char *source = NULL, *place = NULL;
    bool own = !template_path || !*template_path || streq(template_path, "auto");
    int status = OK;
    *out = NULL;
    if (own) {
        TRY_DONE(template_find(model_path, &source, &place));
    } else {
        TRY_DONE(file_read(template_path, TEMPLATE_BYTES, &source, NULL));
    }
    if (source) TRY_DONE(chat_open_source(out, source, own ? place : template_path, tok));
done:
    free(source);
    free(place);
    return status;
}

void chat_close(Chat *c)
{
    if (!c) return;
    template_free(c->template);
    free(c->place);
    free(c);
}

// Everything the template can see beside the messages.
static json_t *row_vars(const Chat *c, bool generation_prompt, const json_t *row)
{
    json_t *vars = json_object();
    json_object_update(vars, json_object_get(row, "chat_template_kwargs"));
    static const char *const passed[] = {"tools", "documents"};
    for (size_t i = 0; i < COUNT_OF(passed); i++)
        if (json_object_get(row, passed[i])) json_object_set(vars, passed[i], json_object_get(row, passed[i]));
    json_object_set_new(vars, "add_generation_prompt", json_boolean(generation_prompt));
    json_object_set_new(vars, "bos_token", json_string(c->bos));
    json_object_set_new(vars, "eos_token", json_string(c->eos));
    return vars;
}

int chat_render(const Chat *c, const json_t *messages, size_t n, bool generation_prompt, const json_t *row, Buf *out)
{
    json_t *vars = row_vars(c, generation_prompt, row), *shown = json_array();
    for (size_t i = 0; i < n; i++) json_array_append(shown, json_array_get(messages, i));
    json_object_set_new(vars, "messages", shown);
    int status = template_render(c->template, vars, out);
    json_decref(vars);
    return status;
}
