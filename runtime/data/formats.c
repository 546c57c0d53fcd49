// formats: what a line of a data file may look like. One table row per format says which key gives it away, how it becomes
// tokens, and which function brings it into the form that mask.c encodes: a conversation, plain text, or ids.
//
// Conventions followed: OpenAI's messages (with "weight"), TRL's prompt/completion (plain strings are concatenated, with no chat
// template), Alpaca's instruction/input/output, ShareGPT's conversations.
#include "data/data_impl.h"
#include <string.h>

static int read_messages(Example *x, const json_t *row, const FormatContext *c);
static int read_completion(Example *x, const json_t *row, const FormatContext *c);
static int read_instruction(Example *x, const json_t *row, const FormatContext *c);
static int read_conversations(Example *x, const json_t *row, const FormatContext *c);
static int read_text(Example *x, const json_t *row, const FormatContext *c);
static int read_tokens(Example *x, const json_t *row, const FormatContext *c);

// In the order in which a line is tried: a line may have keys of several, and the more telling one comes first.
static const Format formats[] = {
    {"messages", "messages", "{\"messages\": [{\"role\", \"content\"}, ...]}",
     "through the chat template; every assistant turn is trained, except those with \"weight\": 0", read_messages},
    {"conversations", "conversations", "{\"conversations\": [{\"from\", \"value\"}, ...], \"system\"?}",
     "as messages: human is the user, gpt the assistant", read_conversations},
    {"completion", "prompt", "{\"prompt\", \"completion\"}",
     "strings: prompt + completion + eos as plain text, completion and eos trained; lists of messages: "
     "through the chat "
     "template, the completion's assistant turns trained",
     read_completion},
    {"instruction", "instruction", "{\"instruction\", \"input\"?, \"output\", \"system\"?}",
     "as messages: instruction, blank line and input are the user's turn, output the assistant's; without a "
     "chat template "
     "plain text, parts set apart by blank lines, output and eos trained",
     read_instruction},
    {"tokens", "tokens", "{\"tokens\": [ids]}", "as they are; every token but the first is trained", read_tokens},
    {"text", "text", "{\"text\"}", "plain text + eos; every token but the first is trained", read_text},
};

// ---- the table's readers --------------------------------------------------------------------------------------------
const Format *format_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(formats); i++)
        if (streq(formats[i].name, name)) return &formats[i];
    return NULL;
}

void dataset_formats_help(Buf *out)
{
    for (size_t i = 0; i < COUNT_OF(formats); i++)
        buf_printf(out, "  %-14s %s\n  %-14s   %s\n", formats[i].name, formats[i].shape, "", formats[i].rule);
}

static const char *keys_of(const json_t *row)
{
    char text[256] = "";
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)row, key, value)
    {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s\"%.40s\"", used ? ", " : "", key);
    }
    return tmpf("%s", *text ? text : "none");
}

int format_detect(const Format **out, const json_t *row, const char *place)
{
    if (json_object_get(row, "chosen"))
        return fail(E_INPUT, place, "objective sft takes {\"prompt\", \"completion\"}", "a row of preferences");
    for (size_t i = 0; i < COUNT_OF(formats); i++) {
        if (!json_object_get(row, formats[i].key)) continue;
        *out = &formats[i];
        return OK;
    }
    return fail(E_INPUT, place,
                "one of: messages, conversations, prompt + completion, instruction + output, text, tokens",
                "unknown data format; keys: %s", keys_of(row));
}

int format_read(const Format *f, Example *x, const json_t *row, const FormatContext *c)
{
    *x = (Example){.row = row};
    if (!json_object_get(row, f->key))
        return fail(E_INPUT, c->place,
                    "all lines of a file have one format, data.format or else that of the first line",
                    "no \"%s\": not of the format %s; keys: %s", f->key, f->name, keys_of(row));
    return f->read(x, row, c);
}

void example_free(Example *x)
{
    json_decref(x->messages);
    buf_free(&x->prompt);
    buf_free(&x->completion);
}

// ---- strings --------------------------------------------------------------------------------------------------------
static bool is_empty(const json_t *string)
{
    const char *s = json_string_value(string);
    return !s[strspn(s, " \t\r\n")];
}

// A string that has to be there and say something.
static int need_text(const json_t *row, const char *key, const char *place, const json_t **out)
{
    const json_t *value = json_object_get(row, key);
    if (!value) return fail(E_INPUT, place, NULL, "no \"%s\"; keys: %s", key, keys_of(row));
    if (!json_is_string(value)) return fail(E_INPUT, place, NULL, "\"%s\" is not a string", key);
    if (is_empty(value)) return fail(E_INPUT, place, "remove the line", "\"%s\" is empty", key);
    *out = value;
    return OK;
}

// A string that may be absent, null or empty: then *out is NULL.
static int optional_text(const json_t *row, const char *key, const char *place, const json_t **out)
{
    const json_t *value = json_object_get(row, key);
    *out = NULL;
    if (!value || json_is_null(value)) return OK;
    if (!json_is_string(value)) return fail(E_INPUT, place, NULL, "\"%s\" is not a string", key);
    if (!is_empty(value)) *out = value;
    return OK;
}

static void put_string(Buf *b, const json_t *string)
{
    buf_put(b, json_string_value(string), json_string_length(string));
}

// ---- messages -------------------------------------------------------------------------------------------------------
bool is_assistant(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && streq(role, "assistant");
}

const json_t *last_message(const Example *x)
{
    return json_array_get(x->messages, json_array_size(x->messages) - 1);
}

void message_text(const json_t *message, Buf *out)
{
    const json_t *content = json_object_get(message, "content");
    if (json_is_string(content)) put_string(out, content);
    for (size_t i = 0; i < json_array_size(content); i++)
        put_string(out, json_object_get(json_array_get(content, i), "text"));
}

static int check_role(const json_t *message, const char *place, const char *what)
{
    static const char *const known[] = {"system", "developer", "user", "assistant", "tool", "function"};
    const json_t *role = json_object_get(message, "role");
    if (!role) return fail(E_INPUT, place, "{\"role\": \"user\", \"content\": \"...\"}", "%s has no \"role\"", what);
    for (size_t i = 0; i < COUNT_OF(known) && json_is_string(role); i++)
        if (streq(json_string_value(role), known[i])) return OK;
    return fail(E_INPUT, place, "roles: system, developer, user, assistant, tool, function",
                "%s has an unknown role \"%.60s\"", what,
                json_is_string(role) ? json_string_value(role) : "(not a string)");
}

static int check_parts(const json_t *parts, const char *place, const char *what)
{
    bool says_something = false;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i), *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || !streq(type, "text") || !json_is_string(text))
            return fail(E_INPUT, place, "{\"type\": \"text\", \"text\": \"...\"}",
                        "%s has a content part that is not text", what);
        says_something |= !is_empty(text);
    }
    return says_something ? OK : fail(E_INPUT, place, "remove the line", "%s has empty content", what);
}

// Only a tool's answer, or an assistant turn that calls tools, may say nothing.
static int check_content(const json_t *message, const char *place, const char *what)
{
    const json_t *content = json_object_get(message, "content");
    const char *role = json_string_value(json_object_get(message, "role"));
    bool calls = json_array_size(json_object_get(message, "tool_calls")) > 0 && is_assistant(message);
    bool may_be_empty = calls || streq(role, "tool") || streq(role, "function");
    if (!content && !calls) return fail(E_INPUT, place, NULL, "%s has no \"content\"", what);
    if (!content || json_is_null(content))
        return calls ? OK : fail(E_INPUT, place, "remove the line", "%s has null content", what);
    if (json_is_array(content)) return check_parts(content, place, what);
    if (!json_is_string(content)) return fail(E_INPUT, place, NULL, "%s has content that is not a string", what);
    if (is_empty(content) && !may_be_empty)
        return fail(E_INPUT, place, "remove the line", "%s has empty content", what);
    return OK;
}

static int check_weight(const json_t *message, const char *place, const char *what)
{
    const json_t *weight = json_object_get(message, "weight");
    bool fine =
        !weight || (json_is_number(weight) && (json_number_value(weight) == 0 || json_number_value(weight) == 1));
    return fine ? OK
                : fail(E_INPUT, place, "0: not trained, 1: trained", "%s has a \"weight\" that is neither 0 nor 1",
                       what);
}

static int append_checked(json_t *to, const json_t *list, const char *key, const char *place)
{
    if (!json_is_array(list)) return fail(E_INPUT, place, NULL, "\"%s\" is not a list of messages", key);
    if (!json_array_size(list)) return fail(E_INPUT, place, "remove the line", "\"%s\" is empty", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *message = json_array_get(list, i);
        char what[64];
        snprintf(what, sizeof what, "message %zu of \"%s\"", i + 1, key);
        if (!json_is_object(message)) return fail(E_INPUT, place, NULL, "%s is not an object", what);
        TRY(check_role(message, place, what));
        TRY(check_content(message, place, what));
        TRY(check_weight(message, place, what));
        json_array_append(to, message);
    }
    return OK;
}

static void append_turn(json_t *to, const char *role, const json_t *content)
{
    json_array_append_new(to, json_pack("{s:s, s:O}", "role", role, "content", content));
}

static int begin_chat(Example *x, const FormatContext *c)
{
    x->kind = EXAMPLE_CHAT;
    x->messages = json_array();
    if (c->chat_error) {
        error_adopt(c->chat_error);
        return c->chat_error->code;
    }
    if (c->has_chat) return OK;
    return fail(E_INPUT, c->place, "set data.template to a Jinja file, or use {\"prompt\", \"completion\"} lines",
                "a conversation, but the model has no chat template");
}

static int read_messages(Example *x, const json_t *row, const FormatContext *c)
{
    TRY(begin_chat(x, c));
    return append_checked(x->messages, json_object_get(row, "messages"), "messages", c->place);
}

// ---- conversations --------------------------------------------------------------------------------------------------
static int append_shared_turn(json_t *to, const json_t *turn, size_t number, const char *place)
{
    static const struct {
        const char *from, *role;
    } roles[] = {{"human", "user"},    {"user", "user"}, {"gpt", "assistant"},   {"assistant", "assistant"},
                 {"system", "system"}, {"tool", "tool"}, {"observation", "tool"}};
    const json_t *from = json_object_get(turn, "from"), *value = json_object_get(turn, "value");
    if (!json_is_string(from))
        return fail(E_INPUT, place, "{\"from\": \"human\", \"value\": \"...\"}", "turn %zu has no \"from\"", number);
    if (!json_is_string(value) || is_empty(value))
        return fail(E_INPUT, place, "remove the line", "turn %zu has %s \"value\"", number,
                    json_is_string(value) ? "an empty"
                    : json_is_null(value) ? "a null"
                                          : "no");
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        if (!streq(json_string_value(from), roles[i].from)) continue;
        append_turn(to, roles[i].role, value);
        return OK;
    }
    return fail(E_INPUT, place, "from: human, gpt, system, tool, user, assistant",
                "turn %zu is from an unknown role \"%.60s\"", number, json_string_value(from));
}

static int append_system(json_t *to, const json_t *row, const char *place)
{
    const json_t *system = NULL;
    TRY(optional_text(row, "system", place, &system));
    if (system) append_turn(to, "system", system);
    return OK;
}

static int read_conversations(Example *x, const json_t *row, const FormatContext *c)
{
    const json_t *turns = json_object_get(row, "conversations");
    TRY(begin_chat(x, c));
    TRY(append_system(x->messages, row, c->place));
    if (!json_array_size(turns))
        return fail(E_INPUT, c->place, "remove the line", "\"conversations\" is not a list of turns");
    for (size_t i = 0; i < json_array_size(turns); i++)
        TRY(append_shared_turn(x->messages, json_array_get(turns, i), i + 1, c->place));
    return OK;
}

// ---- prompt and completion ------------------------------------------------------------------------------------------
static int read_completion_chat(Example *x, const json_t *row, const json_t *completion, const FormatContext *c)
{
    TRY(begin_chat(x, c));
    TRY(append_checked(x->messages, json_object_get(row, "prompt"), "prompt", c->place));
    x->trained_from = json_array_size(x->messages);
    if (!completion && c->prompt_only) return OK;
    return append_checked(x->messages, completion, "completion", c->place);
}

static int read_completion(Example *x, const json_t *row, const FormatContext *c)
{
    const json_t *prompt = json_object_get(row, "prompt"), *completion = json_object_get(row, "completion");
    if (json_is_null(completion) && c->prompt_only) completion = NULL;
    if (json_is_array(prompt)) return read_completion_chat(x, row, completion, c);
    x->kind = EXAMPLE_PLAIN;
    TRY(need_text(row, "prompt", c->place, &prompt));
    put_string(&x->prompt, prompt);
    if (!completion && c->prompt_only) return OK;
    TRY(need_text(row, "completion", c->place, &completion));
    put_string(&x->completion, completion);
    return OK;
}

// ---- instruction, input, output -------------------------------------------------------------------------------------
static void put_paragraph(Buf *b, const json_t *string)
{
    if (!string) return;
    if (b->len) buf_puts(b, "\n\n");
    put_string(b, string);
}

static int read_instruction(Example *x, const json_t *row, const FormatContext *c)
{
    const json_t *instruction = NULL, *input = NULL, *output = NULL, *history = json_object_get(row, "history");
    TRY(need_text(row, "instruction", c->place, &instruction));
    TRY(optional_text(row, "input", c->place, &input));
    if (!c->prompt_only || json_object_get(row, "output")) TRY(need_text(row, "output", c->place, &output));
    if (json_array_size(history))
        return fail(E_INPUT, c->place, "write earlier turns as {\"messages\"}", "\"history\" is not supported");
    if (c->has_chat) {
        TRY(begin_chat(x, c));
        TRY(append_system(x->messages, row, c->place));
        Buf user = {0};
        put_paragraph(&user, instruction);
        put_paragraph(&user, input);
        json_array_append_new(x->messages, json_pack("{s:s, s:s%}", "role", "user", "content", user.data, user.len));
        buf_free(&user);
        if (output) append_turn(x->messages, "assistant", output);
        return OK;
    }
    const json_t *system = NULL;
    TRY(optional_text(row, "system", c->place, &system));
    x->kind = EXAMPLE_PLAIN;
    put_paragraph(&x->prompt, system);
    put_paragraph(&x->prompt, instruction);
    put_paragraph(&x->prompt, input);
    buf_puts(&x->prompt, "\n\n");
    if (output) put_string(&x->completion, output);
    return OK;
}

// ---- text and tokens ------------------------------------------------------------------------------------------------
static int read_text(Example *x, const json_t *row, const FormatContext *c)
{
    const json_t *text = NULL;
    x->kind = EXAMPLE_PLAIN;
    TRY(need_text(row, "text", c->place, &text));
    put_string(&x->completion, text);
    return OK;
}

static int read_tokens(Example *x, const json_t *row, const FormatContext *c)
{
    x->kind = EXAMPLE_IDS;
    x->ids = json_object_get(row, "tokens");
    if (!json_is_array(x->ids)) return fail(E_INPUT, c->place, NULL, "\"tokens\" is not a list of ids");
    return OK;
}
