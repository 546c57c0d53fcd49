// fuzz: libs=runtime_text
// Input: tokenizer.json, a NUL, a text. Any bytes: no crash; whatever opens can encode the text and decode what came out, and
// every id is in the vocabulary and every offset in the text.
#include "text/tokenizer.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_ids(const Tokenizer *t, const Ids *ids, size_t bytes)
{
    for (int i = 0; i < ids->n; i++) {
        ASSERT(tokenizer_token(t, ids->id[i]));
        ASSERT(ids->start[i] >= 0 && (size_t)ids->start[i] <= bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const uint8_t *nul = bytes ? memchr(data, 0, bytes) : NULL;
    size_t json = nul ? (size_t)(nul - data) : bytes, text = nul ? bytes - json - 1 : 0;
    Tokenizer *t;
    error_clear();
    if (tokenizer_open_json(&t, (const char *)data, json, "tokenizer.json") < 0) {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0] && !t);
        return 0;
    }
    Ids ids = {0};
    Buf out = {0};
    if (tokenizer_encode(t, (const char *)data + bytes - text, text, true, true, &ids) == OK) {
        check_ids(t, &ids, text);
        if (tokenizer_decode(t, ids.id, ids.n, false, &out) == OK)
            ASSERT(utf8_valid(out.data ? out.data : "", out.len, NULL));
    }
    buf_free(&out);
    ids_free(&ids);
    tokenizer_free(t);
    return 0;
}
