// Regular expressions written for Oniguruma, run by PCRE2: where the two would differ.
#include "text_test.h"
#include "text/regex.h"

// All matches of a pattern in text, joined by "|".
static void check(const char *pattern, const char *text, const char *want)
{
    Regex *r;
    Buf got = {0};
    size_t n = strlen(text), from = 0, begin, end;
    if (regex_compile(&r, pattern, strlen(pattern), false, "t") != OK) fail_msg("%s: %s", pattern, error_last()->what);
    RegexMatch *m = regex_match_new();
    while (from < n && regex_find(r, m, text, n, from, &begin, &end) == 1) {
        buf_printf(&got, "%s%.*s", got.len ? "|" : "", (int)(end - begin), text + begin);
        from = end > begin ? end : end + 1;
    }
    if (!streq(got.data ? got.data : "", want))
        fail_msg("%s on \"%s\": \"%s\", expected \"%s\"", pattern, text, got.data ? got.data : "", want);
    regex_match_free(m);
    regex_free(r);
    buf_free(&got);
}

static void differences(void **state)
{
    (void)state;
    check("\\s+", "a\u180eb \u00a0\u3000c\xC2\x85", " \u00a0\u3000|\xC2\x85"); // U+180E is no white space
    check("\\S+", "a\u180eb c", "a\u180eb|c");
    check("\\w+", "a\u0301b \u0661x", "a\u0301b|\u0661x"); // marks belong to words
    check("\\h+", "xaF09g", "aF09");
    check("\\d{2}+", "12345", "1234"); // repeats the repeat
    check("(?:ab|c){1,2}+", "abcabcab", "abcabcab");
    check("a?+b", "ab", "ab");
    check("^.", "ab\ncd", "a|c"); // lines
    check(".$", "ab\ncd", "b|d");
    check("(?m:a.b)", "a\nb", "a\nb");
    check("a.b", "a\nb", "");
    check("[\\u0041-\\u0043]+", "xABCD", "ABC");
    check("\\p{L}+", "\u1c89a\U000105c0 1", "\u1c89a\U000105c0"); // letters newer than PCRE2's tables
    check("\\p{Lu}", "\u1c89A\u1c8a", "\u1c89|A");
    check("[^\\p{L}]+", "\u1c89 1\ua7cb", " 1");
    check("\\P{L}+", "a12b", "12");
    check("\\p{^L}+", "a12b", "12");
    check("[a[bc]d]+", "xabcdx", "abcd"); // union
    check("\\p{Han}+", "\u4e2d\U00031350a", "\u4e2d\U00031350");
    check("(?i:'S)", "'s'S'\u017f", "'s|'S|'\u017f");
    check("\\s+(?!\\S)|\\s+", "a   b  ", "  | |  ");
    check("(?<=a)b|(?<!a)c", "abcac", "b|c");
}

static void literal(void **state)
{
    (void)state;
    Regex *r;
    size_t begin, end;
    RegexMatch *m = regex_match_new();
    assert_int_equal(regex_compile(&r, "a.b*[", 5, true, "t"), OK);
    assert_int_equal(regex_find(r, m, "axb a.b*[", 9, 0, &begin, &end), 1);
    assert_int_equal(begin, 4);
    assert_int_equal(end, 9);
    assert_int_equal(regex_find(r, m, "axb a.b*[", 9, 5, &begin, &end), 0);
    regex_free(r);
    regex_match_free(m);
}

static void refused(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        "(",       ")",        "[a",       "a{",    "[a&&b]",
        "[a[^b]]", "(?R)",     "(?1)",     "(?C1)", "(*UTF)",
        "\\1",     "\\R",      "\\X",      "\\C",   "\\K",
        "\\b",     "a{2}?",    "\\pL",     "\\p{",  "[\\W]",
        "\\u12",   "(?P<n>a)", "(?x:a b)", "*a",    "\\p{NoSuchProperty}",
        "\\",
    };
    for (size_t i = 0; i < COUNT_OF(patterns); i++) {
        Regex *r;
        error_clear();
        if (regex_compile(&r, patterns[i], strlen(patterns[i]), false, "t") != E_INPUT)
            fail_msg("accepted: %s", patterns[i]);
        assert_null(r);
        assert_string_equal(error_last()->place, "t");
    }
    error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(differences), cmocka_unit_test(literal),
                                       cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
