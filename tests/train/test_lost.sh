#!/usr/bin/env bash
# test_lost.sh ATTUNE MPIEXEC: a rank that hangs, or is stopped, while the others wait for it: the run ends with 1, says which it was,
# also in status.json, and goes on from its checkpoint.
source "$(dirname "$0")/lib.sh"
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 6, batch: 4, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8}
checkpoint: {every: 2}
END
gone() { # RUN: none of its ranks is left, a moment later
    for _ in $(seq 40); do
        pgrep -f "^$attune train .*output=$1" >/dev/null || return
        sleep 0.1
    done
    complain "processes are left"
}
lost() { # RUN RANK WHAT
    says "attune: error: rank $2 \([^,()]+, pid [0-9]+\): $3"
    grep -Eq '"state": "failed", "code": 1, "rank": '"$2, .*\"rank $2 .*: $3" "$1/status.json" ||
        complain "status.json is $(cat "$1/status.json")"
    gone "$1"
    ATTUNE_COMM_TIMEOUT=60 train 0 2 "$1" --resume
    says 'after step 2'
}
export ATTUNE_COMM_TIMEOUT=2
for rank in 0 1; do
    ATTUNE_FAULT=hang@step=4,rank=$rank train 1 2 "$work/hang$rank"
    lost "$work/hang$rank" $rank 'in no collective for [1-9][0-9]* s; rank [01] waits in '
done

stop_first_rank() { # once a checkpoint is there
    local pid
    for _ in $(seq 300); do
        sleep 0.05
        [[ -d $work/stop/checkpoints/step-00000002 ]] || continue
        for pid in $(pgrep -f "^$attune train .*output=$work/stop"); do
            grep -qz '^PMI_RANK=0$' "/proc/$pid/environ" && kill -STOP "$pid" && return
        done
    done
}
stop_first_rank &
train 1 2 "$work/stop" train.steps=100000 checkpoint.every=2 checkpoint.keep=0
wait $!
says 'attune: error: rank 0 .*no sign of life'
grep -q '"state": "failed", "code": 1, "rank": 0' "$work/stop/status.json" || complain "status.json is $(cat "$work/stop/status.json")"
gone "$work/stop"
finish
