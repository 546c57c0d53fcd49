#!/usr/bin/env python3
"""Makes tests/golden/rouge/pairs.jsonl and stems.tsv with the packages rouge-score 0.1.2 and nltk 3.10.

    pip install rouge-score==0.1.2 nltk==3.10.4
    tests/golden/make_rouge_golden.py [WORDS.txt]

Texts are written or generated here (seeded). Words of stems.tsv come from WORDS.txt (any text; every distinct lower-case word
of it), else they are the words that stems.tsv already has.
"""
import json
import pathlib
import random
import re
import sys

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

HERE = pathlib.Path(__file__).parent / "rouge"
TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
SCORERS = {"plain": RougeScorer(TYPES), "stem": RougeScorer(TYPES, use_stemmer=True)}

TEXTS = [
    "The training run writes a checkpoint every hundred steps.\nIf the machine is taken away, the newest checkpoint that "
    "verifies is loaded.\nNothing that was already learned is lost.",
    "A small adapter was fitted to short descriptions of packages.\nAfterwards the summaries were shorter, and closer to "
    "what a maintainer would have written.",
    "Sailors carry knives because ropes jam.\nA jammed rope in a rising wind is dangerous.\nCutting it is cheaper than "
    "losing the mast.",
    "Measure twice, cut once; measured carefully, boards rarely need cutting again.",
    "Bread rises slowly in a cold kitchen.\nWarm kitchens hurry the dough, and hurried dough tastes of yeast.\n\nBake it "
    "until the crust sings.",
    "Der Zug fährt über die Brücke.\nDie Brücke überspannt einen Fluß, der früh im Jahr über die Ufer tritt.",
    "The operator's relational databases were conditionally rationalised; formalities were radically simplified.",
    "x86_64 and aarch64 builds of version 2.10.3 (2024-05-01) differ by 0x1F bytes, i.e. 3.1%.",
    "one two three four five six seven eight nine ten",
    "the cat sat on the mat the cat sat on the mat the dog did not",
]

EDGES = [  # (reference, hypothesis)
    ("", ""), ("", "words"), ("words", ""), ("\n\n", "words"), ("?!", "..."), ("a", "a"), ("a", "b"), ("a b", "b a"),
    ("A B C", "a b c"), ("a\r\nb", "a\nb"), ("a\tb\vc\fd", "a b c d"), ("word", "word word word"),
    ("273 \u212a", "273 k"), ("\u212aelvin", "kelvin"), ("\u0130stanbul", "i stanbul"), ("\u0130stanbul", "istanbul"),
    ("D\u0130YARBAKIR", "d\u0307 yarbak\u0131r"), ("\u0131\u017f\u00df", "i s ss"), ("caf\u00e9s", "caf s"),
    ("\u00c5ngstr\u00f6m \u03a3\u03a3", "ngstr m"), ("\uff21\uff22", "ab"), ("na\u00efve\u200bword", "na ve word"),
    ("\U0001f600 grin", "grin"), ("running runs ran", "run runner running"), ("dying skies", "die sky"),
    ("a b c\nd e f", "a b c d e f"), ("a b c d e f", "a b c\nd e f"), ("a b\nb a", "b a\na b"), ("\na\n\nb\n", "a\nb"),
    ("a a a a", "a a"), ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"), ("ss ies ied", "s ie i"),
    ("the 's of yyyy", "yyyy s of the"), ("1 22 333 4444", "4444 333 22 1"),
]


def mutate(rng, text):
    words = re.split(r"(\s+)", text)
    for _ in range(rng.randint(1, 6)):
        i = rng.randrange(len(words))
        op = rng.randrange(6)
        if op == 0:
            words[i] = ""
        elif op == 1:
            words.insert(i, rng.choice(words) + " ")
        elif op == 2:
            j = rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
        elif op == 3:
            words[i] = words[i].upper()
        elif op == 4:
            words[i] = "\n"
        else:
            words = words[: max(1, i)]
    return "".join(words)


def random_text(rng, alphabet, words, line_share):
    return "".join(rng.choice(alphabet) + ("\n" if rng.random() < line_share else " ") for _ in range(words))


def pairs():
    rng = random.Random(7)
    yield from EDGES
    for text in TEXTS:
        for _ in range(10):
            yield text, mutate(rng, text)
        yield text, rng.choice(TEXTS)
    for n in range(80):  # few distinct words: many longest common subsequences, so that the tie rule decides
        alphabet = ["a", "b", "c", "dd", "eeee"][: 2 + n % 4]
        yield random_text(rng, alphabet, rng.randint(1, 40), 0.15), random_text(rng, alphabet, rng.randint(1, 40), 0.15)
    for n in (300, 700):  # longer than one block of the table
        yield random_text(rng, ["a", "b", "c"], n, 0), random_text(rng, ["a", "b", "c"], n + 77, 0)
        yield random_text(rng, ["a", "b", "c"], n, 0.005), random_text(rng, ["a", "b", "c"], n - 50, 0.005)


def main():
    with open(HERE / "pairs.jsonl", "w", encoding="utf-8") as out:
        for reference, hypothesis in pairs():
            row = {"reference": reference, "hypothesis": hypothesis}
            for name, scorer in SCORERS.items():
                s = scorer.score(reference, hypothesis)
                row[name] = [[float(f"{v:.12g}") for v in s[t]] for t in TYPES]
            out.write(json.dumps(row, ensure_ascii=False) + "\n")

    stems = HERE / "stems.tsv"
    if len(sys.argv) > 1:
        text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").lower()
        words = {w for w in re.split(r"[^a-z0-9]+", text) if len(w) > 3}
    else:
        words = {line.split("\t")[0] for line in stems.read_text().splitlines()[1:]}
    stemmer = PorterStemmer()
    with open(stems, "w") as out:
        out.write("# word TAB its stem (nltk PorterStemmer, NLTK_EXTENSIONS); origin in README.md\n")
        for w in sorted(words):
            out.write(f"{w}\t{stemmer.stem(w)}\n")


if __name__ == "__main__":
    main()
