#!/usr/bin/env python3
"""Trains small BPE tokenizers with the configurations of published models and records what the `tokenizers` package
makes of texts.jsonl and of random strings. Grammar of the files: tokenizer/README.md.

Usage: make_tokenizer_golden.py [--gguf MODEL.gguf]     (needs: pip install tokenizers xxhash; gguf for --gguf)
"""
import argparse
import json
import pathlib

import xxhash
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent / "tokenizer"
TEXTS = [json.loads(line) for line in open(HERE / "texts.jsonl", encoding="utf-8")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- random strings: the same generator as in tests/text/random_text.h ----------------------------------------------
RANGES = [(0x20, 0x7E), (0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A), (0x30, 0x39), (0x00, 0x20), (0x7F, 0xFF), (0x100, 0x24F),
          (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
          (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2150, 0x218F), (0x2190, 0x23FF), (0x3000, 0x30FF),
          (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F),
          (0xFF00, 0xFFEF), (0x10300, 0x1034F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x20000, 0x200FF), (0xE0100, 0xE01EF)]
STRINGS = [" ", " ", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e", "'s", "'LL",
           "the", " the", " and", "ing", "1234", "...", "\u200d", "\ufe0f", "\u2581", "<|im_start|>", "<|im_end|>", "<s>", "</s>",
           "[MASK]", "<sp>", "New York", "<unk>", "<0x41>"]
RANDOM_BLOCKS, BLOCK = 20, 100


def random_strings(seed):
    state = seed

    def draw(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    while True:
        text = ""
        for _ in range(1 + draw(30)):
            if draw(4) == 0:
                text += STRINGS[draw(len(STRINGS))]
            else:
                first, last = RANGES[draw(len(RANGES))]
                text += chr(first + draw(last - first + 1))
        yield text


def digest(lists):
    h = xxhash.xxh64()
    for ids in lists:
        h.update(b"".join(i.to_bytes(4, "little") for i in [len(ids), *ids]))
    return f"{h.intdigest():016x}"


# ---- configurations -------------------------------------------------------------------------------------------------
def byte_level(pre, size=600, normalizer=None, special=SPECIAL, **model):
    """A byte-level BPE trained on the texts."""
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def sequence(*steps):
    return pre_tokenizers.Sequence(list(steps))


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern, behavior, invert)


def gpt2():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def roberta():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), special=["<s>", "<pad>", "</s>", "<unk>"])
    t.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=True)])
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return t


def smollm():
    return byte_level(sequence(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)))


def llama3():
    t = byte_level(sequence(split(Regex(CL100K % "{1,3}")), bytes_only()), special=["<s>", *SPECIAL], ignore_merges=True)
    bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return with_whole_words(t)


def with_whole_words(t):
    """Adds words to the vocabulary that no merges build: only ignore_merges finds them."""
    spec = json.loads(t.to_str())
    vocab = spec["model"]["vocab"]
    for word in ("\u0120dear", "lady", "\u0120Bennet", "\u00e4\u00b8\u0143\u00e6\u0138\u0129"):
        vocab.setdefault(word, max(vocab.values()) + 1)
    return Tokenizer.from_str(json.dumps(spec))


def qwen2():
    return byte_level(sequence(split(Regex(CL100K % "")), bytes_only()), normalizer=normalizers.NFC())


def gpt4o():
    return byte_level(sequence(split(Regex(O200K)), bytes_only()))


def deepseek():
    cjk = Regex("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
    return byte_level(sequence(split(Regex(r"[\r\n]")), split(Regex(r"\s?\p{L}+")), split(Regex(r"\s?\p{P}+")), split(cjk),
                               pre_tokenizers.Digits(individual_digits=True), bytes_only()))


def falcon():
    return byte_level(sequence(pre_tokenizers.Punctuation(behavior="contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
                               pre_tokenizers.Digits(individual_digits=False), split(Regex("[0-9][0-9][0-9]"))))


def bloom():
    return byte_level(sequence(split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")), bytes_only()))


def splits():
    return byte_level(sequence(split(Regex(r"\p{Lu}"), "merged_with_next"), split(".", "merged_with_previous"), split("e", "removed"),
                               split(Regex(r"\p{Nd}{2}+"), "contiguous"), split(Regex(r"[\w\-]+"), "merged_with_next", True),
                               split(Regex(r"^.|\h\h$"), "isolated"), bytes_only()))


def added():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Lowercase())
    t.add_tokens([AddedToken("New York", normalized=True), AddedToken("the", single_word=True, normalized=False),
                  AddedToken("<sp>", lstrip=True, rstrip=True), AddedToken("new", normalized=False), AddedToken("newy", normalized=False),
                  AddedToken("\n", rstrip=True, normalized=False)])
    t.add_special_tokens([AddedToken("[MASK]", lstrip=True), AddedToken("<s>", rstrip=True, single_word=True), "<|im_end|>x"])
    return t


def forms():
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.NFC(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Sequence(steps))


def nfkc_nfd():
    steps = [normalizers.NFKC(), normalizers.NFD()]
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Sequence(steps))


def sentencepiece(normalizer=None, pre=None, size=700):
    """A character BPE with byte fall-back, as converted from SentencePiece models."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizer if normalizer else normalizers.Sequence([])
    if pre:
        t.pre_tokenizer = pre
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    latin = [text for text in TEXTS if text.isascii()]
    lines = [word for text in latin for word in text.replace(" ", " \n").split("\n")] if not pre else latin
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    spec = json.loads(t.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    if not normalizer:
        spec["normalizer"] = None
    return spec


LLAMA_DECODER = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def llama2():
    spec = sentencepiece(normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))
    spec["decoder"] = LLAMA_DECODER
    spec["post_processor"] = json.loads(processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 1), ("</s>", 2)]).__getstate__())
    return Tokenizer.from_str(json.dumps(spec))


def gemma():
    spec = sentencepiece(normalizers.Replace(" ", "\u2581"), split(" ", "merged_with_previous"))
    spec["decoder"] = {"type": "Sequence", "decoders": LLAMA_DECODER["decoders"][:3]}
    return Tokenizer.from_str(json.dumps(spec))


def mistral():
    spec = sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    spec["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return Tokenizer.from_str(json.dumps(spec))


def metaspace():
    spec = sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))
    spec["model"]["byte_fallback"] = False
    spec["model"]["fuse_unk"] = False
    spec["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return Tokenizer.from_str(json.dumps(spec))


def whitespace():
    spec = sentencepiece(None, pre_tokenizers.Whitespace())
    spec["model"]["byte_fallback"] = False
    return Tokenizer.from_str(json.dumps(spec))


CONFIGS = [gpt2, roberta, smollm, llama3, qwen2, gpt4o, deepseek, falcon, bloom, splits, added, forms, nfkc_nfd, llama2, gemma,
           mistral, metaspace, whitespace]


# ---- the GGUF model -------------------------------------------------------------------------------------------------
def from_gguf(path, merges=None):
    """The Hugging Face tokenizer of SmolLM2, rebuilt from its GGUF; with `merges`, cut down to that many."""
    import gguf
    fields = gguf.GGUFReader(path).fields
    tokens, types, pairs = (fields["tokenizer.ggml." + key].contents() for key in ("tokens", "token_type", "merges"))
    pairs = [tuple(p.split(" ")) for p in pairs]
    if merges:
        pairs = pairs[:merges]
        made = {a + b for a, b in pairs}
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        keep = [i for i, text in enumerate(tokens) if types[i] == 3 or text in alphabet or text in made]
        tokens, types = [tokens[i] for i in keep], [types[i] for i in keep]
    t = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=pairs))
    t.pre_tokenizer = sequence(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(text, normalized=False) for text, kind in zip(tokens, types) if kind == 3])
    return t


# ---- writing --------------------------------------------------------------------------------------------------------
def compact(t):
    """tokenizer.json with merges in the short form, alternately: both forms are read."""
    spec = json.loads(t.to_str())
    if len(spec["model"]["merges"]) % 2:
        spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    return json.dumps(spec, ensure_ascii=len(spec["model"]["vocab"]) % 2 == 0, separators=(",", ":"))


def record(name, t):
    out = open(HERE / f"{name}.golden", "w", encoding="utf-8")
    for text in TEXTS:
        plain, special = t.encode(text, add_special_tokens=False).ids, t.encode(text, add_special_tokens=True).ids
        row = [plain, len(special) - len(plain), t.decode(plain, skip_special_tokens=False), t.decode(plain, skip_special_tokens=True)]
        if row[3] == row[2]:
            row[3] = 0
        if row[2] == text:
            row[2] = 0
        out.write(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n")
    strings = random_strings(1)
    for _ in range(RANDOM_BLOCKS):
        block = [next(strings) for _ in range(BLOCK)]
        out.write(json.dumps(digest(t.encode(s, add_special_tokens=False).ids for s in block)) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    args = parser.parse_args()
    made = [(f.__name__, f()) for f in CONFIGS]
    if args.gguf:
        made.append(("smollm2-cut", from_gguf(args.gguf, merges=3000)))
        record("smollm2-full", from_gguf(args.gguf))
    for name, t in made:
        text = compact(t)
        (HERE / f"{name}.json").write_text(text, encoding="utf-8")
        record(name, Tokenizer.from_str(text))


if __name__ == "__main__":
    main()
