#!/usr/bin/env bash
# What checkpoints cost that are written beside the steps: the same run with and without them, alternately, so that both meet the same
# weather. A row of bench/results/checkpoint_async.csv per round: what a step takes, the time in which steps stand still for a
# snapshot included, with checkpoints against without. Exit status 1 when the median of the rounds is beyond 3 %.
#
#   bench/checkpoint_async.sh [METHOD ...]          lora full
#
# Environment: MODEL (default: the first models/*.gguf), ATTUNE (build/attune), ROUNDS (5), STEPS (41), EVERY (20): steps from one
# checkpoint to the next, which must be time enough for one.
set -euo pipefail
cd "$(dirname "$0")/.."

attune=${ATTUNE:-build/attune}
rounds=${ROUNDS:-5}
steps=${STEPS:-41}
every=${EVERY:-20}
model=${MODEL:-$(find -L models -maxdepth 2 -name '*.gguf' 2>/dev/null | sort | head -n 1)}
csv=bench/results/checkpoint_async.csv
[ -n "$model" ] || { echo "bench/checkpoint_async.sh: no model: set MODEL, or run launch/install.sh --model" >&2; exit 3; }

work=$(mktemp -d -p "${WORK:-.}" .bench-XXXXXX) # on a disk, as runs are, and not in memory
trap 'rm -rf "$work"' EXIT
# a row of 128 tokens each: ids that any model has
awk 'BEGIN { s = 1; for (i = 0; i < 64; i++) { printf "{\"tokens\": ["; for (k = 0; k < 128; k++) { s = (s * 16807) % 2147483647
    printf "%s%d", k ? ", " : "", 1000 + s % 30000 } print "]}" } }' >"$work/rows.jsonl"

# one METHOD EVERY: runs it; prints ms per step, how much of that steps stood still, and the last loss
one() {
    rm -rf "$work/run"
    "$attune" train bench/recipes/step.yaml model="$model" data.train="$work/rows.jsonl" method="$1" train.steps="$steps" train.batch=2 \
        train.micro_tokens=256 data.max_tokens=128 checkpoint.every="$2" checkpoint.keep=1 output="$work/run" 2>"$work/log" ||
        { cat "$work/log" >&2; exit 1; }
    # the first step touches memory for the first time: the others count
    awk 'function value(key) { return match($0, "\"" key "\": [^,}]*") ? substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) : 0 }
        /"loss"/ && value("step") > 1 { n++; t += value("step_ms"); saved += value("save_ms"); loss = value("loss") }
        END { printf "%.1f %.1f %.6f\n", (t + saved) / n, saved / n, loss }' "$work/run/metrics.jsonl"
}

[ -s "$csv" ] || echo "round,method,every,steps,ms_without,ms_with,stood_still_ms,relative,load,machine" >"$csv"
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
methods=("$@")
[ $# -gt 0 ] || methods=(lora full)
for method in "${methods[@]}"; do
    for round in $(seq "$rounds"); do
        load=$(cut -d ' ' -f 1 /proc/loadavg)
        if ((round % 2)); then
            read -r without _ loss < <(one "$method" 0)
            read -r with still other < <(one "$method" "$every")
        else
            read -r with still other < <(one "$method" "$every")
            read -r without _ loss < <(one "$method" 0)
        fi
        [ "$loss" = "$other" ] || { echo "the losses differ: $loss, $other" >&2; exit 1; }
        printf '%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n' "$round" "$method" "$every" "$steps" "$without" "$with" "$still" \
            "$(awk -v a="$with" -v b="$without" 'BEGIN { printf "%.4f", a / b }')" "$load" "$machine" | tee -a "$csv"
    done
done
tail -n $((rounds * ${#methods[@]})) "$csv" | awk -F, '{ r[$2] = r[$2] " " $8; n[$2]++ } END { for (m in r) { split(r[m], x, " ")
    for (i = 1; i <= n[m]; i++) for (k = i + 1; k <= n[m]; k++) if (x[k] < x[i]) { y = x[i]; x[i] = x[k]; x[k] = y }
    median = (x[int((n[m] + 1) / 2)] + x[int((n[m] + 2) / 2)]) / 2; bad += median > 1.03
    printf "%s: median %+.1f %%\n", m, 100 * (median - 1) } exit bad > 0 }'
