// template: an interpreter for the Jinja subset that published chat templates use; output equal to transformers'
// apply_chat_template (trim_blocks and lstrip_blocks on, sandboxed). Limits protect against hostile templates: nesting depth,
// output bytes and evaluation steps; no attribute access beyond the values' own fields, no include, no import.
// A Template is immutable after parsing: any number of threads may render it.
#pragma once
#include "kernels.h"
#include <jansson.h>

typedef struct Template Template;
// place: for errors ("chat_template.jinja"), which read PLACE:LINE
int template_parse(Template **out, const char *source, size_t bytes, const char *place);
void template_free(Template *t);
// vars: a JSON object with at least "messages" (array), "add_generation_prompt" (bool), "bos_token", "eos_token" (strings);
// anything else ("tools", "date_string", ...) is passed on. E_INPUT when the template raises (its message in the error).
int template_render(const Template *t, const json_t *vars, Buf *out);
// The model's own: chat_template.jinja, tokenizer_config.json's chat_template (string or list with a "default"), or GGUF's
// tokenizer.chat_template. *source is malloc'ed; NULL (and OK) when the model has none.
int template_find(const char *model_path, char **source, char **place);
