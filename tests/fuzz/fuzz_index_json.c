// fuzz: libs=runtime_io
// Any bytes as model.safetensors.index.json: no crash, and no shard outside the index's own directory.
#include "io/weights_impl.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    json_t *map;
    char **shards;
    int n;
    error_clear();
    if (safetensors_index_parse(&map, &shards, &n, (const char *)data, bytes, "index") < 0) {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0]);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        ASSERT(!strchr(shards[i], '/') && shards[i][0] != '.');
        ASSERT(i == 0 || strcmp(shards[i - 1], shards[i]) < 0);
    }
    free(shards);
    json_decref(map);
    return 0;
}
