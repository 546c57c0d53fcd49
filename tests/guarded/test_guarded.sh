#!/usr/bin/env bash
# test_guarded.sh GUARDED MPIEXEC ATTUNE: over a device whose memory the host cannot touch, every kind of run gives the bits that it gives
# on the CPU: layouts, methods, checkpoints written beside the steps and read again, exports, scores.
source "$(dirname "$0")/../train/lib.sh"
guarded=$1 plain=$3
rows 24 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
precision: f32
train: {steps: 4, batch: 5, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 2}
eval: {every: 2}
END

both() { # NAME RANKS FILE OVERRIDES...
    local name=$1 ranks=$2 file=$3
    shift 3
    for kind in guarded plain; do
        attune=${!kind}
        train 0 "$ranks" "$work/$kind-$name" "$@"
    done
    for key in loss grad_norm eval/loss; do
        values $key "$work/plain-$name/metrics.jsonl" >"$work/want"
        values $key "$work/guarded-$name/metrics.jsonl" >"$work/got"
        same "$work/got" "$work/want" "$name: $key"
    done
    same "$work/guarded-$name/$file" "$work/plain-$name/$file" "$name"
}
both lora 0 adapter/adapter_model.safetensors model=$golden/llama
both dora 2 adapter/adapter_model.safetensors model=$golden/llama lora.variant=dora parallel.tensor=2
both full 4 model/model.safetensors model=$golden/llama_untied method=full parallel.tensor=2 parallel.zero=3 parallel.sequence=true
both bf16 2 model/model.safetensors model=$golden/llama method=full precision=bf16 parallel.zero=2 train.recompute=true
both freeze 2 model/model.safetensors model=$golden/llama3 method=freeze 'freeze.train=[layers.1.mlp, norm, embed]' \
    deterministic=false parallel.tensor=2

attune=$guarded # what one kind of memory wrote, the other reads
rm -r "$work/plain-full/checkpoints/step-00000004"
train 0 2 "$work/plain-full" model=$golden/llama_untied method=full parallel.zero=1 --resume
says 'after step 2'
near <(values loss "$work/plain-full/metrics.jsonl") <(values loss "$work/guarded-full/metrics.jsonl") 1e-5 "resumed elsewhere"
for kind in guarded plain; do
    attune=${!kind}
    run 0 2 score "$work/plain-lora" --precision f32 --data "$work/rows.jsonl" --out "$work/$kind.scores"
    run 0 0 convert $golden/llama "$work/$kind-merged" --adapter "$work/plain-lora/adapter"
done
same "$work/guarded.scores" "$work/plain.scores" scores
same "$work/guarded-merged/model.safetensors" "$work/plain-merged/model.safetensors" "merged weights"
finish
