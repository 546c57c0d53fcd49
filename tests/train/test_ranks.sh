#!/usr/bin/env bash
# The same bits on 1, 2 and 4 ranks (and with 1 or 2 threads a rank): losses, norms and what was trained. Batches that no number of
# ranks divides, ranks that have no rows.
source "$(dirname "$0")/lib.sh"
rows 37 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
data: {train: $work/rows.jsonl}
train: {steps: 8, batch: 7, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 0}
END

compare() { # NAME FILE OVERRIDES...
    local name=$1 file=$2
    shift 2
    train 0 0 "$work/$name-0" "$@"
    for n in 1 2 4; do
        OMP_NUM_THREADS=$((n == 1 ? 2 : 1)) train 0 $n "$work/$name-$n" "$@"
        for key in loss grad_norm trained_tokens; do
            values $key "$work/$name-0/metrics.jsonl" >"$work/want"
            values $key "$work/$name-$n/metrics.jsonl" >"$work/got"
            same "$work/got" "$work/want" "$name on $n ranks: $key"
        done
        same "$work/$name-$n/$file" "$work/$name-0/$file" "$name on $n ranks"
    done
    [[ $(values loss "$work/$name-0/metrics.jsonl" | sort -u | wc -l) == 8 ]] || complain "$name: losses do not move"
}
compare lora-f32 adapter/adapter_model.safetensors precision=f32
compare lora-bf16 adapter/adapter_model.safetensors precision=bf16
compare full model/model.safetensors method=full precision=f32 train.weight_decay=0.1
compare freeze model/model.safetensors method=freeze 'freeze.train=[layers.1.mlp, norm]' precision=bf16

# packing decides the layout, not the numbers
train 0 0 "$work/unpacked" precision=f32 data.pack=false
values loss "$work/unpacked/metrics.jsonl" >"$work/got"
values loss "$work/lora-f32-0/metrics.jsonl" >"$work/want"
near "$work/got" "$work/want" 2e-6 "packing"

# more ranks than rows, and fewer rows than a batch
head -n 3 "$work/rows.jsonl" >"$work/few.jsonl"
train 0 4 "$work/few-4" "data.train=$work/few.jsonl" train.steps=3 train.batch=2
says 'of 4 ranks idle'
train 0 0 "$work/few-0" "data.train=$work/few.jsonl" train.steps=3 train.batch=2
same "$work/few-4/adapter/adapter_model.safetensors" "$work/few-0/adapter/adapter_model.safetensors" "more ranks than rows"

# plain sums are close, not equal
train 0 2 "$work/plain" precision=f32 deterministic=false
values loss "$work/plain/metrics.jsonl" >"$work/got"
near "$work/got" "$work/want" 1e-5 "plain sums"
finish
