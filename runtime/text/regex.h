// regex: the regular expressions that tokenizer.json files carry, written for the engine the `tokenizers` package links
// (Oniguruma, Ruby syntax), run by PCRE2. Where the two read a construct differently it is rewritten; what cannot be is refused.
#pragma once
#include "base.h"

typedef struct Regex Regex;           // immutable: any number of threads may search with it
typedef struct RegexMatch RegexMatch; // one per searching thread

// literal: the pattern is plain text. place is for errors. E_INPUT names the construct that is not supported.
int regex_compile(Regex **out, const char *pattern, size_t bytes, bool literal, const char *place);
void regex_free(Regex *r); // NULL is fine

RegexMatch *regex_match_new(void);
void regex_match_free(RegexMatch *m); // NULL is fine
// The first match in text[from..bytes): 1 and [*begin, *end), 0 when there is none, E_INPUT when the search exceeds its
// step limit. text must be valid UTF-8; what lies before `from` is seen by look-behind.
int regex_find(const Regex *r, RegexMatch *m, const char *text, size_t bytes, size_t from, size_t *begin, size_t *end);
