#!/usr/bin/env bash
# Bad input and runs that go wrong: one clear error, the right exit code, nothing lost.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 4, batch: 4, micro_tokens: 64}
checkpoint: {every: 2, keep: 0}
END
bad() { # PATTERN OVERRIDES...: exit 2 before anything is written
    local pattern=$1
    shift
    train 2 0 "$work/never" "$@"
    says "attune: error: [^:]*$pattern"
    [[ ! -e $work/never ]] || { complain "wrote an output directory: $*"; rm -rf "$work/never"; }
}
bad 'command line: .*train.lr' train.lrr=1
bad 'nowhere: ' model=/nowhere
bad 'nowhere.jsonl' data.train=/nowhere.jsonl
bad 'lora.targets: "q_porj" names no linear layer' lora.targets=[q_porj]
bad 'freeze.train: .*matches no parameter' method=freeze freeze.train=nothing
bad 'freeze.train: regular expression' method=freeze 'freeze.train="layers.("'
echo '{"tokens": [1, 2, 999]}' >"$work/bad.jsonl"
bad 'bad.jsonl:1: token 2 is 999' "data.train=$work/bad.jsonl"
printf '{"tokens": [1, 2]}\n{"tokens": [1, 2\n' >"$work/bad.jsonl"
bad 'bad.jsonl:2: ' "data.train=$work/bad.jsonl"
bad '.*k_proj.lora_B.weight: the adapter.s shape' "adapter=$golden/llama3/lora/adapter_init" # k_proj and v_proj are narrower there
cp -r "$golden/llama" "$work/model" && chmod -R u+w "$work/model"
head -c 100000 "$golden/llama/model.safetensors" >"$work/model/model.safetensors"
bad 'model.safetensors' "model=$work/model"
cp "$golden/llama/model.safetensors" "$work/model/"
sed -i 's/"hidden_size": 64/"hidden_size": 128/' "$work/model/config.json"
bad '.*model.embed_tokens.weight: the shape is' "model=$work/model"

# a step whose rows are one token long trains nothing and changes nothing
printf '{"tokens": [5]}\n{"tokens": [5, 6, 9]}\n{"tokens": [7]}\n' >"$work/lone.jsonl"
for steps in 1 2 3; do
    train 0 0 "$work/lone-$steps" "data.train=$work/lone.jsonl" data.shuffle=false train.batch=1 train.steps=$steps train.schedule=constant method=full
    says 'step 1 trains no token'
done
grep -q '"step": 3, "loss": 0,.*"trained_tokens": 0' "$work/lone-3/metrics.jsonl" || complain "a step that trains nothing"
cmp -s "$work/lone-2/model/model.safetensors" "$work/lone-3/model/model.safetensors" || complain "a step without a token changed weights"
cmp -s "$work/lone-1/model/model.safetensors" "$work/lone-2/model/model.safetensors" && complain "a step with tokens changed nothing"

# numbers that are not finite: exit 1, the step and the rows named, checkpoints intact
train 1 2 "$work/nan" train.lr=1e3 train.steps=200 train.warmup=0 train.clip=0 method=full
says 'attune: error: .*step [0-9]+: the (loss|gradient|gradient norm) is not finite'
grep -q '"failed"' "$work/nan/status.json" || complain "status of a failed run"

# in one rank only, at any layout: all ranks end, the rank, the step and its rows are named, the checkpoints are whole
for layout in parallel.tensor=1 deterministic=false parallel.tensor=2 parallel.zero=3; do
    output=$work/nan-$layout
    ATTUNE_FAULT=nan@step=7,rank=1 train 1 2 "$output" train.steps=9 checkpoint.keep=2 "$layout"
    where='[^ ]*rows.jsonl: lines [0-9]+[^:]*: ' what='(loss|gradient)'
    [[ $layout != deterministic=false ]] || where='' what='gradient norm' # plain sums are looked at when they are complete
    says "attune: error: ${where}step 7: the $what is not finite"
    [[ $(grep -c 'attune: error' "$work/log") == 1 ]] || complain "$layout: told more than once"
    grep -Eq "\"failed\", \"code\": 1, \"rank\": [01], \"step\": 6, \"reason\": \"${where}step 7" "$output/status.json" ||
        complain "$layout: status is $(cat "$output/status.json")"
    [[ $(newest "$output") == 6 ]] || complain "$layout: the newest checkpoint is $(newest "$output")"
    train 0 2 "$output" train.steps=9 "$layout" --resume
    says 'after step 6'
done
ATTUNE_FAULT=nan@step=x train 0 0 "$work/misspelt"
says 'warning: ATTUNE_FAULT=nan@step=x: not understood'

# an output directory that holds another run, a run that is under way
train 0 0 "$work/twice"
train 2 0 "$work/twice"
says 'hint: .*--resume'
train 0 0 "$work/twice" --force
"$attune" train "$work/recipe.yaml" "output=$work/running" train.steps=1000000 >"$work/running.log" 2>&1 </dev/null &
running=$!
for _ in $(seq 600); do
    [[ -e $work/running/status.json ]] && break
    sleep 0.05
done
train 2 2 "$work/running" --resume
says "attune: error: [^ ]*running: another run is writing to this directory .pid $running on "
says 'hint: '
[[ $(grep -c 'attune: error' "$work/log") == 1 ]] || complain "a second run: told more than once"
kill -KILL $running # its lock goes with it
wait $running 2>/dev/null
last=$(newest "$work/running")
train 0 0 "$work/running" train.steps=$((last + 1)) --resume
says "after step $last"
echo 'pid 1 on elsewhere' >"$work/twice/.lock" # what a dead process has left there is no lock
train 0 0 "$work/twice" --resume

# an output that cannot be one: nothing is written
printf x >"$work/file"
train 2 0 "$work/file"
says 'attune: error: [^ ]*file: .*directory'
train 2 2 "$work/file/run"
says 'attune: error: [^ ]*file/run: .*directory'
[[ $(cat "$work/file") == x ]] || complain "a file was replaced"
mkdir "$work/readonly" && chmod a-w "$work/readonly"
if [[ -w $work/readonly ]]; then
    if chattr +i "$work/readonly" 2>/dev/null; then # root writes everywhere else
        train 2 2 "$work/readonly/run"
        says 'attune: error: [^ ]*readonly.*: .*(not permitted|denied)'
        chattr -i "$work/readonly"
    else
        echo "skipped: a directory that root cannot write to"
    fi
else
    train 2 2 "$work/readonly/run"
    says 'attune: error: [^ ]*readonly.*: .*denied'
fi
finish
