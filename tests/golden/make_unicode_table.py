#!/usr/bin/env python3
"""Writes runtime/text/unicode_new.def: characters whose general category is newer than PCRE2 10.42 (Unicode 14) knows.

The judge is the `tokenizers` package's own regex engine; Python 3.11's unicodedata is Unicode 14.
Usage: make_unicode_table.py > runtime/text/unicode_new.def
"""
import sys
import unicodedata

from tokenizers import Regex, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()


def members(pattern):
    """All code points that `pattern` matches, found by splitting text that holds every code point."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for base in range(0, 0x110000, 0x1000):
        points = [c for c in range(base, base + 0x1000) if not 0xD800 <= c < 0xE000]
        kept = set()
        for piece, _ in split.pre_tokenize_str("".join(map(chr, points))) if points else []:
            kept.update(piece)
        found |= {c for c in points if chr(c) not in kept}
    return found


def main():
    assert unicodedata.unidata_version == "14.0.0", "run with a Python whose unicodedata is Unicode 14"
    ranges = []  # [first, last, category]
    for category in CATEGORIES:
        for c in sorted(c for c in members(r"\p{%s}" % category) if unicodedata.category(chr(c)) != category):
            if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == category:
                ranges[-1][1] = c
            else:
                ranges.append([c, c, category])
    ranges.sort()
    print("// RANGE(first, last, category): characters that the `tokenizers` package's regex engine knows (Unicode 16) and")
    print("// PCRE2 10.42 (Unicode 14) does not. Written by tests/golden/make_unicode_table.py.")
    for first, last, category in ranges:
        print(f"RANGE(0x{first:05X}, 0x{last:05X}, {category})")


if __name__ == "__main__":
    sys.exit(main())
