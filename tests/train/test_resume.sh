#!/usr/bin/env bash
# A resumed run is the uninterrupted one, bit for bit: after a kept checkpoint, after SIGTERM, after SIGKILL, on another number of ranks.
source "$(dirname "$0")/lib.sh"
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
train: {steps: 12, batch: 4, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 4, keep: 0}
eval: {every: 5}
END
adapter=adapter/adapter_model.safetensors
whole() { # RUN WHAT: equals the uninterrupted run
    same "$1/$adapter" "$work/whole/$adapter" "$2"
    keys "$1" >"$work/got"
    keys "$work/whole" >"$work/want"
    same "$work/got" "$work/want" "$2: metrics"
    grep -q '"completed"' "$1/status.json" || complain "$2: status is not completed"
}
train 0 0 "$work/whole"
[[ $(ls "$work/whole/checkpoints" | tr '\n' ' ') == 'step-00000004 step-00000008 step-00000012 ' ]] || complain "checkpoints kept"

for ranks in 0 2; do # from step 4, alone and on two ranks
    cp -r "$work/whole" "$work/from4-$ranks"
    rm -r "$work/from4-$ranks"/checkpoints/step-00000008 "$work/from4-$ranks"/checkpoints/step-00000012
    train 0 $ranks "$work/from4-$ranks" --resume
    says 'after step 4'
    whole "$work/from4-$ranks" "resumed at step 4 on $ranks ranks"
done

# where a checkpoint comes from: program, ranks, the base model's files, and what it went on from
run 0 0 inspect "$work/from4-2/checkpoints/step-00000012"
says 'attune +0[.]'
says 'hosts +[^ ]+ 2'
says 'ranks +2'
says 'parent +checkpoint [^ ]*step-00000004, manifest [0-9a-f]{16}'
says 'model.safetensors +331.0 kB +20[-0-9T:]+Z +[0-9a-f]{16}'
run 0 0 inspect "$work/whole/checkpoints/step-00000012"
says 'ranks +1'
! grep -q ^parent "$work/log" || complain "a run from the start has a parent"

# the newest is damaged: the one before is used, with a warning that names what is wrong
damaged() { # PATTERN: after step-00000012 of $work/damaged has been damaged
    train 0 0 "$work/damaged" --resume
    says "warning: this checkpoint is skipped: [^ ]*step-00000012/$1"
    says 'after step 8'
    whole "$work/damaged" "resumed past a damaged checkpoint ($1)"
    rm -r "$work/damaged"
    cp -r "$work/whole" "$work/damaged"
}
cp -r "$work/whole" "$work/damaged"
newest=$work/damaged/checkpoints/step-00000012
printf X | dd of="$newest/state.h5" bs=1 seek=5000 conv=notrunc 2>/dev/null
damaged 'state.h5: damaged: .* differ from their digest'
truncate -s -1 "$newest/state.h5"
damaged 'state.h5: [0-9]+ bytes, its MANIFEST says [0-9]+'
printf X | dd of="$newest/MANIFEST" bs=1 seek=100 conv=notrunc 2>/dev/null
damaged 'MANIFEST:.*: damaged: the text differs from its digest'
truncate -s 300 "$newest/MANIFEST"
damaged 'MANIFEST:.*: cut short'
rm "$newest/state.h5"
damaged 'state.h5: cannot open'
rm "$newest/MANIFEST"
damaged 'MANIFEST: cannot open'

stop_midway() { # SIGNAL RUN: sends one of two ranks a signal once a checkpoint is there
    "$mpiexec" -n 2 "$attune" train "$work/recipe.yaml" "output=$2" train.steps=4000 checkpoint.every=2 eval.every=0 >"$work/log" 2>&1 </dev/null &
    local mpi=$!
    for _ in $(seq 600); do
        compgen -G "$2/checkpoints/step-*/MANIFEST" >/dev/null && break
        sleep 0.05
    done
    kill -"$1" "$(pgrep -f "^$attune train .*output=$2 " | tail -n 1)"
    code=0
    wait $mpi || code=$?
    [[ $code != 0 || $1 == TERM ]] || complain "SIG$1: exit code 0" # Hydra's code after a signal is not reliable
}
stop_midway TERM "$work/term"
grep -q '"preempted"' "$work/term/status.json" || complain "SIGTERM: status.json is $(cat "$work/term/status.json")"
last=$(values step "$work/term/metrics.jsonl" | tail -n 1)
[[ -d $(printf '%s/checkpoints/step-%08d' "$work/term" "$last") ]] || complain "SIGTERM: no checkpoint of step $last"
run 0 2 train "$work/recipe.yaml" "output=$work/term" train.steps=$((last + 1)) eval.every=0 --resume
says "after step $last"

stop_midway KILL "$work/kill"
last=$(ls "$work/kill/checkpoints" | sed -n 's/step-0*//p' | tail -n 1)
run 0 1 train "$work/recipe.yaml" "output=$work/kill" train.steps=$((last + 1)) eval.every=0 --resume
says "after step $last"
finish
