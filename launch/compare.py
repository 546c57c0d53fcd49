#!/usr/bin/env python3
"""compare.py BASE.json TUNED.json: two evaluations of `attune eval` side by side, metrics and samples."""
import json
import sys
import textwrap

WIDTH = 34


def column(text):
    return textwrap.wrap(" ".join(text.split()), WIDTH, max_lines=3, placeholder=" ...") or ["(nothing)"]


def print_columns(cells):
    columns = [column(c) for c in cells]
    for i in range(max(map(len, columns))):
        print("  " + " | ".join((c[i] if i < len(c) else "").ljust(WIDTH) for c in columns).rstrip())


base, tuned = (json.load(open(path)) for path in sys.argv[1:3])
print(f"  {'':12}{'base':>10}{'tuned':>10}")
for name, value in tuned["metrics"].items():
    print(f"  {name:12}{base['metrics'][name]:10.4f}{value:10.4f}")

print()
print_columns(["WRITTEN BY A PERSON", "BASE MODEL", "TUNED MODEL"])
before = {s["row"]: s for s in base["samples"]}
for sample in [s for s in tuned["samples"] if s["row"] in before][:4]:
    print()
    print_columns([sample["reference"], before[sample["row"]]["output"], sample["output"]])
