// gather: output lines that several ranks have made become one file, in order. Private to runtime/.
#pragma once
#include "session.h"

// lines (total): each ends in a newline and is held by exactly one rank; NULL on the others. Rank 0 writes path, atomically.
int gather_lines(Session *s, char *const *lines, int64_t total, const char *path);
