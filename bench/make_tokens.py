#!/usr/bin/env python3
"""Writes rows of exactly N token ids of real text, one {"tokens": [...]} a line, for benchmarks.

The default text lies on every Debian machine: the licence texts of /usr/share/common-licenses.
Needs transformers and gguf (see README.md).
"""
import argparse
import json
import pathlib

DEFAULT_TEXTS = [f"/usr/share/common-licenses/{n}" for n in ("GPL-3", "Apache-2.0", "GFDL-1.3", "MPL-2.0", "LGPL-2.1", "Artistic")]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True, help="Hugging Face directory or .gguf file whose tokenizer is used")
    p.add_argument("--text", nargs="+", default=DEFAULT_TEXTS, help="UTF-8 text files")
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--out", required=True)
    a = p.parse_args()

    from transformers import AutoTokenizer

    model = pathlib.Path(a.model)
    gguf = {"gguf_file": model.name} if model.suffix == ".gguf" else {}
    tokenizer = AutoTokenizer.from_pretrained(model.parent if gguf else model, **gguf)
    text = "\n\n".join(pathlib.Path(t).read_text(encoding="utf-8") for t in a.text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < a.rows * a.length:
        raise SystemExit(f"{len(ids)} tokens of text are not enough for {a.rows} rows of {a.length}")
    with open(a.out, "w") as out:
        for i in range(a.rows):
            out.write(json.dumps({"tokens": ids[i * a.length : (i + 1) * a.length]}) + "\n")


if __name__ == "__main__":
    main()
