#!/usr/bin/env bash
# What `attune plan` says a rank will hold, beside the largest resident set of any rank of that run (rss_bytes of its metrics.jsonl),
# for methods, precisions and layouts. A row of bench/results/memory.csv each; exit status 1 when one differs by more than 2 %.
#
#   bench/memory.sh
#
# Environment: MODEL (default: the first models/*.gguf), ATTUNE (build/attune), MPIEXEC (mpiexec), METHODS ("lora full"),
# PRECISIONS ("f32 bf16"), CSV (bench/results/memory.csv), CHECKPOINTS (0; 1: checkpoints are written beside the steps, which counts
# too), LAYOUTS (a subset of those below, as "RANKS TENSOR ZERO;...").
set -euo pipefail
cd "$(dirname "$0")/.."

attune=${ATTUNE:-build/attune}
mpiexec=${MPIEXEC:-mpiexec}
model=${MODEL:-$(find -L models -maxdepth 2 -name '*.gguf' 2>/dev/null | sort | head -n 1)}
csv=${CSV:-bench/results/memory.csv}
checkpoints=${CHECKPOINTS:-0}
steps=$((checkpoints ? 4 : 2))

die() {
    echo "bench/memory.sh: $1" >&2
    exit 3
}
[ -x "$attune" ] || die "no $attune: cmake --preset cpu && cmake --build build"
[ -n "$model" ] || die "no model: set MODEL, or run launch/quickstart.sh, which fetches one"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1

# 4 rows of 100 to 128 made-up ids a step, each a micro-batch: as many as there are ranks, at most
awk 'BEGIN {
    s = 12345
    for (i = 0; i < 8; i++) {
        printf "{\"tokens\": [1"
        for (k = 1; k < 100 + i * 4; k++) { s = (s * 1103515245 + 12345) % 2147483648; printf ", %d", 3 + int(s / 7) % 40000 }
        print "]}"
    }
}' >"$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $model
data: {train: $work/rows.jsonl, format: tokens, max_tokens: 128, shuffle: false}
train: {steps: $steps, batch: 4, micro_tokens: 128}
checkpoint: {every: $checkpoints}
END

number() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" "$2" | tail -n 1; }

commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
machine=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
# row METHOD PRECISION RANKS TENSOR ZERO
row() {
    local overrides=("method=$1" "precision=$2" "parallel.tensor=$4" "parallel.zero=$5" "output=$work/run") command=()
    [ "$3" = 1 ] || command=("$mpiexec" -n "$3")
    rm -rf "$work/run"
    "$attune" plan "$work/recipe.yaml" "${overrides[@]}" --ranks "$3" --json >"$work/plan.json"
    "${command[@]}" "$attune" train "$work/recipe.yaml" "${overrides[@]}" >"$work/log" 2>&1 </dev/null || {
        cat "$work/log" >&2
        exit 1
    }
    awk -v row="$(date -u +%F),$commit,$machine,$1,$2,$3,$4,$5" -v planned="$(number bytes_per_rank "$work/plan.json")" \
        -v rank="$(number largest_rank "$work/plan.json")" -v measured="$(number rss_bytes "$work/run/metrics.jsonl")" \
        'BEGIN { printf "%s,%d,%.0f,%.0f,%+.2f\n", row, rank, planned, measured, 100 * (planned - measured) / measured }' | tee -a "$csv"
}

IFS=';' read -ra layouts <<<"${LAYOUTS:-1 1 0;2 1 0;2 1 1;2 1 2;2 1 3;2 2 0;4 1 0;4 1 1;4 1 2;4 1 3;4 2 0;4 2 1;4 2 2;4 2 3;4 4 0}"
mkdir -p "$(dirname "$csv")"
echo "date,commit,machine,method,precision,ranks,tensor,zero,largest_rank,planned_bytes,measured_bytes,difference_percent" >"$csv"
for method in ${METHODS:-lora full}; do
    for precision in ${PRECISIONS:-f32 bf16}; do
        for layout in "${layouts[@]}"; do
            # shellcheck disable=SC2086
            row "$method" "$precision" $layout
        done
    done
done
awk -F, 'NR > 1 { d = $NF < 0 ? -$NF : $NF; if (d > most) most = d; bad += d > 2 }
    END { printf "largest difference of %d rows: %.2f %%\n", NR - 1, most; exit bad > 0 }' "$csv"
