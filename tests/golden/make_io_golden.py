#!/usr/bin/env python3
"""Makes tests/golden/io with the packages that define the formats: safetensors, gguf and peft. See io/README.md.

    pip install safetensors==0.8.0 gguf==0.19.0 peft==0.21.2 torch numpy
    tests/golden/make_io_golden.py

Every number is drawn from a seeded generator. The q/k permutation is llama.cpp's LlamaModel.permute.
"""
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Q
from peft import LoraConfig
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "io"
rng = np.random.default_rng(20240229)


def save(path, tensors, metadata={"format": "pt"}):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: torch.as_tensor(v).contiguous() for k, v in tensors.items()}, path, metadata=metadata)


# ---- safetensors: a file per dtype, shards, and what our writer must repeat -------------------------------------------
def dtypes():
    values = np.array([[0.0, -0.0, 1.0, -1.5], [2.0**-24, 65504.0, -3.140625, 1 / 3], [1e-30, 3e38, 7.0, -2.0**-14]])
    for name, t in {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}.items():
        x = torch.tensor(values).clamp(-65504, 65504) if name == "f16" else torch.tensor(values)
        # row 3: a number that bf16 has to round to even, and one that rounds up
        x = torch.cat([x, torch.tensor([[1.00390625, 1.01171875, 255.0, float("inf")]], dtype=torch.float64)])
        save(HERE / "dtypes" / f"{name}.safetensors", {"t": x.to(t), "t.f32": x.to(t).to(torch.float32)})
    whole = torch.arange(12).reshape(3, 4)
    for name in ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2"]:
        save(HERE / "dtypes" / f"{name}.safetensors", {"t": whole.to(getattr(torch, name))})
    save(HERE / "dtypes" / "shapes.safetensors",
         {"scalar": torch.tensor(2.5), "vector": torch.arange(5.0), "empty": torch.zeros(0, 3), "cube": torch.arange(24.0).reshape(2, 3, 4)})


def shards():
    parts = {"model-00001-of-00002.safetensors": {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)},
             "model-00002-of-00002.safetensors": {"c.weight": torch.arange(8.0).reshape(4, 2) * -1}}
    for file, tensors in parts.items():
        save(HERE / "shards" / file, tensors)
    index = {"metadata": {"total_size": 72}, "weight_map": {name: file for file, t in parts.items() for name in t}}
    (HERE / "shards" / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def written():
    def ramp(*shape):
        return torch.arange(int(np.prod(shape))).reshape(shape)
    save(HERE / "written.safetensors",
         {"z.f32": ramp(2, 3).to(torch.float32), "a.f32": ramp(5).to(torch.float32), "b.bf16": ramp(3, 2).to(torch.bfloat16),
          "h.f16": ramp(2, 2).to(torch.float16), "i.i64": ramp(3).to(torch.int64), "j.i32": ramp(1, 3).to(torch.int32),
          "u.u8": ramp(3).to(torch.uint8), "s.f32": torch.tensor(0.0), "e.f32": torch.zeros(0, 4), "k\"\\\u00e9.f32": ramp(2, 1, 2).to(torch.float32)})


# ---- GGUF ---------------------------------------------------------------------------------------------------------------
def f16_bytes(shape):
    """Block scales: ordinary ones, both signs, zero, and the ends of the range of f16."""
    s = (rng.standard_normal(shape) * 0.01).astype(np.float16)
    extremes = np.array([0.0, -0.0, 65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 1.0], np.float16)
    flat = s.reshape(-1)
    flat[: min(8, flat.size)] = extremes[: min(8, flat.size)]
    rng.shuffle(flat)
    return s.view(np.uint8).reshape(*shape, 2)


# where the f16 scales lie in a block
SCALES = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
          Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}


def random_blocks(qtype, rows, blocks):
    raw = rng.integers(0, 256, (rows, blocks, GGML_QUANT_SIZES[qtype][1]), dtype=np.uint8)
    for at in SCALES[qtype]:
        raw[:, :, at:at + 2] = f16_bytes((rows, blocks))
    return raw.reshape(rows, -1)


def quants():
    w = gguf.GGUFWriter(HERE / "quants.gguf", "quants")
    expected = {}
    for qtype in SCALES:
        raw = random_blocks(qtype, 4, 12 if GGML_QUANT_SIZES[qtype][0] == 32 else 3)
        w.add_tensor(qtype.name, raw, raw_dtype=qtype)
        expected[qtype.name] = gguf.quants.dequantize(raw, qtype)
    halves = np.concatenate([np.arange(0, 0x7c01, 31), np.arange(0x8000, 0xfc01, 37)]).astype(np.uint16)
    w.add_tensor("F16", halves.view(np.float16))
    expected["F16"] = gguf.quants.dequantize(halves.view(np.float16), Q.F16)
    bf16 = rng.integers(0, 0x7f80, 40).astype(np.uint16).reshape(5, 8)
    w.add_tensor("BF16", bf16.view(np.uint8), raw_dtype=Q.BF16)
    expected["BF16"] = gguf.quants.dequantize(bf16.view(np.uint8), Q.BF16)
    vector = random_blocks(Q.Q8_0, 1, 3)[0]  # a vector in blocks: rows start and end inside them
    w.add_tensor("vector", vector, raw_dtype=Q.Q8_0)
    expected["vector"] = gguf.quants.dequantize(vector, Q.Q8_0)
    w.add_tensor("I32", np.arange(4, dtype=np.int32))
    close(w)
    save(HERE / "quants.safetensors", expected)


def close(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def permute(x, heads):
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


LLAMA = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hf_name(name, names):
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
    return f"{names[parts[0]]}.{parts[1]}"


def llama():
    """4 heads of 8, 2 of them for keys, biases on q and k; layer 0 whole in Q4_0, of layers 3 and 10 the attention in F16 and F32."""
    heads, kv, d, c, f = 4, 2, 8, 32, 32
    w = gguf.GGUFWriter(HERE / "llama.gguf", "llama")
    w.add_block_count(11)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    keys(w)
    shapes = {"attn_q": (heads * d, c), "attn_k": (kv * d, c), "attn_v": (kv * d, c), "attn_output": (c, heads * d),
              "ffn_gate": (f, c), "ffn_up": (f, c), "ffn_down": (c, f), "attn_norm": (c,), "ffn_norm": (c,)}
    expected = {}

    def add(name, x, qtype):
        stem = name.split(".")[-2]
        stored = permute(x, heads if stem == "attn_q" else kv) if stem in ("attn_q", "attn_k") else x
        raw = gguf.quants.quantize(np.ascontiguousarray(stored), qtype)
        w.add_tensor(name, raw, raw_dtype=qtype)
        # rows are quantised each for itself: quantising in Hugging Face's order gives the rows to be found
        expected[hf_name(name, LLAMA)] = gguf.quants.dequantize(gguf.quants.quantize(x, qtype), qtype)

    add("token_embd.weight", draw(8, c), Q.Q8_0)
    add("output_norm.weight", draw(c), Q.F32)
    add("output.weight", draw(8, c), Q.Q4_1)
    for layer, qtype in {0: Q.Q4_0, 3: Q.F16, 10: Q.F32}.items():
        for stem, shape in shapes.items():
            if layer > 0 and not stem.startswith("attn"):
                continue
            add(f"blk.{layer}.{stem}.weight", draw(*shape), Q.F32 if len(shape) == 1 else qtype)
        add(f"blk.{layer}.attn_q.bias", draw(heads * d), Q.F32)
        add(f"blk.{layer}.attn_k.bias", draw(kv * d), Q.F32)
    w.add_tensor("rope_freqs.weight", np.arange(1, d // 2 + 1, dtype=np.float32))
    expected["rope_freqs.weight"] = np.arange(1, d // 2 + 1, dtype=np.float32)
    close(w)
    save(HERE / "llama.safetensors", expected)


def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def keys(w):
    """One key of every type, and the arrays of a tokenizer."""
    w.add_uint8("t.u8", 255)
    w.add_int8("t.i8", -128)
    w.add_uint16("t.u16", 65535)
    w.add_int16("t.i16", -32768)
    w.add_uint32("t.u32", 4294967295)
    w.add_int32("t.i32", -2147483648)
    w.add_uint64("t.u64", 2**63 + 1)
    w.add_int64("t.i64", -(2**63))
    w.add_float32("t.f32", 1e-5)
    w.add_float64("t.f64", 0.1)
    w.add_float32("t.whole", 10000.0)
    w.add_bool("t.true", True)
    w.add_bool("t.false", False)
    w.add_string("t.string", 'say "hi"\n\\ \u00e9\U0001f600\x01')
    w.add_key_value("t.empty", "", gguf.GGUFValueType.STRING)  # add_string drops empty ones
    w.add_token_list(["<s>", "\u0120a", "\u00e9", '"', "\\"])
    w.add_token_types([3, 1, 1, 1, 1])
    w.add_token_scores([0.0, -1.5, 3.4028234663852886e38, 1e-45, 0.1])
    w.add_array("t.bools", [True, False])


def families():
    """Families that are not permuted: Qwen3 (q/k norms), Gemma 3 (four norms, one added to each), Phi-3 (fused), OLMo 2 (post-norms)."""
    qwen = dict(LLAMA, attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
    sandwich = dict(qwen, post_attention_norm="post_attention_layernorm", ffn_norm="pre_feedforward_layernorm",
                    post_ffw_norm="post_feedforward_layernorm")
    olmo = {k: v for k, v in sandwich.items() if k not in ("attn_norm", "ffn_norm")}
    phi = {k: v for k, v in LLAMA.items() if k not in ("attn_q", "attn_k", "attn_v", "ffn_gate")}
    phi |= {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    for arch, names in {"qwen3": qwen, "gemma3": sandwich, "olmo2": olmo, "phi3": phi}.items():
        w = gguf.GGUFWriter(HERE / f"{arch}.gguf", arch)
        w.add_head_count(2)
        expected = {}
        for stem, hf in names.items():
            name = f"{stem}.weight" if stem in ("token_embd", "output_norm", "output") else f"blk.1.{stem}.weight"
            norm = "norm" in stem
            # as in published files: bf16 numbers, so that adding one in f32 loses nothing
            x = torch.tensor(draw(8) if norm else draw(4, 8)).to(torch.bfloat16).to(torch.float32).numpy()
            w.add_tensor(name, x + 1 if norm and arch == "gemma3" else x)
            expected[hf_name(name, names)] = x
        close(w)
        save(HERE / f"{arch}.safetensors", expected)


# ---- PEFT ---------------------------------------------------------------------------------------------------------------
def peft():
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    configs = {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=seven, task_type="CAUSAL_LM", base_model_name_or_path="base"),
        "pattern": LoraConfig(r=4, lora_alpha=8, target_modules=seven, lora_dropout=0.05, use_rslora=True,
                              rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6, "mlp.up_proj": 7, r"^model\.layers\.[0-9]+\.mlp\.up_proj": 3},
                              alpha_pattern={"v_proj": 3, "layers.1.mlp.down_proj": 12.5}),
        "dora": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], use_dora=True, modules_to_save=["lm_head", "score"],
                           task_type="SEQ_CLS", fan_in_fan_out=True),
        "regex": LoraConfig(target_modules=r".*\.layers\.\d+\.self_attn\.(q|v)_proj"),
        "all-linear": LoraConfig(target_modules="all-linear"),
    }
    for name, config in configs.items():
        config.save_pretrained(HERE / "peft" / name)
        path = HERE / "peft" / name / "adapter_config.json"
        data = json.loads(path.read_text())
        if isinstance(data["target_modules"], list):
            data["target_modules"].sort()  # a set in PEFT, whose order changes from run to run
        path.write_text(json.dumps(data, indent=2, sort_keys=True))
    module = "base_model.model.model.layers.{}.{}"
    from peft.utils.other import get_pattern_key
    c = LoraConfig.from_pretrained(HERE / "peft" / "pattern")  # the first key in the file that matches counts
    lines = ["# module rank alpha, as PEFT applies rank_pattern and alpha_pattern of pattern/adapter_config.json"]
    for layer in (0, 1, 11):
        for part in ["self_attn." + p for p in seven[:4]] + ["mlp." + p for p in seven[4:]]:
            key = f"model.layers.{layer}.{part}"
            rank = c.rank_pattern.get(get_pattern_key(c.rank_pattern.keys(), key), c.r)
            alpha = c.alpha_pattern.get(get_pattern_key(c.alpha_pattern.keys(), key), c.lora_alpha)
            lines.append(f"{key} {rank} {alpha}")
    (HERE / "peft" / "pattern" / "modules.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for part in ["dtypes", "shards", "peft"]:
        shutil.rmtree(HERE / part, ignore_errors=True)
    HERE.mkdir(exist_ok=True)
    dtypes()
    shards()
    written()
    quants()
    llama()
    families()
    peft()
