// runtime/eval/rouge.c and porter.c against rouge-score (tests/golden/rouge/), plus what the golden pairs
// cannot show.
#include "eval/rouge.h"
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h> // last: its fail() hides ours

#define GOLDEN TEST_DIR "/../golden/rouge/"

static void check(RougeScore got, const json_t *want, const char *where)
{
    double g[3] = {got.precision, got.recall, got.f1};
    for (size_t i = 0; i < 3; i++) {
        double w = json_number_value(json_array_get(want, i));
        if (!(fabs(g[i] - w) <= 1e-9)) fail_msg("%s: %.12g, rouge-score says %.12g", where, g[i], w);
    }
}

static void golden_pairs(void **state)
{
    (void)state;
    FILE *f = fopen(GOLDEN "pairs.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        for (int stem = 0; stem < 2; stem++) {
            Rouge got = rouge_score(json_string_value(json_object_get(row, "reference")),
                                    json_string_value(json_object_get(row, "hypothesis")), stem);
            const json_t *want = json_object_get(row, stem ? "stem" : "plain");
            check(got.r1, json_array_get(want, 0), tmpf("line %d rouge1 stem=%d", n + 1, stem));
            check(got.r2, json_array_get(want, 1), tmpf("line %d rouge2 stem=%d", n + 1, stem));
            check(got.rl, json_array_get(want, 2), tmpf("line %d rougeL stem=%d", n + 1, stem));
            check(got.rlsum, json_array_get(want, 3), tmpf("line %d rougeLsum stem=%d", n + 1, stem));
        }
        json_decref(row);
    }
    assert_true(n > 200);
    free(line);
    fclose(f);
}

static void golden_stems(void **state)
{
    (void)state;
    FILE *f = fopen(GOLDEN "stems.tsv", "r");
    assert_non_null(f);
    char line[512];
    int n = 0;
    while (fgets(line, sizeof line, f)) {
        if (*line == '#') continue;
        char *word = strtok(line, "\t"), *want = strtok(NULL, "\n");
        char *got = xstrdup(word); // its own allocation, so that writing past its end is seen
        porter_stem(got);
        if (!streq(got, want)) fail_msg("%s: stem %s, nltk says %s", word, got, want);
        free(got);
        n++;
    }
    assert_true(n > 3000);
    fclose(f);
}

static void short_words_stay(void **state)
{
    (void)state;
    for (const char *const *w = (const char *const[]){"", "s", "as", "is", NULL}; *w; w++) {
        char word[8];
        strcpy(word, *w);
        porter_stem(word);
        assert_string_equal(word, *w);
    }
    // The stemmer itself has no rule about three letters; rouge does not hand it any
    assert_float_equal(rouge_score("gas", "ga", true).r1.f1, 0, 0);
    assert_float_equal(rouge_score("cats", "cat", true).r1.f1, 1, 0);
}

// A word of a million letters takes one pass, not one per letter
static void long_words(void **state)
{
    (void)state;
    size_t n = 1000000;
    char *word = xmalloc(n + 1);
    memset(word, 'y', n);
    word[n] = '\0';
    Rouge r = rouge_score(word, word, true);
    assert_float_equal(r.r1.f1, 1, 0);
    assert_float_equal(r.rlsum.f1, 1, 0);
    free(word);
}

static void invalid_utf8_separates(void **state)
{
    (void)state;
    assert_float_equal(rouge_score("a\xff"
                                   "b\xe2\x84",
                                   "a b", false)
                           .rl.f1,
                       1, 0);
    assert_float_equal(rouge_score("a\xc4", "a", false).rl.f1, 1, 0);
}

// ROUGE-L of both directions: precision and recall change places
static void symmetric(void **state)
{
    (void)state;
    Rouge ab = rouge_score("a b c d a b", "c a b", false), ba = rouge_score("c a b", "a b c d a b", false);
    assert_float_equal(ab.rl.precision, ba.rl.recall, 0);
    assert_float_equal(ab.rl.precision, 1, 0);
    assert_float_equal(ab.r2.recall, ba.r2.precision, 0);
}

// Lsum reads a subsequence back in blocks of rows; on one line it must be as long as ROUGE-L's, at any length
static void lsum_of_long_lines(void **state)
{
    (void)state;
    for (int n = 1; n < 3000; n = n * 2 + 61) {
        Buf a = {0}, b = {0};
        for (int i = 0; i < n; i++) {
            uint32_t r[4];
            philox(5, (uint64_t)n, (uint64_t)i, r);
            buf_printf(&a, "w%u ", r[0] % 5);
            if (r[1] % 8) buf_printf(&b, "w%u ", r[2] % 4 ? r[0] % 5 : r[3] % 5);
        }
        buf_puts(&b, "end");
        Rouge r = rouge_score(a.data, b.data, false);
        assert_true(r.rl.f1 > 0);
        assert_float_equal(r.rl.f1, r.rlsum.f1, 0);
        buf_free(&a);
        buf_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_pairs),           cmocka_unit_test(golden_stems),
        cmocka_unit_test(short_words_stay),       cmocka_unit_test(long_words),
        cmocka_unit_test(invalid_utf8_separates), cmocka_unit_test(symmetric),
        cmocka_unit_test(lsum_of_long_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
