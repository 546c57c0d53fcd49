#!/usr/bin/env bash
# Times a LoRA step of attune against PyTorch + PEFT doing the same work on the same machine: alternately, so that both meet the
# same weather. A row of bench/results/NAME.csv per round; the median ratio at the end. README.md says what is needed.
#
#   bench/step.sh [NAME] [argument of torch_lora.py ...]      e.g.  bench/step.sh compiled --compile
#
# Environment: MODEL (default: the first models/*.gguf), ATTUNE (build/attune), PYTHON (build/peers/bin/python), ROUNDS (3),
# STEPS (8), THREADS (2).
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-step}
shift || true
attune=${ATTUNE:-build/attune}
python=${PYTHON:-build/peers/bin/python}
rounds=${ROUNDS:-3}
steps=${STEPS:-8}
threads=${THREADS:-2}
model=${MODEL:-$(find models -maxdepth 2 -name '*.gguf' 2>/dev/null | sort | head -n 1)}
csv=bench/results/$name.csv

die() {
    echo "bench/step.sh: $1" >&2
    exit 3
}
[ -x "$attune" ] || die "no $attune: cmake --preset cpu && cmake --build build"
[ -x "$(command -v "$python")" ] || die "no $python: see bench/README.md"
[ -n "$model" ] || die "no model: set MODEL, or run launch/quickstart.sh, which fetches one"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=$threads

"$python" bench/make_tokens.py --model "$model" --rows 32 --length 512 --out "$work/tokens.jsonl" 2>"$work/log" || {
    cat "$work/log" >&2
    exit 1
}
"$python" bench/peers/torch_lora.py --model "$model" --init-adapter "$work/adapter" 2>"$work/log" || {
    cat "$work/log" >&2
    exit 1
}

run_attune() {
    rm -rf "$work/run"
    "$attune" train bench/recipes/step.yaml model="$model" adapter="$work/adapter" data.train="$work/tokens.jsonl" \
        train.steps="$steps" output="$work/run" 2>"$work/log" || {
        cat "$work/log" >&2
        exit 1
    }
}

run_peer() {
    "$python" bench/peers/torch_lora.py --model "$model" --adapter "$work/adapter" --data "$work/tokens.jsonl" --steps "$steps" \
        --threads "$threads" "$@" >"$work/peer.jsonl" 2>"$work/log" || {
        cat "$work/log" >&2
        exit 1
    }
}

commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
machine=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
mkdir -p bench/results
for round in $(seq 1 "$rounds"); do
    load=$(cut -d ' ' -f 1 /proc/loadavg)
    if [ $((round % 2)) -eq 1 ]; then
        run_attune
        run_peer "$@"
    else
        run_peer "$@"
        run_attune
    fi
    "$python" bench/step_row.py --attune "$work/run/metrics.jsonl" --peer "$work/peer.jsonl" --csv "$csv" --date "$(date -u +%F)" \
        --commit "$commit" --machine "$machine" --threads "$threads" --work "lora r16, 2x512 tokens" --round "$round" --load "$load"
done
"$python" - "$csv" "$rounds" <<'PY'
import csv, statistics, sys
ratios = [float(r["ratio"]) for r in csv.DictReader(open(sys.argv[1]))][-int(sys.argv[2]):]
print(f"median ratio of {len(ratios)} rounds: {statistics.median(ratios):.2f}")
PY
