#!/usr/bin/env bash
# The program that nvcc built trains on its CUDA device, run on the host, what it trains on the CPU: adapters and all weights, f32 and bf16.
# The bits do not depend on the order in which streams, blocks and threads run. Checkpoints of one device are continued on the other.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
precision: f32
train: {steps: 4, batch: 3, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 8, alpha: 16, dropout: 0.1}
checkpoint: {every: 2, keep: 0}
END
compare() { # NAME TOLERANCE_OF_LOSSES TOLERANCE_OF_GRADIENTS OVERRIDES...
    local name=$1 tolerance=$2 of_norm=$3
    shift 3
    train 0 0 "$work/cpu-$name" device=cpu "$@"
    on_host train 0 0 "$work/cuda-$name" device=cuda "$@"
    for key in loss eval/loss; do
        near <(values $key "$work/cuda-$name/metrics.jsonl") <(values $key "$work/cpu-$name/metrics.jsonl") "$tolerance" "$name: $key"
    done
    near <(values grad_norm "$work/cuda-$name/metrics.jsonl") <(values grad_norm "$work/cpu-$name/metrics.jsonl") "$of_norm" "$name: grad_norm"
}
compare lora 1e-5 1e-4 model=$golden/llama
compare dora 1e-5 1e-4 model=$golden/llama3 lora.variant=dora
compare dora-kept 1e-5 1e-4 model=$golden/llama lora.variant=dora lora.dropout=0
compare full 2e-5 2e-4 model=$golden/llama_untied method=full train.recompute=true train.weight_decay=0.1
# bf16: a sum that is an ulp away is rounded to another number, 2^-8 away, and goes on from there. Losses, means over many such, stay
# within the unit roundoff of 2^-9 (seen: 9e-4, as far as the CPU's bf16 is from its f32); norms of gradients within 1e-2 (seen: 5e-3).
compare bf16 2e-3 1e-2 model=$golden/llama precision=bf16
compare bf16-kept 2e-3 1e-2 model=$golden/llama precision=bf16 lora.dropout=0
compare bf16-4 2e-3 1e-2 model=$golden/llama precision=bf16 lora.rank=4 # few enough for the kernel of dS and dB
compare full-bf16 2e-3 1e-2 model=$golden/llama3 precision=bf16 method=full

for seed in 0 2 3; do # streams and threads in other orders
    CUDAHOST_SEED=$seed on_host train 0 0 "$work/seed-$seed" device=cuda model=$golden/llama
    same "$work/seed-$seed/adapter/adapter_model.safetensors" "$work/cuda-lora/adapter/adapter_model.safetensors" "order $seed"
done

for pair in "cpu cuda" "cuda cpu"; do # from step 2 of the one on the other
    read -r from to <<<"$pair"
    cp -r "$work/$from-full" "$work/$from-$to"
    rm -r "$work/$from-$to/checkpoints/step-00000004"
    [[ $to == cuda ]] && how=on_host || how=
    $how train 0 0 "$work/$from-$to" device=$to model=$golden/llama_untied method=full train.recompute=true train.weight_decay=0.1 --resume
    says 'after step 2'
    near <(values loss "$work/$from-$to/metrics.jsonl") <(values loss "$work/cpu-full/metrics.jsonl") 2e-5 "written on $from, resumed on $to"
done
finish
