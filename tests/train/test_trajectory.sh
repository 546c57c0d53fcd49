#!/usr/bin/env bash
# The recipe, the loop, the optimizer and the files they write, against PyTorch and PEFT: losses, gradient norms, log-probabilities
# afterwards; packed and row by row, with and without recomputation, order-free and plain sums.
source "$(dirname "$0")/lib.sh"

list() { sed -n "/\"$1\": \[/,/\]/p" "$2" | sed 's/"[a-z_]*"//' >"$work/list" && numbers "$work/list"; }
scores() { sed 's/.*"logprobs": \[\([^]]*\)\].*/\1/' "$1" >"$work/list" && numbers "$work/list"; }

lora() { # FAMILY ADAPTER_DIR OVERRIDES...
    local dir=$golden/$1/$2 family=$1
    shift 2
    cat >"$work/recipe.yaml" <<END
model: $golden/$family
adapter: $dir/adapter_init
method: lora
precision: f32
data: {train: $golden/$family/tokens.jsonl, shuffle: false}
train: {steps: 6, batch: 5, lr: 2.0e-3, schedule: constant, warmup: 0}
checkpoint: {every: 0}
END
    train 0 0 "$work/run" --force "$@"
    values loss "$work/run/metrics.jsonl" >"$work/got"
    list losses "$dir/losses.json" >"$work/want"
    near "$work/got" "$work/want" 5e-5 "$dir losses $*"
    values grad_norm "$work/run/metrics.jsonl" >"$work/got"
    list grad_norms "$dir/losses.json" >"$work/want"
    near "$work/got" "$work/want" 5e-5 "$dir norms $*"
    run 0 0 score "$golden/$family" --adapter "$work/run/adapter" --precision f32 --data "$golden/$family/tokens.jsonl" \
        --out "$work/scores.jsonl"
    scores "$work/scores.jsonl" >"$work/got"
    scores "$dir/logprobs_after.jsonl" >"$work/want"
    near "$work/got" "$work/want" 3e-4 "$dir scores afterwards $*"
}
for family in llama llama_untied llama3; do lora $family lora; done
lora llama peft/rslora
lora llama peft/pattern
lora llama peft/dora
lora llama peft/dora-pattern
lora llama_untied peft/dora
lora llama lora data.pack=false
lora llama lora train.recompute=true
lora llama lora deterministic=false train.micro_tokens=64
finish
