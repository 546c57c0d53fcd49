#!/usr/bin/env bash
# What surrounds a run has no part in its numbers: locales with a decimal comma or without an ASCII i, time zones, a clock that jumps.
source "$(dirname "$0")/lib.sh"
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl, valid: $golden/llama/tokens.jsonl, test: $golden/llama/tokens.jsonl}
train: {steps: 6, batch: 4, lr: 3.25e-3, micro_tokens: 64, warmup: 0.125}
lora: {rank: 4, alpha: 8.5, dropout: 0.125}
checkpoint: {every: 2}
eval: {every: 3}
END
train 0 2 "$work/whole"
alike() { # RUN WHAT
    keys "$1" >"$work/got"
    keys "$work/whole" >"$work/want"
    same "$work/got" "$work/want" "$2: metrics"
    sed 's/^output: .*//' "$1/recipe.yaml" >"$work/got"
    sed 's/^output: .*//' "$work/whole/recipe.yaml" >"$work/want"
    same "$work/got" "$work/want" "$2: recipe.yaml"
    same "$1/adapter/adapter_model.safetensors" "$work/whole/adapter/adapter_model.safetensors" "$2"
    same "$1/adapter/adapter_config.json" "$work/whole/adapter/adapter_config.json" "$2: adapter_config.json"
    grep -Eq '"step_ms": [0-9.e+]+, ' "$1/metrics.jsonl" || complain "$2: step_ms"
    status_is "$1" completed
}

mkdir "$work/locale"
for name in de_DE tr_TR; do # (this shell itself keeps its own)
    if localedef -i $name -f UTF-8 "$work/locale/$name.UTF-8" 2>/dev/null; then
        locale=(env "LOCPATH=$work/locale" "LC_ALL=$name.UTF-8")
        [[ $("${locale[@]}" bash -c "printf '%.1f' 0,5" 2>&1) == 0,5 ]] || complain "the locale $name was not taken"
        export LOCPATH=$work/locale LC_ALL=$name.UTF-8 2>/dev/null
        train 0 2 "$work/$name" train.lr=3.25e-3 deterministic=TRUE
        alike "$work/$name" "in $name"
        run 0 0 eval "$work/$name/recipe.yaml"
        grep -Eq '"loss": [0-9]+\.[0-9]+' "$work/$name/eval.json" || complain "eval.json in $name: $(cat "$work/$name/eval.json")"
        train 2 0 "$work/never" train.lr=3,25 # a comma is not a decimal point, wherever
        unset LOCPATH LC_ALL
    else
        echo "skipped: the locale $name (localedef and its sources are in Debian's packages libc-bin and locales)"
    fi
done

for zone in Asia/Kathmandu XYZ-99:99:99 :/nowhere; do
    TZ=$zone train 0 2 "$work/zone"
    alike "$work/zone" "TZ=$zone"
    utc=$(sed -n 's/.*"updated_utc": "\([^"]*\)".*/\1/p' "$work/zone/status.json")
    age=$(($(date +%s) - $(date -d "$utc" +%s)))
    [[ ${age#-} -lt 600 ]] || complain "TZ=$zone: $utc is not the time now"
    rm -r "$work/zone"
done

jump=$(dirname "$attune")/tests/libclockjump.so
if [[ -e $jump ]]; then
    # a killed run and its successor, so that names and ages of files are met again under another time
    ATTUNE_FAULT=kill@step=4,rank=0,at=write "$strike" -w 60 -- "$mpiexec" -n 2 env LD_PRELOAD="$jump" \
        "$attune" train "$work/recipe.yaml" "output=$work/jump" >"$work/log" 2>&1 </dev/null
    [[ $(newest "$work/jump") == 2 ]] || complain "a clock that jumps: the newest is $(newest "$work/jump")"
    "$strike" -w 60 -- "$mpiexec" -n 2 env LD_PRELOAD="$jump" "$attune" train "$work/recipe.yaml" "output=$work/jump" --resume \
        >"$work/log" 2>&1 </dev/null || complain "a clock that jumps: exit code $?"
    alike "$work/jump" "a clock that jumps"
else
    echo "skipped: a clock that jumps (no $jump)"
fi
finish
