// unicode: code points, categories, case and normal forms, for the tokenizer and the chat templates. Built on utf8proc.
#pragma once
#include "base.h"

// The code point at s[*i], which must start a valid UTF-8 sequence; *i moves behind it.
static inline uint32_t utf8_next(const char *s, int32_t *i)
{
    const unsigned char *p = (const unsigned char *)s + *i;
    if (p[0] < 0x80) {
        *i += 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *i += 2;
        return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    }
    if (p[0] < 0xF0) {
        *i += 3;
        return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    }
    *i += 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}
static inline bool utf8_is_start(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}
int utf8_encode(uint32_t cp, char out[4]);        // returns its bytes, 1 to 4
int32_t utf8_count(const char *s, int32_t bytes); // code points
// Appends bytes as UTF-8; each maximal ill-formed part becomes U+FFFD (as Rust's from_utf8_lossy and Python's "replace").
void utf8_put_lossy(Buf *out, const char *bytes, size_t n);

bool is_white_space(uint32_t cp);  // property White_Space: Rust's char::is_whitespace
bool is_python_space(uint32_t cp); // Python's str.isspace: the same and U+001C..U+001F
bool is_numeric(uint32_t cp);      // Nd, Nl, No
bool is_punctuation(uint32_t cp);  // ASCII punctuation and P*
bool is_mark(uint32_t cp);         // Mn, Mc, Me
bool is_printable(uint32_t cp);    // Python's str.isprintable
bool is_upper(uint32_t cp);
bool is_lower(uint32_t cp);
bool is_title(uint32_t cp);
bool is_alphabetic(uint32_t cp); // L*
// Full mappings of one character without context: 1 to 3 code points.
int to_lower(uint32_t cp, uint32_t out[3]);
int to_upper(uint32_t cp, uint32_t out[3]);
int to_title(uint32_t cp, uint32_t out[3]);

typedef enum NormalForm { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD } NormalForm;
// The end of the run that starts at `at`: a character and what may combine with it. Runs normalise independently.
int32_t normal_run_end(const char *s, int32_t bytes, int32_t at);
// Appends the normal form of one run (s, bytes). false: the run is already in that form and nothing was appended.
bool normal_run(NormalForm form, const char *s, int32_t bytes, Buf *out);
