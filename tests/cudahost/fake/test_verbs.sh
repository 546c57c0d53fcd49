#!/usr/bin/env bash
# generate, score and eval on the CUDA device, run on the host, do what they do on the CPU; `auto` is CUDA where there is a GPU.
source "$(dirname "$0")/lib.sh"
rows 8 "$work/rows.jsonl"
model=$work/model
mkdir "$model"
cp $golden/llama/{config.json,model.safetensors} "$model"
letters >"$model/tokenizer.json"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl, test: $golden/llama/tokens.jsonl}
train: {steps: 1, batch: 4, micro_tokens: 64}
lora: {rank: 4}
checkpoint: {every: 0}
END

both() { # NAME ARGUMENTS...: what it prints goes to $work/NAME.DEVICE
    local name=$1 device
    shift
    for device in cpu cuda; do
        on_host run 0 0 "$@" --device "$device"
        cp "$work/log" "$work/$name.$device"
    done
}
both greedy generate "$model" --precision f32 --raw --prompt "hello world" --max-new 12
same "$work/greedy.cuda" "$work/greedy.cpu" "greedy text"
both long generate "$model" --precision f32 --raw --prompt "$(printf 'hello world %.0s' {1..14})" --max-new 12
same "$work/long.cuda" "$work/long.cpu" "text behind a long prompt, whose cache is read in chunks"
both sampled generate "$model" --precision f32 --raw --prompt "some words" --max-new 12 --temperature 1 --seed 3
same "$work/sampled.cuda" "$work/sampled.cpu" "sampled text"
both filtered generate "$model" --precision f32 --raw --prompt "some words" --max-new 12 --temperature 1.5 --top-k 90 --top-p 0.95 --seed 4
same "$work/filtered.cuda" "$work/filtered.cpu" "text drawn through filters"
[[ $(wc -c <"$work/greedy.cuda") -gt 12 ]] || complain "nothing was generated"
for device in cpu cuda; do
    on_host run 0 2 score $golden/llama --precision f32 --device $device --data $golden/llama/tokens.jsonl --out "$work/scores.$device"
done
near <(numbers "$work/scores.cuda") <(numbers "$work/scores.cpu") 1e-5 "scores"

# tensor ranks hold columns of the logits each
for text in a b c; do echo "{\"prompt\": \"hello $text\", \"completion\": \"some words\"}"; done >"$work/text.jsonl"
cat >"$work/text.yaml" <<END
model: $model
precision: f32
data: {train: $work/text.jsonl, test: $work/text.jsonl}
eval: {metrics: [rouge], max_new: 12}
output: $work/text
END
run 0 0 eval "$work/text.yaml" device=cpu
grep '"output"' "$work/text/eval.json" >"$work/text.cpu"
on_host run 0 2 eval "$work/text.yaml" device=cuda parallel.tensor=2
grep '"output"' "$work/text/eval.json" >"$work/text.cuda"
same "$work/text.cuda" "$work/text.cpu" "text of tensor ranks"

on_host train 0 2 "$work/run" device=auto
says 'run  .* \(cuda, '
on_host run 0 2 eval "$work/recipe.yaml" "output=$work/run" device=cuda
cp "$work/run/eval.json" "$work/eval.cuda"
run 0 0 eval "$work/recipe.yaml" "output=$work/run" device=cpu
near <(values loss "$work/eval.cuda") <(values loss "$work/run/eval.json") 1e-5 "eval"
finish
