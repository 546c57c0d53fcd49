#!/usr/bin/env python3
"""Writes where the Unicode tables of the `tokenizers` package differ from those of the libraries used here.

unicode_new.def    characters whose category PCRE2 10.42 (Unicode 14, as Python 3.11's unicodedata) does not know yet
unicode_inert.def  characters that utf8proc 2.8 (Unicode 15) decomposes, reorders or calls marks, and that the package's
                   older normalizer tables leave alone
unicode_punct.def  characters that are punctuation to one of utf8proc and the package's Punctuation step only
Usage: for t in new inert punct; do make_unicode_table.py $t > runtime/text/unicode_$t.def; done
"""
import ctypes
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

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


def ranges_of(points):
    """[first, last, category] of (code point, category) in order."""
    ranges = []
    for c, category in points:
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == category:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, category])
    return ranges


def print_new():
    assert unicodedata.unidata_version == "14.0.0", "run with a Python whose unicodedata is Unicode 14"
    points = [(c, k) for k in CATEGORIES for c in members(r"\p{%s}" % k) if unicodedata.category(chr(c)) != k]
    print("// RANGE(first, last, category): characters that the `tokenizers` package's regex engine knows (Unicode 16) and")
    print("// PCRE2 10.42 (Unicode 14) does not. Written by tests/golden/make_unicode_table.py.")
    for first, last, category in ranges_of(sorted(points)):
        print(f"RANGE(0x{first:05X}, 0x{last:05X}, {category})")


def print_inert():
    lib = ctypes.CDLL("libutf8proc.so.2")
    lib.utf8proc_category_string.restype = ctypes.c_char_p
    lib.utf8proc_NFKD.restype = ctypes.c_char_p
    nfkd, nfd, strip = normalizers.NFKD(), normalizers.NFD(), normalizers.StripAccents()

    def is_inert(c):
        """The package sees neither a decomposition, nor a combining class, nor a mark."""
        s = chr(c)
        moves = any(nfd.normalize_str(t) != t for t in (f"a{s}\u0334", f"a\u0345{s}"))
        return nfkd.normalize_str(s) == s and strip.normalize_str(s) == s and not moves

    points = []
    for c in range(0x80, 0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        mark = lib.utf8proc_category_string(c)[:1] == b"M"
        if (mark or lib.utf8proc_NFKD(chr(c).encode()) != chr(c).encode()) and is_inert(c):
            points.append((c, ""))
    print("// RANGE(first, last): characters that the `tokenizers` package's normalizers, whose tables are older, leave alone.")
    print("// Written by tests/golden/make_unicode_table.py.")
    for first, last, _ in ranges_of(points):
        print(f"RANGE(0x{first:05X}, 0x{last:05X})")


def print_punct():
    lib = ctypes.CDLL("libutf8proc.so.2")
    lib.utf8proc_category_string.restype = ctypes.c_char_p
    step = pre_tokenizers.Punctuation()
    points = []
    for c in range(0x80, 0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        if (len(step.pre_tokenize_str(f"a{chr(c)}a")) == 3) != (lib.utf8proc_category_string(c)[:1] == b"P"):
            points.append((c, ""))
    print("// RANGE(first, last): characters whose being punctuation is told differently by utf8proc 2.8 (Unicode 15) and by the")
    print("// `tokenizers` package (Unicode 8). Written by tests/golden/make_unicode_table.py.")
    for first, last, _ in ranges_of(points):
        print(f"RANGE(0x{first:05X}, 0x{last:05X})")


if __name__ == "__main__":
    {"new": print_new, "inert": print_inert, "punct": print_punct}[sys.argv[1]]()
