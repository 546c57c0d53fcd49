#!/usr/bin/env python3
"""Makes the DoRA adapters of tests/golden/families and what becomes of them, with PyTorch and PEFT. See families/README.md.

    pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors==0.8.0
    tests/golden/make_dora_golden.py [FAMILY/NAME ...]

f32, one CPU thread, eager attention, one sequence at a time. An adapter_init that is there is kept and the rest computed from it, so that
`make_dora_golden.py llama/dora` repeats the numbers of an adapter that was not made here.
"""
import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

FAMILIES = pathlib.Path(__file__).parent / "families"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS, LR, CLIP, EPS, BETAS = 6, 2e-3, 1.0, 1e-8, (0.9, 0.999)

CASES = {
    "llama/dora": {"seed": 1, "target_modules": LINEAR},
    "llama_untied/dora": {"seed": 2, "target_modules": LINEAR},
    "llama/dora-pattern": {"seed": 3, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], "use_rslora": True,
                           "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
                           "alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 12}},
}


def base(family):
    return AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32, attn_implementation="eager")


def save(model, family, directory):
    """As save_pretrained does it, without the model card and the path of this machine."""
    model.peft_config["default"].base_model_name_or_path = family
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    file = directory / "adapter_config.json"
    config = json.loads(file.read_text())
    config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=1, sort_keys=True))


def make_adapter(family, directory, seed, **config):
    """B is random and the magnitudes are off the norms, so that nothing that is left out goes unnoticed."""
    torch.manual_seed(seed)
    model = get_peft_model(base(family), LoraConfig(r=4, lora_alpha=8, use_dora=True, task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
            elif "lora_magnitude" in name:
                p.mul_(1 + 0.15 * torch.randn_like(p))
    save(model, family, directory)


def logprobs(model, row):
    logits = model(torch.tensor([row])).logits[0]
    lp = torch.log_softmax(logits, -1)
    return lp[:-1].gather(1, torch.tensor(row[1:]).view(-1, 1)).view(-1), logits[-1]


def write_logprobs(model, rows, file):
    model.eval()
    with torch.no_grad(), file.open("w") as out:
        for row in rows:
            lp, last = logprobs(model, row)
            top = torch.topk(last, 5)
            out.write(json.dumps({"tokens": row, "logprobs": [float(f"{x:.9g}") for x in lp.tolist()],
                                  "last_logits_top5": [[i, float(f"{x:.9g}")] for i, x in zip(top.indices.tolist(), top.values.tolist())]}) + "\n")


def train(model, rows):
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    tokens = sum(len(r) - 1 for r in rows)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for row in rows:
            if len(row) > 1:
                loss = -logprobs(model, row)[0].sum() / tokens
                loss.backward()
                total += loss.item()
        losses.append(float(f"{total:.9g}"))
        norms.append(float(f"{torch.nn.utils.clip_grad_norm_(params, CLIP).item():.9g}"))
        optimizer.step()
    return {"steps": STEPS, "lr": LR, "betas": list(BETAS), "eps": EPS, "weight_decay": 0.0, "clip": CLIP, "tokens": tokens,
            "losses": losses, "grad_norms": norms}


def make(case):
    family, name = case.split("/")
    directory = FAMILIES / family / "peft" / name
    rows = [json.loads(line)["tokens"] for line in (FAMILIES / family / "tokens.jsonl").read_text().splitlines()]
    if not (directory / "adapter_init").exists():
        make_adapter(family, directory / "adapter_init", **CASES[case])
    model = PeftModel.from_pretrained(base(family), directory / "adapter_init", is_trainable=True)
    write_logprobs(model, rows, directory / "logprobs_init.jsonl")
    result = train(model, rows)
    (directory / "losses.json").write_text(json.dumps(result, indent=1) + "\n")
    write_logprobs(model, rows, directory / "logprobs_after.jsonl")
    shutil.rmtree(directory / "adapter_final", ignore_errors=True)
    save(model, family, directory / "adapter_final")
    print(case, result["losses"], result["grad_norms"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for which in sys.argv[1:] or list(CASES):
        make(which)
