#!/usr/bin/env python3
"""The ops of bench_cuda.c at the same shapes in eager PyTorch: one JSON object, {"torch", "ops": [{"op", "ms"}]}.

Names are those of bench_cuda.c; an op that takes several of PyTorch's calls is all of them. An op that fails (memory, a version
without it) has "error" in the place of "ms".
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

R = 16


def timer(device, budget_ms):
    def sync():
        if device == "cuda":
            torch.cuda.synchronize()

    def best_ms(call):
        call()
        best, until, n = 1e30, time.perf_counter() + budget_ms * 1e-3, 2
        for run in range(1000):
            if run > 2 and time.perf_counter() > until:
                break
            sync()
            start = time.perf_counter()
            for _ in range(n):
                call()
            sync()
            ms = (time.perf_counter() - start) * 1e3 / n
            if run:
                best = min(best, ms)
            else:
                n = int(min(max(20 / max(ms, 1e-3), 2), 200))
        return best

    return best_ms


def backward(out, inputs, grad):
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def turned(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def make_ops(a, new):
    T, C, NH, KV, D, H, V, M = a.tokens, a.hidden, a.heads, a.kv_heads, a.head_size, a.ffn, a.vocab, a.rows

    def rmsnorm():
        x, w, g = new(T, C).requires_grad_(), new(C), new(T, C)
        y = F.rms_norm(x, (C,), w, 1e-5)
        return {"rmsnorm_fwd": lambda: F.rms_norm(x.detach(), (C,), w, 1e-5), "rmsnorm_bwd": backward(y, [x], g)}

    def rope():
        x, cos, sin = new(T, NH, D), new(T, 1, D // 2), new(T, 1, D // 2)
        return {"rope": lambda: turned(x, cos, sin)}

    def swiglu():
        gu, g = new(T, 2 * H).requires_grad_(), new(T, H)

        def forward(z):
            gate, up = z.chunk(2, dim=-1)
            return F.silu(gate) * up

        return {"swiglu_fwd": lambda: forward(gu.detach()), "swiglu_bwd": backward(forward(gu), [gu], g)}

    def attention():
        q, g = new(1, NH, T, D).requires_grad_(), new(1, NH, T, D)
        k, v = new(1, KV, T, D).requires_grad_(), new(1, KV, T, D).requires_grad_()

        def forward(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=NH != KV)

        return {"attn_fwd": lambda: forward(q.detach(), k.detach(), v.detach()), "attn_bwd": backward(forward(q, k, v), [q, k, v], g)}

    def linear():
        x, w, y, s = new(T, C), new(C, C), new(T, C), new(T, R)
        A, B = new(R, C), new(C, R)
        return {
            "linear_fwd": lambda: x @ w.T,
            "linear_dx": lambda: y @ w,
            "linear_dw": lambda: y.T @ x,
            "lora_fwd": lambda: x @ w.T + 2 * (x @ A.T) @ B.T,
            "lora_dx": lambda: y @ w + s @ A,
            "lora_bwd": lambda: (2 * (y @ B), y.T @ s),
            "lora_da": lambda: s.T @ x,
        }

    def head():
        h, w, target = new(M, C).requires_grad_(), new(V, C), torch.arange(M, device=a.device) * 7919 % V

        def loss(h):
            return F.cross_entropy((h @ w.T).float(), target, reduction="sum")

        return {"head_fwd": lambda: loss(h.detach()), "head_fwd_bwd": lambda: torch.autograd.grad(loss(h), [h])}

    def optimizer():
        p = torch.nn.Parameter(new(a.params, dtype=torch.float32))
        p.grad = new(a.params, dtype=torch.float32)
        adamw = torch.optim.AdamW([p], lr=1e-6, weight_decay=0.1, fused=a.device == "cuda")
        return {"adamw": adamw.step}

    return [rmsnorm, rope, swiglu, attention, linear, head, optimizer]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--ms", type=float, default=300, help="budget of each op")
    for name, default in (("tokens", 8192), ("hidden", 4096), ("heads", 32), ("kv-heads", 8), ("head-size", 128), ("ffn", 14336),
                          ("vocab", 128256), ("rows", 2048), ("params", 64 << 20)):
        p.add_argument("--" + name, type=int, default=default)
    a = p.parse_args()
    torch.manual_seed(1)
    best_ms = timer(a.device, a.ms)
    results = []

    def new(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=a.device, dtype=dtype) * 0.5

    for group in make_ops(a, new):
        try:
            for name, call in group().items():
                results.append({"op": name, "ms": round(best_ms(call), 4)})
        except Exception as e:  # the others are still of interest
            results.append({"op": group.__name__, "error": str(e).splitlines()[0][:200]})
        if a.device == "cuda":
            torch.cuda.empty_cache()
    name = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    print(json.dumps({"torch": torch.__version__, "device": name, "tokens": a.tokens, "ops": results}))


if __name__ == "__main__":
    main()
