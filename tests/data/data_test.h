// data_test: what the tests of runtime/data share: the small tokenizer of tests/golden/data, its templates, and files that exist
// for one test.
#pragma once
#include "data/data.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h> // last: its fail() hides ours

const Tokenizer *test_tokenizer(void);     // bos <s>, eos </s>; lives until the program ends
const char *test_no_model(void);           // a directory without tokenizer and template
const char *test_golden(const char *name); // path of a file of tests/golden/data
char *test_template(const char *name);     // its text; caller frees
const char *test_file(const char *text);   // a file with this text; its path, good until the next call
const char *test_file_bytes(const char *text, size_t bytes);
Dataset *test_dataset(const char *lines,
                      const DataConfig *c);       // c->path is set to a test_file; fails the test on an error
Dataset *test_rows(const int *lengths, int n);    // n {"tokens"} rows: row i holds the ids i, 0, 1, 2, ...
char *test_text(const Row *r, bool trained_only); // decoded ids; caller frees
