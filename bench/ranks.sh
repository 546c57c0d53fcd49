#!/usr/bin/env bash
# What sharing a machine costs: the same step (same global batch) by one rank with all threads, and by ranks with one thread each,
# data parallel, tensor parallel and with ZeRO; alternately, so that all meet the same weather. Rows of bench/results/ranks.csv:
# tokens/s relative to one rank in the same round, what the ranks exchanged, and the share of the gradients' exchange that backward
# has hidden. The losses must agree.
#
#   bench/ranks.sh [METHOD ...]          full lora
#
# Environment: MODEL (default: the first models/*.gguf), ATTUNE (build/attune), MPIEXEC (mpiexec), ROUNDS (3), STEPS (5), PRECISION.
set -euo pipefail
cd "$(dirname "$0")/.."

attune=${ATTUNE:-build/attune}
mpiexec=${MPIEXEC:-mpiexec}
rounds=${ROUNDS:-3}
steps=${STEPS:-5}
model=${MODEL:-$(find -L models -maxdepth 2 -name '*.gguf' 2>/dev/null | sort | head -n 1)}
csv=bench/results/ranks.csv
cores=$(nproc)
[ -n "$model" ] || { echo "bench/ranks.sh: no model: set MODEL, or run launch/install.sh --model" >&2; exit 3; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# a row of 256 tokens each: ids that any model has
awk 'BEGIN { s = 1; for (i = 0; i < 64; i++) { printf "{\"tokens\": ["; for (k = 0; k < 256; k++) { s = (s * 16807) % 2147483647
    printf "%s%d", k ? ", " : "", 1000 + s % 30000 } print "]}" } }' >"$work/rows.jsonl"

# one METHOD NAME RANKS THREADS FLAGS...: runs it; prints tokens/s of the median step, and the last loss
one() {
    local method=$1 out=$work/$2 ranks=$3
    export OMP_NUM_THREADS=$4
    shift 4
    rm -rf "$out"
    "$mpiexec" -n "$ranks" "$attune" train bench/recipes/step.yaml model="$model" data.train="$work/rows.jsonl" method="$method" \
        train.steps="$steps" train.batch=4 train.micro_tokens=512 data.max_tokens=256 checkpoint.every=0 output="$out" \
        ${PRECISION:+precision=$PRECISION} "$@" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    # the first step touches memory for the first time: the others count
    awk 'function value(key) { return match($0, "\"" key "\": [^,}]*") ? substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) : 0 }
        /"loss"/ && value("step") > 1 { n++; t[n] = value("tokens_per_s"); sent = value("comm_bytes"); busy += value("beside_ms")
            waited += value("beside_wait_ms"); loss = value("loss") }
        END { for (i = 1; i <= n; i++) for (k = i + 1; k <= n; k++) if (t[k] < t[i]) { x = t[i]; t[i] = t[k]; t[k] = x }
            printf "%.1f %.1f %.2f %.6f\n", t[int((n + 1) / 2)], sent / 1048576, (busy > 0 ? 1 - waited / busy : 0), loss }' \
        "$out/metrics.jsonl"
}

[ -s "$csv" ] || echo "round,method,precision,layout,ranks,threads,tokens_per_s,relative,comm_mib,hidden,loss,machine" >"$csv"
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
methods=("$@")
[ $# -gt 0 ] || methods=(full lora)
for round in $(seq "$rounds"); do
    for method in "${methods[@]}"; do
        base=
        for layout in "one 1 $cores" "data 2 1" "tensor 2 1 parallel.tensor=2" "zero1 2 1 parallel.zero=1" \
            "zero2 2 1 parallel.zero=2" "zero3 2 1 parallel.zero=3"; do
            read -r name ranks threads flags <<<"$layout"
            # shellcheck disable=SC2086 # flags are words
            read -r speed sent hidden loss < <(one "$method" "$name" "$ranks" "$threads" $flags)
            base=${base:-$speed}
            printf '%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n' "$round" "$method" "${PRECISION:-bf16}" "$name" "$ranks" "$threads" "$speed" \
                "$(awk -v a="$speed" -v b="$base" 'BEGIN { printf "%.2f", a / b }')" "$sent" "$hidden" "$loss" "$machine" | tee -a "$csv"
        done
    done
done
