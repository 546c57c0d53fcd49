#!/usr/bin/env bash
# The device memory that `attune plan` says ops will take is what they have taken, to the byte, when the steps are done: its own steps
# call the same ops.
source "$(dirname "$0")/lib.sh"
rows 9 "$work/rows.jsonl"
# longer than the kernels' pieces: several blocks for sums over tokens, many tiles for attention
awk 'BEGIN { for (i = 0; i < 2; i++) { printf "{\"tokens\": [7"; for (k = 1; k < 700 - 99 * i; k++) printf ", %d", 3 + (k * 7919 + i) % 317; print "]}" } }' \
    >"$work/long.jsonl"
# of which one token is trained, so that the head's logits, the largest piece elsewhere, are few
model=$work/model
mkdir "$model"
cp $golden/llama3/{config.json,model.safetensors} "$model"
letters >"$model/tokenizer.json"
awk 'BEGIN { printf "{\"prompt\": \""; for (k = 0; k < 690; k++) printf "%c", 97 + k * k % 26; print "\", \"completion\": \"z\"}" }' >"$work/few.jsonl"
cat >"$work/recipe.yaml" <<END
device: cuda
precision: f32
train: {steps: 3, batch: 3, micro_tokens: 64}
lora: {rank: 8, dropout: 0.1}
checkpoint: {every: 0}
END
always=$(((32 << 20) + 16 * (512 << 10))) # cuBLASLt's workspace and the pieces of uploads
agrees() { # RANKS NAME OVERRIDES...; both figures are those of the rank that has the most
    local ranks=$1 name=$2 planned taken
    shift 2
    on_host run 0 0 plan "$work/recipe.yaml" "output=$work/$name" --ranks "$((ranks ? ranks : 1))" --json "$@"
    planned=$(sed -n "s/.*\"kernels' scratch\": \([0-9]*\).*/\1/p" "$work/log")
    on_host train 0 "$ranks" "$work/$name" "$@"
    taken=$(values scratch_bytes "$work/$name/metrics.jsonl" | tail -n 1)
    [[ $planned == "$taken" ]] || complain "$name: planned '$planned' bytes, taken '$taken'"
    [[ $planned -gt $((always + 10000)) ]] || complain "$name: nothing of the ops in $planned bytes"
    echo "$name $((planned - always))"
}
few=("model=$model" "data.train=$work/few.jsonl" train.steps=1 train.batch=1 train.micro_tokens=700)
for precision in f32 bf16; do
    for method in lora full; do
        agrees 0 "short-$method-$precision" method=$method precision=$precision model=$golden/llama "data.train=$work/rows.jsonl"
        agrees 0 "few-$method-$precision" method=$method precision=$precision "${few[@]}"
    done
done
agrees 0 long-bf16 method=full precision=bf16 model=$golden/llama3 "data.train=$work/long.jsonl" train.steps=1 train.batch=2 train.micro_tokens=1400
agrees 0 few-dora-bf16 lora.variant=dora precision=bf16 "${few[@]}"
agrees 0 few-narrow-bf16 lora.rank=4 precision=bf16 "${few[@]}"
agrees 2 ranks method=full parallel.tensor=2 model=$golden/llama "data.train=$work/rows.jsonl" train.recompute=true
finish
