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

# numbers that are not finite: exit 1, the step and the rows named, checkpoints intact
train 1 2 "$work/nan" train.lr=1e3 train.steps=200 train.warmup=0 train.clip=0 method=full
says 'attune: error: .*step [0-9]+: the (loss|gradient|gradient norm) is not finite'
grep -q '"failed"' "$work/nan/status.json" || complain "status of a failed run"

# an output directory that holds another run, a run that is under way
train 0 0 "$work/twice"
train 2 0 "$work/twice"
says 'hint: .*--resume'
train 0 0 "$work/twice" --force
flock "$work/twice/.lock" sleep 20 &
lock=$!
sleep 0.3
train 2 0 "$work/twice" --resume
says 'attune: error: .*twice'
kill $lock 2>/dev/null
wait $lock 2>/dev/null

# a disk that cannot be written to: the run ends, nothing half-written
mkdir -p "$work/readonly" && printf x >"$work/readonly/file"
train 2 0 "$work/readonly/file/run"
says 'attune: error: '
finish
