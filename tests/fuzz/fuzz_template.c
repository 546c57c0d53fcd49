// fuzz: libs=runtime_text
// Any bytes as a chat template, rendered with one conversation that has tools: no crash, no more output than the limit, and
// every failure has a place and a reason.
#include "text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char conversation[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be\\u00e9 brief.\"},{\"role\":\"user\",\"content\":\" 1 < 2? "
    "\\n\"},"
    "{\"role\":\"assistant\",\"content\":\"<think>x</think>yes\",\"tool_calls\":[{\"id\":\"abcdef123\",\"function\":"
    "{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,null]}}}]},{\"role\":\"tool\",\"content\":\"{}\"}],"
    "\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"array\"}}}}}],"
    "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static json_t *vars;
    if (!vars) vars = json_loads(conversation, 0, NULL);
    Template *t;
    Buf out = {0};
    error_clear();
    int status = template_parse(&t, (const char *)data, bytes, "t.jinja");
    if (status == OK) {
        status = template_render(t, vars, &out);
        template_free(t);
    }
    if (status < 0) ASSERT(error_last()->code == E_INPUT && error_last()->place[0] && error_last()->what[0]);
    ASSERT(out.len <= 4u << 20);
    buf_free(&out);
    return 0;
}
