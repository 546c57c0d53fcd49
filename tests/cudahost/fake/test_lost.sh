#!/usr/bin/env bash
# A rank is lost while others wait for it in NCCL: it hangs, is stopped, is killed, or NCCL itself says so. The run ends, says who it was
# where that can be known, and goes on from its checkpoint.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 6, batch: 4, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8}
device: cuda
checkpoint: {every: 2}
END
lost() { # RUN RANK WHAT
    says "attune: error: rank $2 \([^,()]+, pid [0-9]+\): $3"
    grep -Eq '"state": "failed", "code": 1, "rank": '"$2, .*\"rank $2 .*: $3" "$1/status.json" ||
        complain "status.json is $(cat "$1/status.json")"
}
export ATTUNE_COMM_TIMEOUT=3
ATTUNE_FAULT=hang@step=4,rank=1 on_host train 1 2 "$work/hang"
lost "$work/hang" 1 'in no collective for [1-9][0-9]* s; rank 0 waits in '
ATTUNE_FAULT=hang@step=4,rank=0 on_host train 1 2 "$work/tensor" parallel.tensor=2
lost "$work/tensor" 0 'in no collective for [1-9][0-9]* s; rank 1 waits in '
on_host struck 1 2 "-r 1 -s STOP -f $work/stop/checkpoints/step-*2" train "$work/recipe.yaml" "output=$work/stop" train.steps=1000
lost "$work/stop" 1 'no sign of life'
on_host struck killed 2 "-r 1 -f $work/kill/checkpoints/step-*2" train "$work/recipe.yaml" "output=$work/kill" train.steps=1000
CUDAHOST_NCCL_LOST=60 on_host train 1 2 "$work/nccl" train.steps=1000
says 'attune: error: NCCL: a rank or the connection to it is lost: remote process exited'
status_is "$work/nccl" failed
export ATTUNE_COMM_TIMEOUT=60
for name in hang stop kill; do
    on_host train 0 2 "$work/$name" train.steps=6 --resume
    says 'after step [24]'
done
finish
