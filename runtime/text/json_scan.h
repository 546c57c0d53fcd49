// json_scan: reads the two big members of a tokenizer file, vocabulary and merges, straight from the JSON text. As trees of
// values they would cost most of the program's start-up time; everything else in the file goes through jansson.
#pragma once
#include "base.h"

typedef struct JsonScan {
    const char *p, *end;
    bool bad; // malformed: every later call reports failure
    Buf text; // the last string that held escapes
} JsonScan;
void json_scan_free(JsonScan *s);

// The next character that is no white space, or 0 at the end. scan_take: whether it is c; if so it is passed.
char scan_peek(JsonScan *s);
bool scan_take(JsonScan *s, char c);
bool scan_string(JsonScan *s, const char **text,
                 size_t *bytes); // valid until the next call; NUL characters are refused
bool scan_int(JsonScan *s, int64_t *value);
// Between elements: call before each one with the closing bracket; false when it has come (and is passed) or all is bad.
bool scan_more(JsonScan *s, char close, bool *first);

// A stretch of the text that is the value of a member.
typedef struct JsonRange {
    const char *begin, *end; // NULL: no such member
} JsonRange;
// Finds members outer.a and outer.b of the object in text[0..bytes), without checking what it passes over.
void json_find_members(const char *text, size_t bytes, const char *outer, const char *a, const char *b, JsonRange *at_a,
                       JsonRange *at_b);
