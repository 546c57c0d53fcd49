#!/usr/bin/env bash
# Every layout of tensor × data ranks × ZeRO stage trains what one rank trains: losses and gradient norms within rounding, over all
# tensor sizes (heads that divide, do not divide, and are shared), for all weights and for adapters with dropout. At a given tensor
# size the bits do not depend on the data ranks or the stage: neither those of the losses nor those of what comes out.
source "$(dirname "$0")/lib.sh"
rows 37 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
data: {train: $work/rows.jsonl}
precision: f32
train: {steps: 10, batch: 7, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 0}
END

layouts llama lora adapter/adapter_model.safetensors
layouts llama full model/model.safetensors train.weight_decay=0.1
layouts llama_untied full model/model.safetensors train.recompute=true
layouts llama3 freeze model/model.safetensors 'freeze.train=[layers.1.mlp, norm, embed]'

# sequence parallelism: other places for the same numbers
for layout in "2 1 0" "3 1 0" "4 1 0" "2 2 0" "2 2 3"; do
    read -r tp dp zero <<<"$layout"
    for family in llama llama_untied; do
        [[ $family == llama ]] && args=(train.weight_decay=0.1) || args=(train.recompute=true)
        out=$work/sequence-$family-$tp-$dp-$zero
        train 0 $((tp * dp)) "$out" "model=$golden/$family" method=full "${args[@]}" parallel.tensor=$tp parallel.zero=$zero \
            parallel.sequence=true
        within "$(largest loss "$out" "$work/$family-full-one")" 1e-5 "sequence parallel, $family $layout: loss"
        within "$(largest grad_norm "$out" "$work/$family-full-one")" 1e-4 "sequence parallel, $family $layout: grad_norm"
    done
done
same "$work/sequence-llama-2-2-3/model/model.safetensors" "$work/sequence-llama-2-1-0/model/model.safetensors" "sequence parallel, bits"
train 0 4 "$work/sequence-lora" "model=$golden/llama" parallel.tensor=4 parallel.sequence=true
within "$(largest loss "$work/sequence-lora" "$work/llama-lora-one")" 1e-5 "sequence parallel, adapters"

# one data rank: the stage says nothing
train 0 2 "$work/alone" "model=$golden/llama" method=full train.weight_decay=0.1 parallel.tensor=2 parallel.zero=3
same "$work/alone/model/model.safetensors" "$work/llama-full-2-1-0/model/model.safetensors" "ZeRO with one data rank"
# bf16, where ZeRO rounds what it gathers
train 0 1 "$work/bf16-1" "model=$golden/llama" method=full precision=bf16
for zero in 1 2 3; do
    train 0 2 "$work/bf16-$zero-2" "model=$golden/llama" method=full precision=bf16 parallel.zero=$zero
    same "$work/bf16-$zero-2/model/model.safetensors" "$work/bf16-1/model/model.safetensors" "bf16 with zero $zero"
done
# plain sums are close, not equal
for zero in 0 1 2 3; do
    train 0 4 "$work/plain-$zero" "model=$golden/llama" method=full train.weight_decay=0.1 deterministic=false \
        parallel.tensor=2 parallel.zero=$zero
    within "$(largest loss "$work/plain-$zero" "$work/llama-full-one")" 1e-5 "plain sums, zero $zero"
done

# what cannot be
train 2 4 "$work/bad" "model=$golden/llama" parallel.tensor=3
says 'parallel.tensor: 4 ranks cannot be divided into groups of 3'
train 2 8 "$work/bad" "model=$golden/llama" parallel.tensor=8
says 'hint: at most 4 for this model'
finish
