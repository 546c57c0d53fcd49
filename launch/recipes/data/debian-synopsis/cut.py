#!/usr/bin/env python3
"""cut.py SOURCE: makes train.jsonl, valid.jsonl and test.jsonl here from SOURCE/{train,valid,test}.jsonl (see PROVENANCE).

Keeps each split's first rows whose description is short enough for a laptop's CPU."""
import json
import pathlib
import sys

ROWS = {"train": 960, "valid": 96, "test": 96}
PROMPT = "Write the one-line synopsis of this Debian package.\n\n"
LONGEST = 420  # characters of the description


def rows(path, n):
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if len(row["text"]) > LONGEST:
            continue
        yield {"messages": [{"role": "user", "content": PROMPT + row["text"]}, {"role": "assistant", "content": row["summary"]}]}
        n -= 1
        if not n:
            return


source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
for split, n in ROWS.items():
    with open(here / f"{split}.jsonl", "w") as out:
        for row in rows(source / f"{split}.jsonl", n):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
