#!/usr/bin/env bash
# Several ranks with a GPU each, run on the host: the same bits on 1, 2 and 4 data ranks; tensor parallel and ZeRO train what the CPU
# trains; NCCL and the way through the host's memory give the same.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
data: {train: $work/rows.jsonl}
precision: f32
train: {steps: 3, batch: 6, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 8, alpha: 16}
checkpoint: {every: 2}
END
adapter=adapter/adapter_model.safetensors
for n in 1 2 4; do
    on_host train 0 $n "$work/data-$n" device=cuda
    same "$work/data-$n/$adapter" "$work/data-1/$adapter" "LoRA on $n data ranks"
    for key in loss grad_norm; do
        same <(values $key "$work/data-$n/metrics.jsonl") <(values $key "$work/data-1/metrics.jsonl") "$key on $n data ranks"
    done
done
for n in 1 4; do # in bf16 the adapter's gradients come of one kernel
    on_host train 0 $n "$work/bf16-$n" device=cuda precision=bf16 lora.rank=4 lora.dropout=0.1
    same "$work/bf16-$n/$adapter" "$work/bf16-1/$adapter" "LoRA in bf16 on $n data ranks"
done
for zero in 1 3; do # adapters in the borders of weights that stay, and of such that come and go
    on_host train 0 2 "$work/zero-$zero" device=cuda parallel.zero=$zero
    same "$work/zero-$zero/$adapter" "$work/data-1/$adapter" "LoRA with ZeRO $zero"
done
ATTUNE_COMM=mpi on_host train 0 2 "$work/mpi" device=cuda
same "$work/mpi/$adapter" "$work/data-1/$adapter" "without NCCL"
CUDAHOST_DEVICES=1 ATTUNE_SHARE_GPUS=1 on_host train 0 2 "$work/shared" device=cuda
same "$work/shared/$adapter" "$work/data-1/$adapter" "two ranks on one GPU"

layout() { # NAME RANKS TOLERANCE_OF_LOSSES TOLERANCE_OF_GRADIENTS OVERRIDES...
    local name=$1 ranks=$2 of_loss=$3 of_norm=$4
    shift 4
    train 0 0 "$work/cpu-$name" device=cpu "$@" parallel.tensor=1 parallel.zero=0 parallel.sequence=false
    on_host train 0 "$ranks" "$work/cuda-$name" device=cuda "$@"
    near <(values loss "$work/cuda-$name/metrics.jsonl") <(values loss "$work/cpu-$name/metrics.jsonl") "$of_loss" "$name: loss"
    near <(values grad_norm "$work/cuda-$name/metrics.jsonl") <(values grad_norm "$work/cpu-$name/metrics.jsonl") "$of_norm" "$name: grad_norm"
}
layout lora-2x2 4 1e-4 1e-4 parallel.tensor=2
layout dora-2 2 1e-4 1e-4 lora.variant=dora lora.dropout=0.1 parallel.tensor=2 # norms, of which each rank has a part
layout full-zero3 2 1e-4 1e-4 method=full parallel.zero=3
layout full-2x2 4 1e-4 1e-4 method=full parallel.tensor=2 parallel.zero=3 parallel.sequence=true
layout plain 4 1e-4 1e-4 method=full deterministic=false parallel.tensor=2 parallel.zero=2
# Tensor ranks round their partial sums to bf16 before these are added: as in test_runs.sh, a unit roundoff for losses.
layout lora-bf16 4 2e-3 1e-2 precision=bf16 parallel.tensor=2 parallel.sequence=true lora.dropout=0.1
layout full-bf16 2 2e-3 1e-2 precision=bf16 method=full parallel.zero=2
on_host train 0 1 "$work/full-1" device=cuda method=full
same "$work/cuda-full-zero3/model/model.safetensors" "$work/full-1/model/model.safetensors" "all weights on 1 and 2 data ranks"
for seed in 2 3; do
    CUDAHOST_SEED=$seed on_host train 0 4 "$work/seed-$seed" device=cuda method=full parallel.tensor=2 parallel.zero=3 parallel.sequence=true
    same "$work/seed-$seed/model/model.safetensors" "$work/cuda-full-2x2/model/model.safetensors" "order $seed"
done
finish
