#!/usr/bin/env bash
# The stand-in's own test: a program that forgets to make a stream wait for an event, or the host to, is found out in every order of the
# streams. What it has forgotten, the stand-in has it forget.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
data: {train: $work/rows.jsonl}
precision: f32
train: {steps: 2, batch: 6, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8}
device: cuda
checkpoint: {every: 0}
END
bits() { values loss "$1/metrics.jsonl" && values grad_norm "$1/metrics.jsonl"; }
on_host train 0 2 "$work/right"
for what in waits queries; do
    for seed in 1 2 3; do
        out=$work/$what-$seed
        CUDAHOST_FORGET=$what CUDAHOST_SEED=$seed timeout 60 "$mpiexec" -n 2 "$work/attune-on-host" train "$work/recipe.yaml" "output=$out" \
            >"$work/log" 2>&1 </dev/null
        [[ -f $out/metrics.jsonl ]] && ! cmp -s <(bits "$out") <(bits "$work/right") && continue
        grep -q 'the loss is not finite' "$work/log" || complain "forgotten $what, order $seed: not found"
    done
done
finish
