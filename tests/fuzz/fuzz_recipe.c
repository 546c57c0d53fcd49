// fuzz: libs=runtime_config
// Any bytes as a recipe: no crash, and what is accepted writes YAML that reads back to the same YAML.
#include "config/recipe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Recipe r, again;
    Buf first = {0}, second = {0};
    error_clear();
    if (recipe_parse(&r, (const char *)data, bytes, "r", NULL, 0) < 0) return 0;
    recipe_write_yaml(&r, &first);
    ASSERT(recipe_parse(&again, first.data, first.len, "r", NULL, 0) == OK);
    recipe_write_yaml(&again, &second);
    ASSERT(streq(first.data, second.data));
    recipe_free(&r);
    recipe_free(&again);
    buf_free(&first);
    buf_free(&second);
    return 0;
}
