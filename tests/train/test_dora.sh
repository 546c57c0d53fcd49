#!/usr/bin/env bash
# Whole runs with DoRA: every layout trains what one rank trains, and goes on where it was interrupted; what a run leaves is what was
# trained, as an adapter, merged, as a checkpoint and in training's own evaluation. Against PEFT itself: test_trajectory.sh.
source "$(dirname "$0")/lib.sh"
rows 37 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama_untied
precision: f32
data: {train: $work/rows.jsonl, test: $golden/llama_untied/tokens.jsonl}
train: {steps: 10, batch: 7, lr: 5.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1, variant: dora}
checkpoint: {every: 5, keep: 0}
END
adapter=adapter/adapter_model.safetensors
layouts llama lora $adapter # two key/value heads: whole, own, and shared by ranks

one=$work/llama_untied-one # biases, four key/value heads
train 0 0 "$one" lora.dropout=0 train.recompute=true
for layout in "2 1 0 false" "4 2 3 false" "3 1 0 true" "2 2 2 true"; do
    read -r tp dp zero sequence <<<"$layout"
    out=$work/untied-$tp-$dp-$zero
    train 0 $((tp * dp)) "$out" lora.dropout=0 train.recompute=$sequence parallel.tensor="$tp" parallel.zero="$zero" \
        parallel.sequence="$sequence"
    within "$(largest loss "$out" "$one")" 1e-5 "llama_untied $layout: loss"
    within "$(largest grad_norm "$out" "$one")" 1e-4 "llama_untied $layout: grad_norm"
done
train 0 2 "$work/bf16-2" precision=bf16 parallel.zero=3
train 0 0 "$work/bf16-0" precision=bf16
same "$work/bf16-2/$adapter" "$work/bf16-0/$adapter" "bf16 with zero 3"

# resumed at step 5, in the same layout: the same bits; in another: the same run within rounding
train 0 0 "$work/whole"
train 0 4 "$work/whole-4" parallel.tensor=2 parallel.zero=1
resume() { # FROM RANKS OVERRIDES...
    rm -rf "$work/resumed"
    cp -r "$1" "$work/resumed"
    rm -r "$work/resumed/checkpoints/step-00000010"
    train 0 "$2" "$work/resumed" --resume "${@:3}"
    says 'after step 5'
}
resume "$work/whole" 0
same "$work/resumed/$adapter" "$work/whole/$adapter" "resumed"
resume "$work/whole" 2 parallel.zero=3
same "$work/resumed/$adapter" "$work/whole/$adapter" "resumed with zero 3"
resume "$work/whole-4" 4 parallel.tensor=2 parallel.zero=1
same "$work/resumed/$adapter" "$work/whole-4/$adapter" "resumed on 2 x 2 ranks"
resume "$work/whole-4" 3 parallel.tensor=3
within "$(largest loss "$work/resumed" "$work/whole")" 1e-5 "resumed on 3 tensor ranks"
train 2 0 "$work/whole" --resume lora.variant=lora
says 'lora_magnitude_vector'

# adapter, merged model, checkpoint
scores() { # OUT MODEL OPTIONS...
    local out=$1
    shift
    run 0 0 score "$@" --precision f32 --data "$work/rows.jsonl" --out "$work/scores.jsonl"
    sed 's/.*"logprobs": \[\([^]]*\)\].*/\1/' "$work/scores.jsonl" >"$work/list" && numbers "$work/list" >"$work/$out.scores"
}
scores base $golden/llama_untied
scores adapter $golden/llama_untied --adapter "$work/whole/adapter"
cmp -s "$work/base.scores" "$work/adapter.scores" && complain "the adapter changes nothing"
scores checkpoint "$work/whole"
near "$work/checkpoint.scores" "$work/adapter.scores" 1e-6 "checkpoint"
run 0 0 convert $golden/llama_untied "$work/merged" --adapter "$work/whole/adapter"
scores merged "$work/merged"
near "$work/merged.scores" "$work/adapter.scores" 1e-5 "merged"
run 0 0 convert "$work/whole/checkpoints/step-00000010" "$work/converted"
same "$work/converted/adapter_model.safetensors" "$work/whole/$adapter" "adapter from a checkpoint"
grep -q '"use_dora": true' "$work/converted/adapter_config.json" || complain "use_dora is not written"
run 0 3 eval "$work/recipe.yaml" "output=$work/whole" parallel.tensor=3
values loss "$work/whole/eval.json" >"$work/got"
run 0 0 eval "$work/recipe.yaml" "output=$work/whole"
values loss "$work/whole/eval.json" >"$work/want"
near "$work/got" "$work/want" 1e-6 "evaluated on 3 tensor ranks"

# a run starts from an adapter, and from a checkpoint
train 0 2 "$work/more" "adapter=$work/whole/adapter" train.steps=1 lora.dropout=0 parallel.tensor=2
values loss "$work/more/metrics.jsonl" >"$work/got"
train 0 0 "$work/more-0" "model=$work/whole" train.steps=1 lora.dropout=0
values loss "$work/more-0/metrics.jsonl" >"$work/want"
near "$work/got" "$work/want" 1e-6 "from an adapter and from a checkpoint"
run 0 0 inspect "$work/whole/adapter"
says 'dora'
finish
