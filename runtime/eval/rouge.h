// rouge: ROUGE-1, -2, -L (Lin 2004) with the tokenizer and Porter stemmer of Google's rouge-score package, number for number.
#pragma once
#include "kernels.h"

typedef struct RougeScore {
    double precision, recall, f1;
} RougeScore;
typedef struct Rouge {
    RougeScore r1, r2, rl, rlsum; // rlsum: union LCS over lines split at '\n'
} Rouge;
Rouge rouge_score(const char *reference, const char *hypothesis, bool stem);
void porter_stem(char *word); // in place, as nltk's PorterStemmer in NLTK_EXTENSIONS mode
