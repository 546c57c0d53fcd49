#!/usr/bin/env python3
"""Renders the templates of templates/ with transformers' own environment and records the results.

templates/NAME.jinja         chat templates in the style of published models (NAME says whose)
templates/conversations.json [{"name", "vars"}]: what they are rendered with
templates/expected.json      {NAME: {conversation: text, or {"error": kind of Python error}}}
templates/snippets.jinja.txt one template per line ("\\\\N" at a line's end joins the next line with a newline in between)
templates/snippets.json      [[template, text or {"error": kind}]], all rendered with snippet_vars.json
Usage: make_template_golden.py     (needs: pip install transformers jinja2)
"""
import copy
import json
import pathlib

from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

HERE = pathlib.Path(__file__).parent / "templates"
VARS = json.loads((HERE / "snippet_vars.json").read_text(encoding="ascii"))


def render(template, variables):
    """The text, or {"error": ...}; variables as template_render takes them."""
    given = copy.deepcopy(variables)
    messages = _normalize_chat_messages(given.pop("messages"))
    try:
        return render_jinja_template([messages], chat_template=template, **given)[0][0]
    except Exception as error:  # whatever Python makes of it
        return {"error": type(error).__name__}


def snippets():
    lines = (HERE / "snippets.jinja.txt").read_text(encoding="utf-8").split("\n")[:-1]
    joined = []
    for line in lines:
        if joined and joined[-1].endswith("\\N"):
            joined[-1] = joined[-1][:-2] + "\n" + line
        else:
            joined.append(line)
    return joined


def main():
    rows = [[s, render(s, VARS)] for s in snippets()]
    text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows) + "\n]\n"
    (HERE / "snippets.json").write_text(text, encoding="ascii")
    conversations = json.loads((HERE / "conversations.json").read_text(encoding="utf-8"))
    expected = {}
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_bytes().decode("utf-8")
        expected[path.stem] = {c["name"]: render(template, c["vars"]) for c in conversations}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=0, ensure_ascii=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
