// fuzz: libs=runtime_io
// Any bytes as the text of a MANIFEST, with the right digest after them: no crash; what is accepted has its tensors and leaves
// inside of the file, and prints as it was read.
#include "io/manifest.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_accepted(const Manifest *m, const Buf *text)
{
    Buf again = {0};
    for (size_t i = 0; i < m->n_tensors; i++)
        ASSERT(m->tensors[i].offset + m->tensors[i].bytes <= m->file_bytes && *m->tensors[i].name);
    for (size_t i = 0; i < m->n_leaves; i++) {
        const ManifestLeaf *leaf = &m->leaves[i];
        ASSERT(leaf->offset + leaf->bytes <= m->file_bytes && leaf->tensor < (int)m->n_tensors);
    }
    manifest_print(m, &again);
    ASSERT(again.len == text->len && memcmp(again.data, text->data, text->len) == 0);
    buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Manifest m;
    Buf text = {0};
    buf_put(&text, data, bytes);
    buf_printf(&text, "end %016llx\n", (unsigned long long)hash64(text.data, text.len, 0));
    error_clear();
    char *copy = xmalloc(text.len + 1);
    memcpy(copy, text.data, text.len + 1);
    if (manifest_parse(&m, "MANIFEST", copy, text.len) == OK) {
        check_accepted(&m, &text);
        manifest_free(&m);
    } else {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0]);
    }
    buf_free(&text);
    return 0;
}
