#!/usr/bin/env bash
# A disk that is full or fails: the run says so and ends with 1, or goes on when only a checkpoint could not be written; what had been
# published is whole, and the run can be gone on with to the same bits.
source "$(dirname "$0")/lib.sh"
failio=$(dirname "$attune")/tests/libfailio.so
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
method: full
precision: f32
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl}
train: {steps: 20, batch: 4, lr: 3.0e-3, micro_tokens: 64}
checkpoint: {every: 2, keep: 0}
eval: {every: 7}
END
model=model/model.safetensors
train 0 2 "$work/whole"
whole() { # RUN WHAT
    same "$1/$model" "$work/whole/$model" "$2"
    keys "$1" >"$work/got"
    keys "$work/whole" >"$work/want"
    same "$work/got" "$work/want" "$2: metrics"
    status_is "$1" completed
}
sound() { # RUN WHAT: nothing half-written under a final name, the newest checkpoint is whole
    local last
    last=$(newest "$1")
    [[ -z $last ]] || run 0 0 inspect "$(printf '%s/checkpoints/step-%08d' "$1" "$last")"
    [[ -z $(compgen -G "$1/checkpoints/.tmp-*") ]] || complain "$2: an unfinished checkpoint is left"
    [[ ! -s $1/metrics.jsonl || -z $(tail -c 1 "$1/metrics.jsonl") ]] || complain "$2: a part of a line in metrics.jsonl"
    grep -q '^{"state": "[a-z]*".*}$' "$1/status.json" || complain "$2: status.json is $(cat "$1/status.json")"
}

# ---- full, really
mkdir "$work/small"
if mount -t tmpfs -o size=4m tmpfs "$work/small" 2>/dev/null; then
    trap 'umount "$work/small"; rm -rf "$work"' EXIT
    for async in true false; do
        # of the ten checkpoints of 1 MB three fit; after three failures in a row the run ends
        output=$work/small/run what="full disk, async $async"
        train 1 2 "$output" checkpoint.async=$async
        says 'warning: (rank 0: )?the checkpoint of step 8 was not written: .*No space left on device: a checkpoint needs 2.1 MB, [0-9.]+ MB are free'
        says 'attune: error: .*No space left on device'
        [[ $(grep -c 'No space left' "$work/log") == 3 ]] || complain "$what: three failures are not told three times"
        sound "$output" "$what"
        [[ $(newest "$output") == 6 ]] || complain "$what: the newest is $(newest "$output")"
        status_is "$output" failed
        rm -r "$output"/checkpoints/step-0000000[24]
        train 1 2 "$output" checkpoint.async=$async --resume # now two more fit, but not model/ nor the last one
        sound "$output" "$what, resumed"
        # keeping one leaves room for the next; the exported model goes elsewhere
        cp -r "$output" "$work/moved"
        train 0 2 "$work/moved" checkpoint.async=$async --resume
        whole "$work/moved" "$what, moved"
        rm -rf "$output" "$work/moved"

        # not even a line of metrics fits any more
        mkdir "$output"
        "$strike" -w 60 -- "$mpiexec" -n 2 "$attune" train "$work/recipe.yaml" "output=$output" train.steps=1000000 checkpoint.async=$async \
            checkpoint.keep=1 eval.every=0 >"$work/log" 2>&1 </dev/null &
        job=$!
        for _ in $(seq 600); do
            [[ -n $(newest "$output") ]] && break
            sleep 0.02
        done
        dd if=/dev/zero of="$work/small/filler" bs=64k 2>/dev/null
        code=0
        wait $job || code=$?
        [[ $code == 1 ]] || complain "$what: metrics: exit code $code"
        says 'attune: error: .*No space left on device'
        sound "$output" "$what: metrics"
        rm "$work/small/filler"
        last=$(newest "$output")
        run 0 2 train "$work/recipe.yaml" "output=$output" train.steps=$((last + 1)) checkpoint.keep=1 eval.every=0 --resume
        says "after step $last"
        rm -rf "$output"
    done
else
    echo "skipped: a small file system (mount needs root)"
fi

# ---- calls that fail, in either rank, once
if [[ ! -e $failio ]]; then
    echo "skipped: calls that fail (no $failio)"
    finish
fi
faults=0
for call in write:2 write:9 write:23 write:60 write:150 sync:1 sync:4 sync:9 rename:1 rename:3 rename:6 open:2 open:30 open:90; do
    rank=$((faults % 2)) output=$work/failing async=$([[ $((faults / 2 % 2)) == 0 ]] && echo true || echo false)
    code=0
    rm -rf "$output" "$work/fired"
    FAILIO=$call:EIO FAILIO_DIR=$output FAILIO_RANK=$rank FAILIO_FIRED=$work/fired ATTUNE_SAVE_DEADLINE=3 "$strike" -w 60 -- \
        "$mpiexec" -n 2 env LD_PRELOAD="$failio" "$attune" train "$work/recipe.yaml" "output=$output" checkpoint.async=$async \
        >"$work/log" 2>&1 </dev/null || code=$?
    faults=$((faults + 1))
    [[ -e $work/fired || $rank == 1 ]] || complain "$call: was not reached"
    [[ $code == 0 || $code == 1 ]] || complain "$call in rank $rank (async $async): exit code $code"
    [[ $code == 0 ]] || grep -Eq 'Input/output error|not ended within|remote node' "$work/log" ||
        complain "$call in rank $rank (async $async): nothing is told"
    train 0 2 "$output" --resume
    whole "$output" "$call in rank $rank (async $async)"
done
finish
