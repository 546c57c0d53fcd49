// Every recipe of launch/recipes reads without error, names data that is there, and says how to run itself.
#include "config/recipe.h" // before cmocka.h, which has a macro named fail
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

static const char *folder;

// Paths of shipped recipes are relative to the root of the tree, two levels above launch/recipes.
static void must_exist(const char *recipe, const char *path)
{
    if (*path && !path_exists(tmpf("%s/../../%s", folder, path))) fail_msg("%s: no such file: %s", recipe, path);
}

static void check_recipe(const char *file)
{
    Recipe r;
    char *text;
    error_clear();
    if (recipe_load(&r, file, NULL, 0) < 0) fail_msg("%s: %s", error_last()->place, error_last()->what);
    must_exist(file, r.data.train);
    must_exist(file, r.data.valid);
    must_exist(file, r.data.test);
    recipe_free(&r);
    assert_int_equal(file_read(file, 1 << 20, &text, NULL), OK);
    const char *name = strstr(file, "launch/recipes/");
    assert_non_null(name);
    if (*text != '#' || !strstr(text, tmpf("build/attune train %s", name)))
        fail_msg("%s does not say how it is run", file);
    free(text);
}

static void test_shipped_recipes(void **state)
{
    (void)state;
    glob_t found;
    assert_int_equal(glob(tmpf("%s/*.yaml", folder), 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= 5);
    for (size_t i = 0; i < found.gl_pathc; i++) check_recipe(found.gl_pathv[i]);
    globfree(&found);
}

int main(int argc, char **argv)
{
    assert_true(argc == 2);
    folder = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shipped_recipes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
