// facts: a JSON object for people: "key   value" lines, then a table for each array of objects. For `attune
// inspect`, whose --json prints the same object as it is.
#pragma once
#include "kernels.h"
#include <jansson.h>

// Integers under a key that ends in "bytes", and "parameters", are shown in units. Control characters become
// '?': what is shown may come from anyone's files.
void facts_print(json_t *facts, FILE *out);
