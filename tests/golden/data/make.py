"""Makes tokenizer.json, tokenizer_config.json and masks.jsonl of this folder (see README.md).

Needs `tokenizers` and `transformers`. Run from anywhere; the output is deterministic.
"""
import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

here = pathlib.Path(__file__).parent
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|system|>", "<|user|>", "<|assistant|>"]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # added, but text like any other


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(open(here / "conversations.jsonl"), trainer)
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s in ADDED])
    t.save(str(here / "tokenizer.json"), pretty=False)
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (here / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    return PreTrainedTokenizerFast(tokenizer_file=str(here / "tokenizer.json"), bos_token="<s>", eos_token="</s>")


def mask(tok, template, row):
    try:
        text = tok.apply_chat_template(row["messages"], tools=row.get("tools"), chat_template=template, tokenize=False)
        out = tok.apply_chat_template(row["messages"], tools=row.get("tools"), chat_template=template, return_dict=True,
                                      return_assistant_tokens_mask=True)
    except Exception:  # the template refuses the conversation
        return {"refused": True}
    names = [c["function"]["name"] for m in row["messages"] for c in m.get("tool_calls", [])]
    if not all(name in text for name in names):  # attune refuses templates that drop tool calls
        return {"refused": True}
    ids = tok(text, add_special_tokens=False)["input_ids"]
    assert ids == out["input_ids"]
    return {"ids": ids, "mask": "".join(map(str, out["assistant_masks"]))}


def main():
    tok = tokenizer()
    rows = [json.loads(line) for line in open(here / "conversations.jsonl")]
    with open(here / "masks.jsonl", "w") as f:
        for path in sorted((here / "templates").glob("*.jinja")):
            template = path.read_text()
            for i, row in enumerate(rows):
                line = mask(tok, template, row)
                f.write(json.dumps({"template": path.name, "line": i + 1, **line}) + "\n")


main()
