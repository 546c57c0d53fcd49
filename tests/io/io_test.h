// io_test: what the tests of model files share: a scratch directory, files in it, and errors as text.
#pragma once
#define _GNU_SOURCE
#include "io/weights.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h> // last: its fail() hides ours

#define GOLDEN TEST_DIR "/../golden/io/"

static char scratch[] = "/tmp/attune-io-XXXXXX";

static inline int scratch_make(void **state)
{
    (void)state;
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int scratch_remove(void **state)
{
    (void)state;
    return system(tmpf("rm -r %s", scratch));
}

static inline char *scratch_path(const char *name)
{
    return xasprintf("%s/%s", scratch, name);
}

static inline void scratch_put(const char *name, const void *data, size_t bytes)
{
    char *path = scratch_path(name);
    unlink(path); // some file systems flush a file that was emptied and written anew
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
    free(path);
}

// Checks that status is E_INPUT and that the record says `telling`, in place, what or hint; clears the record.
static inline void assert_input_error(int status, const char *label, const char *telling)
{
    const ErrorRecord *e = error_last();
    char *all = xasprintf("%s: %s | %s", e->place, e->what, e->hint);
    if (status != E_INPUT || !strstr(all, telling))
        fail_msg("%s: status %d, error \"%s\" does not say \"%s\"", label, status, all, telling);
    free(all);
    error_clear();
}

static inline Weights *weights_must_open(const char *path)
{
    Weights *w = NULL;
    if (weights_open(&w, path) < 0) fail_msg("%s: %s", error_last()->place, error_last()->what);
    return w;
}

static inline int64_t rows_of(const TensorInfo *t)
{
    return t->ndim ? t->shape[0] : 1;
}
static inline int64_t row_elements(const TensorInfo *t)
{
    int64_t n = 1;
    for (int d = 1; d < t->ndim; d++) n *= t->shape[d];
    return n;
}
