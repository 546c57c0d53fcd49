#!/usr/bin/env python3
"""The work of bench/recipes/step.yaml in PyTorch + PEFT: LoRA steps on the rows of a token file, every token but the first trained.

One JSON object a line on stdout: {"step", "loss", "step_ms"} per step, then a summary with tokens_per_s (median over the steps
after the warm-up), peak_rss_bytes and losses. What is the same as in attune: the base weights (dequantised from the GGUF and
rounded to bf16), the adapter that both start from (--adapter), the rows of each step, the loss (sum over the step's trained tokens
over their number), clipping, AdamW, the learning rate.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import time


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="Hugging Face directory or .gguf file")
    p.add_argument("--adapter", help="PEFT directory to start from (both programs start from the same one)")
    p.add_argument("--init-adapter", help="write a fresh adapter to this directory and stop")
    p.add_argument("--data", help='JSONL of {"tokens": [...]}, rows of equal length')
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--warmup-steps", type=int, default=2, help="steps left out of tokens_per_s")
    p.add_argument("--batch", type=int, default=2, help="rows of a step")
    p.add_argument("--micro-rows", type=int, default=0, help="rows of a forward pass; 0: the whole batch")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=float, default=32)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--precision", choices=["bf16", "f32"], default="bf16", help="of the base weights and activations")
    p.add_argument("--adapter-dtype", choices=["f32", "bf16"], default="f32", help="f32 is PEFT's default")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    if bool(a.init_adapter) == bool(a.data):
        p.error("one of --data and --init-adapter is needed")
    return a


def load_base(a, torch):
    from transformers import AutoModelForCausalLM

    path = pathlib.Path(a.model)
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(path.parent if gguf else path, dtype=dtype, **gguf)


def load_model(a, torch):
    from peft import LoraConfig, PeftModel, get_peft_model

    model = load_base(a, torch)
    cast = a.adapter_dtype == "f32"
    if a.adapter:
        return PeftModel.from_pretrained(model, a.adapter, is_trainable=True, autocast_adapter_dtype=cast)
    config = LoraConfig(r=a.rank, lora_alpha=a.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=cast)


def step_rows(rows, step, batch):
    """Rows of step `step` (0-based) of an unshuffled run: [step * batch, ...), wrapping at the end."""
    return [rows[(step * batch + i) % len(rows)] for i in range(batch)]


def train_step(model, optimizer, rows, micro, clip, torch):
    """Loss of the step: token losses of all micro-batches over the trained tokens of the whole step."""
    trained = sum(len(r) - 1 for r in rows)
    total = 0.0
    for first in range(0, len(rows), micro):
        ids = torch.tensor(rows[first : first + micro])
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / trained
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def run(a, torch):
    rows = [json.loads(line)["tokens"] for line in open(a.data)]
    model = load_model(a, torch)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=a.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    stepped = torch.compile(model) if a.compile else model
    losses, speeds = [], []
    for step in range(a.steps):
        batch = step_rows(rows, step, a.batch)
        start = time.perf_counter()
        losses.append(train_step(stepped, optimizer, batch, a.micro_rows or a.batch, a.clip, torch))
        seconds = time.perf_counter() - start
        speeds.append(sum(map(len, batch)) / seconds)
        print(json.dumps({"step": step + 1, "loss": losses[-1], "step_ms": seconds * 1e3}), flush=True)
    summary = {
        "tokens_per_s": statistics.median(speeds[min(a.warmup_steps, a.steps - 1) :]),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
        "torch": torch.__version__,
        "trained_parameters": sum(p.numel() for p in trainable),
        "compile": a.compile,
        "adapter_dtype": a.adapter_dtype,
    }
    print(json.dumps(summary), flush=True)


def main():
    a = arguments()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)  # before torch is imported

    import torch

    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    if a.init_adapter:
        load_model(a, torch).save_pretrained(a.init_adapter)
    else:
        run(a, torch)


if __name__ == "__main__":
    main()
