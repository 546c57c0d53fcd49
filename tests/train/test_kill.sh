#!/usr/bin/env bash
# test_kill.sh ATTUNE MPIEXEC TRIALS: ranks and launchers are killed at any moment, saving or not; the next run goes on from the newest
# checkpoint, and in the end has the same bits as a run that was never interrupted. Nothing hangs, no process is left.
source "$(dirname "$0")/lib.sh"
trials=${3:-20}
RANDOM=7
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
train: {steps: 24, batch: 4, lr: 3.0e-3, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 2, keep: 2}
eval: {every: 7}
END
adapter=adapter/adapter_model.safetensors
whole() { # RUN WHAT: equals the uninterrupted one
    same "$1/$adapter" "$work/whole/$adapter" "$2"
    keys "$1" >"$work/got"
    keys "$work/whole" >"$work/want"
    same "$work/got" "$work/want" "$2: metrics"
    status_is "$1" completed
    [[ -z $(compgen -G "$1/checkpoints/.*-*" || compgen -G "$1/*.tmp-*") ]] || complain "$2: leftovers: $(ls -A "$1" "$1/checkpoints")"
}
train 0 2 "$work/whole"

# at a given place of the program
for async in true false; do
    for place in step evaluate create write digest publish published; do
        run=$work/$place-$async step=14 # a step of both a checkpoint and an evaluation
        ATTUNE_FAULT=kill@step=$step,rank=$((RANDOM % 2)),at=$place \
            struck killed 2 "" train "$work/recipe.yaml" "output=$run" checkpoint.async=$async
        got=$(newest "$run")
        case $place-$async in
        published-*) [[ $got == "$step" ]] ;;
        publish-*) [[ $got == "$step" || $got == $((step - 2)) ]] ;; # killed is not rank 0, which publishes
        step-true | evaluate-true) [[ $got == $((step - 2)) || $got == $((step - 4)) ]] ;; # while the last one is being written
        *) [[ $got == $((step - 2)) ]] ;;
        esac || complain "killed at $place of step $step (async $async): the newest is $got"
        status_is "$run" running
        train 0 2 "$run" --resume
        says "after step $got"
        whole "$run" "killed at $place (async $async)"
        rm -r "$run"
    done
done

# at random moments
start=$(date +%s%N)
train 0 2 "$work/timed"
train_ms=$((($(date +%s%N) - start) / 1000000)) # a whole run; each attempt at one is given a bit longer, so that one succeeds
[[ $train_ms -lt 1000 ]] || train_ms=1000
kills=0 runs=0
while [[ $kills -lt $trials && $failures == 0 ]]; do
    run=$work/random ranks=$((RANDOM % 8 ? 2 : 3)) async=$((RANDOM % 3 ? 1 : 0))
    options=(train "$work/recipe.yaml" "output=$run" "checkpoint.async=$([[ $async == 1 ]] && echo true || echo false)" checkpoint.every=1 checkpoint.keep=$((RANDOM % 3)))
    before=0
    for attempt in $(seq 100); do
        victim=$((RANDOM % (ranks + 1)))
        [[ $victim == "$ranks" ]] && victim=-l || victim="-r $victim"
        struck any "$ranks" "$victim -m $(((train_ms / 3 + RANDOM % train_ms) * (9 + attempt) / 10))" "${options[@]}" --resume
        grep -q skipped "$work/log" && complain "a damaged checkpoint: $(grep skipped "$work/log")"
        after=$(newest "$run")
        [[ ${after:-0} -ge $before ]] || complain "step $before was lost, ${after:-none} is the newest"
        resumed=$(sed -n 's/.*after step \([0-9]*\).*/\1/p' "$work/log" | head -n 1) # not told when it was killed before
        [[ ${resumed:-$before} == "$before" ]] || complain "resumed after step $resumed, $before was the newest"
        before=${after:-0}
        grep -q '"completed"' "$run/status.json" 2>/dev/null && break
        kills=$((kills + 1))
    done
    whole "$run" "killed $attempt times"
    runs=$((runs + 1))
    rm -rf "$run"
done
echo "$kills kills at random moments in $runs runs"
finish
