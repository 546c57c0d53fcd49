// porter: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the extensions of
// nltk's PorterStemmer in NLTK_EXTENSIONS mode (the stemmer of rouge-score). Where nltk departs from the
// paper, a comment says so.
//
// A word is a run of consonants and vowels, [C](VC)^m[V]; m is its measure. A rule list applies the first
// rule whose suffix matches: if that rule's condition fails, no other rule is tried. No rule makes a word
// longer than it was on entry, so that everything happens in the caller's buffer.
#include "eval/rouge.h"
#include <string.h>

typedef struct Word {
    char *s;
    int n;
} Word;

// ---- consonants, vowels, measure
// ------------------------------------------------------------------------------------
static bool plain_vowel(char c)
{
    return c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u';
}

// Whether letter c is a vowel after a letter that was one (prev_vowel) or not; y is a vowel after a consonant
// only.
static bool vowel_after(char c, bool first, bool prev_vowel)
{
    return plain_vowel(c) || (c == 'y' && !first && !prev_vowel);
}

static bool vowel_at(const char *s, int i)
{
    bool vowel = false;
    int start = i;
    while (start > 0 && s[start] == 'y') start--; // only a run of y's makes a letter depend on the one before
    for (int k = start; k <= i; k++) vowel = vowel_after(s[k], k == 0, vowel);
    return vowel;
}

static int measure(const char *s, int n)
{
    int m = 0;
    bool prev = false;
    for (int i = 0; i < n; i++) {
        bool vowel = vowel_after(s[i], i == 0, prev);
        m += prev && !vowel;
        prev = vowel;
    }
    return m;
}

static bool contains_vowel(const char *s, int n)
{
    bool vowel = false;
    for (int i = 0; i < n && !vowel; i++) vowel = vowel_after(s[i], i == 0, vowel);
    return vowel;
}

static bool ends_double_consonant(const char *s, int n)
{
    return n >= 2 && s[n - 1] == s[n - 2] && !vowel_at(s, n - 1);
}

// The paper's *o: consonant, vowel, consonant other than w, x, y. nltk also takes a two-letter stem vowel,
// consonant.
static bool ends_cvc(const char *s, int n)
{
    if (n == 2) return vowel_at(s, 0) && !vowel_at(s, 1);
    return n >= 3 && !vowel_at(s, n - 3) && vowel_at(s, n - 2) && !vowel_at(s, n - 1) && !strchr("wxy", s[n - 1]);
}

// ---- rules
// ----------------------------------------------------------------------------------------------------------
typedef enum Condition {
    ALWAYS,
    M_POSITIVE,         // m(stem) > 0
    M_ABOVE_1,          // m(stem) > 1
    M_ABOVE_1_AFTER_ST, // m(stem) > 1 and the stem ends in s or t
    M_POSITIVE_WITH_L,  // m(stem + "l") > 0: nltk counts the l of -logi with the stem, so that geo- and theo-
                        // work
    Y_AFTER_CONSONANT,  // nltk's *c and not c: a stem of at least two letters that ends in a consonant
} Condition;

typedef struct Rule {
    const char *suffix, *replacement;
    Condition condition;
} Rule;

static bool ends_with(const Word *w, const char *suffix)
{
    int n = (int)strlen(suffix);
    return n <= w->n && memcmp(w->s + w->n - n, suffix, (size_t)n) == 0;
}

static void replace_end(Word *w, int drop, const char *replacement)
{
    int n = (int)strlen(replacement);
    memcpy(w->s + w->n - drop, replacement, (size_t)n);
    w->n += n - drop;
}

static bool holds(Condition c, const char *s, int stem)
{
    switch (c) {
    case ALWAYS: return true;
    case M_POSITIVE: return measure(s, stem) > 0;
    case M_ABOVE_1: return measure(s, stem) > 1;
    case M_ABOVE_1_AFTER_ST: return measure(s, stem) > 1 && (s[stem - 1] == 's' || s[stem - 1] == 't');
    case M_POSITIVE_WITH_L: return measure(s, stem + 1) > 0;
    case Y_AFTER_CONSONANT: return stem > 1 && !vowel_at(s, stem - 1);
    }
    return false;
}

static void apply_rules(Word *w, const Rule *rules, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!ends_with(w, rules[i].suffix)) continue;
        int suffix = (int)strlen(rules[i].suffix);
        if (holds(rules[i].condition, w->s, w->n - suffix)) replace_end(w, suffix, rules[i].replacement);
        return;
    }
}
#define APPLY(w, rules) apply_rules(w, rules, COUNT_OF(rules))

static const Rule step1a[] = {{"sses", "ss", ALWAYS}, {"ies", "i", ALWAYS}, {"ss", "ss", ALWAYS}, {"s", "", ALWAYS}};
static const Rule step1b_repair[] = {{"at", "ate", ALWAYS}, {"bl", "ble", ALWAYS}, {"iz", "ize", ALWAYS}};
static const Rule step1c[] = {{"y", "i", Y_AFTER_CONSONANT}};
static const Rule step2[] = {
    {"ational", "ate", M_POSITIVE},     {"tional", "tion", M_POSITIVE}, {"enci", "ence", M_POSITIVE},
    {"anci", "ance", M_POSITIVE},       {"izer", "ize", M_POSITIVE},    {"bli", "ble", M_POSITIVE},
    {"alli", "al", M_POSITIVE},         {"entli", "ent", M_POSITIVE},   {"eli", "e", M_POSITIVE},
    {"ousli", "ous", M_POSITIVE},       {"ization", "ize", M_POSITIVE}, {"ation", "ate", M_POSITIVE},
    {"ator", "ate", M_POSITIVE},        {"alism", "al", M_POSITIVE},    {"iveness", "ive", M_POSITIVE},
    {"fulness", "ful", M_POSITIVE},     {"ousness", "ous", M_POSITIVE}, {"aliti", "al", M_POSITIVE},
    {"iviti", "ive", M_POSITIVE},       {"biliti", "ble", M_POSITIVE},  {"fulli", "ful", M_POSITIVE},
    {"logi", "log", M_POSITIVE_WITH_L},
};
static const Rule step3[] = {
    {"icate", "ic", M_POSITIVE}, {"ative", "", M_POSITIVE}, {"alize", "al", M_POSITIVE}, {"iciti", "ic", M_POSITIVE},
    {"ical", "ic", M_POSITIVE},  {"ful", "", M_POSITIVE},   {"ness", "", M_POSITIVE},
};
static const Rule step4[] = {
    {"al", "", M_ABOVE_1},    {"ance", "", M_ABOVE_1}, {"ence", "", M_ABOVE_1}, {"er", "", M_ABOVE_1},
    {"ic", "", M_ABOVE_1},    {"able", "", M_ABOVE_1}, {"ible", "", M_ABOVE_1}, {"ant", "", M_ABOVE_1},
    {"ement", "", M_ABOVE_1}, {"ment", "", M_ABOVE_1}, {"ent", "", M_ABOVE_1},  {"ion", "", M_ABOVE_1_AFTER_ST},
    {"ou", "", M_ABOVE_1},    {"ism", "", M_ABOVE_1},  {"ate", "", M_ABOVE_1},  {"iti", "", M_ABOVE_1},
    {"ous", "", M_ABOVE_1},   {"ive", "", M_ABOVE_1},  {"ize", "", M_ABOVE_1},
};

// ---- steps that are more than a rule list
// --------------------------------------------------------------------------- After -ed or -ing is gone:
// hopp(ing) -> hop, fil(ing) -> file.
static void step1b_tidy(Word *w)
{
    for (size_t i = 0; i < COUNT_OF(step1b_repair); i++)
        if (ends_with(w, step1b_repair[i].suffix)) {
            APPLY(w, step1b_repair);
            return;
        }
    if (ends_double_consonant(w->s, w->n))
        w->n -= !strchr("lsz", w->s[w->n - 1]);
    else if (measure(w->s, w->n) == 1 && ends_cvc(w->s, w->n))
        replace_end(w, 0, "e");
}

static void step1b(Word *w)
{
    if (ends_with(w, "ied")) { // nltk: died -> die, spied -> spi
        replace_end(w, 3, w->n == 4 ? "ie" : "i");
        return;
    }
    if (ends_with(w, "eed")) {
        if (measure(w->s, w->n - 3) > 0) w->n--;
        return;
    }
    int drop = ends_with(w, "ed") ? 2 : ends_with(w, "ing") ? 3 : 0;
    if (!drop || !contains_vowel(w->s, w->n - drop)) return;
    w->n -= drop;
    step1b_tidy(w);
}

static void step5(Word *w)
{
    if (ends_with(w, "e")) {
        int m = measure(w->s, w->n - 1);
        if (m > 1 || (m == 1 && !ends_cvc(w->s, w->n - 1))) w->n--;
    }
    if (ends_with(w, "ll") && measure(w->s, w->n - 1) > 1) w->n--;
}

// nltk's table of irregular forms
static bool irregular(char *word)
{
    static const char *const forms[][2] = {
        {"sky", "sky"},        {"skies", "sky"},       {"dying", "die"},        {"lying", "lie"},
        {"tying", "tie"},      {"news", "news"},       {"innings", "inning"},   {"inning", "inning"},
        {"outings", "outing"}, {"outing", "outing"},   {"cannings", "canning"}, {"canning", "canning"},
        {"howe", "howe"},      {"proceed", "proceed"}, {"exceed", "exceed"},    {"succeed", "succeed"},
    };
    for (size_t i = 0; i < COUNT_OF(forms); i++)
        if (streq(word, forms[i][0])) {
            strcpy(word, forms[i][1]); // never longer
            return true;
        }
    return false;
}

void porter_stem(char *word)
{
    Word w = {word, (int)strlen(word)};
    if (w.n <= 2 || irregular(word)) return;
    if (w.n == 4 && ends_with(&w, "ies"))
        replace_end(&w, 3, "ie"); // nltk: dies -> die, flies -> fli
    else
        APPLY(&w, step1a);
    step1b(&w);
    APPLY(&w, step1c);
    if (ends_with(&w, "alli") && measure(w.s, w.n - 4) > 0)
        w.n -= 2; // nltk: before the other rules of step 2, not among them
    APPLY(&w, step2);
    APPLY(&w, step3);
    APPLY(&w, step4);
    step5(&w);
    w.s[w.n] = '\0';
}
