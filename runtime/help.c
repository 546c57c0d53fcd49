// help: what attune can tell about recipes without reading one.
#include "config/recipe.h"
#include "runtime.h"

static void print(FILE *out, void (*fill)(Buf *b))
{
    Buf b = {0};
    fill(&b);
    fwrite(b.data, 1, b.len, out);
    buf_free(&b);
}

void run_recipe_help(FILE *out)
{
    print(out, recipe_help);
}
void run_recipe_keys(FILE *out)
{
    print(out, recipe_keys);
}
