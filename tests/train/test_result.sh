#!/usr/bin/env bash
# What a run leaves is what was trained: scores through the adapter, the merged model, the exported model and the checkpoint agree.
source "$(dirname "$0")/lib.sh"
rows 16 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama_untied
precision: f32
data: {train: $work/rows.jsonl, valid: $work/rows.jsonl, test: $work/rows.jsonl}
train: {steps: 5, batch: 4, lr: 5.0e-3, micro_tokens: 128}
checkpoint: {every: 0}
END
scores() { # OUT MODEL OPTIONS...
    local out=$1
    shift
    run 0 0 score "$@" --precision f32 --data "$work/rows.jsonl" --out "$work/scores.jsonl"
    sed 's/.*"logprobs": \[\([^]]*\)\].*/\1/' "$work/scores.jsonl" >"$work/list" && numbers "$work/list" >"$work/$out.scores"
}
scores base $golden/llama_untied
train 0 0 "$work/lora"
scores adapter $golden/llama_untied --adapter "$work/lora/adapter"
cmp -s "$work/base.scores" "$work/adapter.scores" && complain "the adapter changes nothing"
run 0 0 convert $golden/llama_untied "$work/merged" --adapter "$work/lora/adapter"
scores merged "$work/merged"
near "$work/merged.scores" "$work/adapter.scores" 1e-5 "merged"
run 2 0 convert $golden/llama_untied "$work/merged" --adapter "$work/lora/adapter"

train 0 2 "$work/full" method=full train.lr=1e-3
scores full "$work/full/model"
cmp -s "$work/base.scores" "$work/full.scores" && complain "full training changes nothing"
# a checkpoint is a model: scored as it is, converted to what the run exported
for run in lora full; do
    scores checkpoint "$work/$run"
    [[ $run == lora ]] && want=adapter || want=full
    near "$work/checkpoint.scores" "$work/$want.scores" 1e-6 "checkpoint of $run"
    run 0 0 convert "$work/$run/checkpoints/step-00000005" "$work/$run-converted"
done
same "$work/lora-converted/adapter_model.safetensors" "$work/lora/adapter/adapter_model.safetensors" "adapter from a checkpoint"
same "$work/full-converted/model.safetensors" "$work/full/model/model.safetensors" "model from a checkpoint"
train 0 0 "$work/more" "model=$work/lora" train.steps=1 # and a run can start from one
train 2 0 "$work/never" "model=$work/full"
says 'attune convert'

for run in lora full; do # evaluation during training, of the result, and of the base
    run 0 2 eval "$work/recipe.yaml" "output=$work/$run" method=$run
    values loss "$work/$run/eval.json" >"$work/got"
    values eval/loss "$work/$run/metrics.jsonl" | tail -n 1 >"$work/want"
    near "$work/got" "$work/want" 1e-6 "$run: eval agrees with training's"
done
run 0 0 eval "$work/recipe.yaml" "output=$work/lora" --base
awk '{ s += $1; n++ } END { printf "%.9g\n", -s / n }' "$work/base.scores" >"$work/want"
values loss "$work/lora/eval-base.json" >"$work/got"
near "$work/got" "$work/want" 1e-6 "evaluation of the base is the mean of its scores"

# ranks share the work of scoring
run 0 2 score $golden/llama_untied --precision f32 --data "$work/rows.jsonl" --out "$work/two.jsonl"
run 0 0 score $golden/llama_untied --precision f32 --data "$work/rows.jsonl" --out "$work/one.jsonl"
same "$work/two.jsonl" "$work/one.jsonl" "scores on two ranks"

run 0 0 inspect "$work/lora/checkpoints/step-00000005"
run 0 0 inspect "$work/lora/adapter"
run 0 0 plan "$work/recipe.yaml" --ranks 2
says 'communication'
[[ -s $work/lora/report.html ]] || complain "no report"
finish
