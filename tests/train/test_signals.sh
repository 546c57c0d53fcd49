#!/usr/bin/env bash
# SIGTERM, SIGINT and SIGUSR1, to one rank, to all, to the launcher, at any moment: the step is finished, a checkpoint
# written, the exit code is 75, and the run can be gone on with. A second SIGTERM ends at once and does no harm.
source "$(dirname "$0")/lib.sh"
RANDOM=3
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
train: {steps: 1000000, batch: 4, micro_tokens: 64}
checkpoint: {every: 2, keep: 2}
END
published() { echo "$1/checkpoints/step-*/MANIFEST"; }
stopped() { # RUN WHAT: by a signal, after a good checkpoint of its last step
    local last
    status_is "$1" preempted
    grep -q '"code": 75' "$1/status.json" || complain "$2: $(cat "$1/status.json")"
    last=$(values step "$1/metrics.jsonl" | tail -n 1)
    [[ $(newest "$1") == "$last" ]] || complain "$2: the newest checkpoint is $(newest "$1"), the last step $last"
    run 0 2 train "$work/recipe.yaml" "output=$1" train.steps=$((last + 1)) eval.every=0 --resume
    says "after step $last"
    status_is "$1" completed
}

# who is told, and of what
for signal in TERM USR1 INT; do
    for target in '-r 0' '-r 1' -a; do
        output=$work/${signal}${target// /}
        struck 75 2 "-f $(published "$output") -s $signal $target" train "$work/recipe.yaml" "output=$output"
        says 'attune: error: .*stopped by a signal after step [0-9]+'
        stopped "$output" "SIG$signal to $target"
    done
done
# The launcher passes signals on, but its own exit code is then 75 or 0: status.json has the truth.
for signal in TERM USR1; do
    output=$work/${signal}-launcher
    struck any 2 "-f $(published "$output") -s $signal -l" train "$work/recipe.yaml" "output=$output"
    stopped "$output" "SIG$signal to the launcher"
done

# while checkpoints are written and evaluations made
for trial in $(seq 8); do
    output=$work/during-$trial
    struck 75 2 "-f $(published "$output") -m $((RANDOM % 60)) -s TERM -r $((trial % 2))" train "$work/recipe.yaml" "output=$output" \
        checkpoint.every=1 eval.every=$((trial % 2)) checkpoint.async=$([[ $((trial % 4)) -lt 2 ]] && echo true || echo false)
    stopped "$output" "during saves and evaluations, trial $trial"
done

# while it is being loaded: before the program has taken over the signal, that ends it as it ends any program
for ms in 20 40 60 80 100 130 160 200; do
    output=$work/loading-$ms
    struck any 2 "-m $ms -s TERM -r 1" train "$work/recipe.yaml" "output=$output" "data.train=$work/rows.jsonl"
    [[ ! -e $output/status.json ]] || ! grep -q '"failed"' "$output/status.json" || complain "a signal while loading is no failure"
    run 0 2 train "$work/recipe.yaml" "output=$output" train.steps=$(($(newest "$output" | grep . || echo 0) + 2)) --resume
done

# a second signal that comes with the first is the same signal
output=$work/twice
struck 75 2 "-f $(published "$output") -s TERM -a -t 100" train "$work/recipe.yaml" "output=$output"
stopped "$output" "twice at once"

# The second SIGTERM: the first cannot take effect, because a rank hangs while it saves.
for target in -a '-r 1'; do
    output=$work/second${target// /}
    ATTUNE_FAULT=hang@step=6,rank=1,at=write \
        struck killed 2 "-f $(published "$output" | sed 's/-\*/-00000004/') -m 100 -s TERM $target -t 2500 -w 30" \
        train "$work/recipe.yaml" "output=$output" checkpoint.async=false
    [[ $(newest "$output") == 4 ]] || complain "second SIGTERM: the newest is $(newest "$output")"
    run 0 2 train "$work/recipe.yaml" "output=$output" train.steps=7 --resume
    says 'after step 4'
done
# A rank that hangs while it saves, and nobody sends signals: the deadline of the save.
for async in true false; do
    output=$work/deadline-$async
    ATTUNE_SAVE_DEADLINE=1 ATTUNE_FAULT=hang@step=6,rank=1,at=publish \
        struck 1 2 "-w 40" train "$work/recipe.yaml" "output=$output" checkpoint.async=$async train.steps=8
    says 'saving a checkpoint has not ended within 1 s .ATTUNE_SAVE_DEADLINE.'
    status_is "$output" failed
    grep -q 'saving a checkpoint has not ended' "$output/status.json" || complain "deadline: $(cat "$output/status.json")"
    run 0 2 train "$work/recipe.yaml" "output=$output" train.steps=8 --resume
    says 'after step [46]' # rank 0 may have published it
done
finish
