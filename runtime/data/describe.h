// describe: what a data file is, without a model: for `attune inspect`.
#pragma once
#include <jansson.h>

// Sets format ("unknown" when no format of formats.c fits the first line), rows, bytes, longest_line_bytes
// and keys (of all lines: how many have each) of facts. E_INPUT names FILE:LINE of a line that is not a JSON
// object.
int dataset_describe(const char *path, json_t *facts);
