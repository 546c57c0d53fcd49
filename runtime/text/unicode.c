// unicode: see unicode.h. The only file that includes utf8proc.
#include "text/unicode.h"
#include <string.h>
#include <utf8proc.h>

int utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

int32_t utf8_count(const char *s, int32_t bytes)
{
    int32_t n = 0;
    for (int32_t i = 0; i < bytes; i++) n += utf8_is_start(s[i]);
    return n;
}

// Length of the longest prefix that could still begin a character (at least 1), after the Unicode standard's table 3-7.
static size_t ill_formed_part(const unsigned char *s, size_t n)
{
    static const struct {
        unsigned char first, last, second_min, second_max, length;
    } rows[] = {{0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
                {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
                {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4}};
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        if (s[0] < rows[r].first || s[0] > rows[r].last) continue;
        size_t i = 1;
        for (; i < n && i < rows[r].length; i++) {
            unsigned char low = i == 1 ? rows[r].second_min : 0x80, high = i == 1 ? rows[r].second_max : 0xBF;
            if (s[i] < low || s[i] > high) break;
        }
        return i;
    }
    return 1;
}

void utf8_put_lossy(Buf *out, const char *bytes, size_t n)
{
    size_t bad = 0;
    while (n && !utf8_valid(bytes, n, &bad)) {
        size_t skip = bad + ill_formed_part((const unsigned char *)bytes + bad, n - bad);
        buf_put(out, bytes, bad);
        buf_puts(out, "\xEF\xBF\xBD");
        bytes += skip;
        n -= skip;
    }
    buf_put(out, bytes, n);
}

// ---- categories -----------------------------------------------------------------------------------------------------
bool is_white_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

bool is_python_space(uint32_t cp)
{
    return is_white_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

// Where the `tokenizers` package's tables are of another Unicode version than utf8proc's: see the .def files.
typedef struct Range {
    uint32_t first, last;
} Range;
#define RANGE(first, last) {first, last},
static const Range normal_inert[] = {
#include "text/unicode_inert.def"
};
static const Range other_punctuation[] = {
#include "text/unicode_punct.def"
};
#undef RANGE
static const Range newer_numeric[] = {
    // Unicode 15.1 to 17
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11DE0, 0x11DE9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x16FF4, 0x16FF6}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};

static bool in_ranges(const Range *r, size_t n, uint32_t cp)
{
    size_t low = 0, high = n;
    if (cp < r[0].first) return false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cp > r[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && cp >= r[low].first;
}
#define IN_RANGES(table, cp) in_ranges(table, COUNT_OF(table), cp)

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool is_numeric(uint32_t cp)
{
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    utf8proc_category_t c = category(cp);
    if (c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO) return true;
    return IN_RANGES(newer_numeric, cp);
}

bool is_punctuation(uint32_t cp)
{
    if (cp < 0x80)
        return (cp >= 33 && cp <= 47) || (cp >= 58 && cp <= 64) || (cp >= 91 && cp <= 96) || (cp >= 123 && cp <= 126);
    utf8proc_category_t c = category(cp);
    return (c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO) != IN_RANGES(other_punctuation, cp);
}

static bool is_normal_inert(uint32_t cp)
{
    return IN_RANGES(normal_inert, cp);
}

bool is_mark(uint32_t cp)
{
    if (is_normal_inert(cp)) return false;
    utf8proc_category_t c = category(cp);
    bool was_mark = cp == 0x1CF2 || cp == 0x1CF3; // until Unicode 12
    return was_mark || c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

bool is_printable(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return cp == ' ' || (c != UTF8PROC_CATEGORY_CN && c < UTF8PROC_CATEGORY_ZS);
}

bool is_upper(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LU;
}
bool is_lower(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LL || cp == 0xAA || cp == 0xBA;
}
bool is_title(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LT;
}

bool is_alphabetic(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

// ---- case -----------------------------------------------------------------------------------------------------------
int to_lower(uint32_t cp, uint32_t out[3])
{
    if (cp == 0x130) { // the one character whose lower case is two
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    static const struct {
        uint32_t first, last, lower; // of first
    } newer[] = {{0x1C89, 0x1C89, 0x1C8A},   {0xA7CB, 0xA7CB, 0x264},  {0xA7CC, 0xA7CC, 0xA7CD},
                 {0xA7CE, 0xA7CE, 0xA7CF},   {0xA7D2, 0xA7D2, 0xA7D3}, {0xA7D4, 0xA7D4, 0xA7D5},
                 {0xA7DA, 0xA7DA, 0xA7DB},   {0xA7DC, 0xA7DC, 0x19B},  {0x10D50, 0x10D65, 0x10D70},
                 {0x16EA0, 0x16EB8, 0x16EBB}}; // pairs that Unicode 16 and 17 added
    for (size_t i = 0; cp >= newer[0].first && i < COUNT_OF(newer); i++) {
        if (cp < newer[i].first || cp > newer[i].last) continue;
        out[0] = newer[i].lower + (cp - newer[i].first);
        return 1;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
    return 1;
}

int to_upper(uint32_t cp, uint32_t out[3])
{
    // SpecialCasing.txt: the unconditional mappings to several characters, but for the Greek iota subscripts.
    static const uint32_t special[][4] = {
        {0xDF, 'S', 'S', 0},          {0x149, 0x2BC, 'N', 0},       {0x1F0, 'J', 0x30C, 0},
        {0x390, 0x399, 0x308, 0x301}, {0x3B0, 0x3A5, 0x308, 0x301}, {0x587, 0x535, 0x552, 0},
        {0x1E96, 'H', 0x331, 0},      {0x1E97, 'T', 0x308, 0},      {0x1E98, 'W', 0x30A, 0},
        {0x1E99, 'Y', 0x30A, 0},      {0x1E9A, 'A', 0x2BE, 0},      {0xFB00, 'F', 'F', 0},
        {0xFB01, 'F', 'I', 0},        {0xFB02, 'F', 'L', 0},        {0xFB03, 'F', 'F', 'I'},
        {0xFB04, 'F', 'F', 'L'},      {0xFB05, 'S', 'T', 0},        {0xFB06, 'S', 'T', 0},
        {0xFB13, 0x544, 0x546, 0},    {0xFB14, 0x544, 0x535, 0},    {0xFB15, 0x544, 0x53B, 0},
        {0xFB16, 0x54E, 0x546, 0},    {0xFB17, 0x544, 0x53D, 0},
    };
    for (size_t i = 0; cp >= 0xDF && i < COUNT_OF(special); i++) {
        if (special[i][0] != cp) continue;
        memcpy(out, special[i] + 1, 3 * sizeof *out);
        return out[2] ? 3 : 2;
    }
    out[0] = (uint32_t)utf8proc_toupper((utf8proc_int32_t)cp);
    return 1;
}

int to_title(uint32_t cp, uint32_t out[3])
{
    int n = to_upper(cp, out);
    if (n == 1) out[0] = (uint32_t)utf8proc_totitle((utf8proc_int32_t)cp);
    for (int i = 1; i < n; i++) out[i] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)out[i]);
    return n;
}

// ---- normal forms ---------------------------------------------------------------------------------------------------
// A new run starts before a character that never combines with what stands before it: combining class 0, no mark (some
// vowel signs of class 0 compose backwards), no conjoining vowel or final consonant of Hangul.
static bool starts_run(uint32_t cp)
{
    if (cp < 0x300) return true;
    if (cp >= 0x1160 && cp <= 0x11FF) return false;
    if (is_normal_inert(cp)) return true;
    return utf8proc_get_property((utf8proc_int32_t)cp)->combining_class == 0 && !is_mark(cp);
}

int32_t normal_run_end(const char *s, int32_t bytes, int32_t at)
{
    int32_t i = at;
    if (is_normal_inert(utf8_next(s, &i))) return i;
    while (i < bytes) {
        int32_t next = i;
        if (starts_run(utf8_next(s, &next))) break;
        i = next;
    }
    return i;
}

// A single character that no form changes: it has no decomposition and is no Hangul syllable.
static bool is_unchanged(const char *s, int32_t bytes)
{
    int32_t i = 0;
    uint32_t cp = utf8_next(s, &i);
    if (i < bytes) return false;
    if (cp < 0x80 || is_normal_inert(cp)) return true;
    bool hangul = cp >= 0xAC00 && cp <= 0xD7A3;
    return !hangul && utf8proc_get_property((utf8proc_int32_t)cp)->decomp_seqindex == UINT16_MAX;
}

bool normal_run(NormalForm form, const char *s, int32_t bytes, Buf *out)
{
    static const int options[] = {
        [FORM_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [FORM_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [FORM_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [FORM_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    if (is_unchanged(s, bytes)) return false;
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)s, bytes, &mapped, (utf8proc_option_t)options[form]);
    ASSERT(n >= 0); // the input is valid UTF-8 and bounded
    bool changed = n != bytes || memcmp(mapped, s, (size_t)n) != 0;
    if (changed) buf_put(out, mapped, (size_t)n);
    free(mapped);
    return changed;
}
