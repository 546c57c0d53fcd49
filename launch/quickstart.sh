#!/usr/bin/env bash
# quickstart.sh: from a bare Debian 12 to a fine-tuned model. Installs what is missing, builds, fetches the base model, tunes a
# LoRA adapter on the bundled data with two ranks, evaluates before and after, and shows both side by side. What is done is not
# done again: a second run prints the results. Options are overrides of the recipe: launch/quickstart.sh train.steps=20
set -euo pipefail
cd "$(dirname "$0")/.."

RECIPE=launch/recipes/quickstart.yaml
OUTPUT=runs/quickstart
LOG=build/quickstart.log
RANKS=2
STEPS=6

bold= dim= plain=
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
n=0
step() {
    n=$((n + 1))
    printf '%s[%d/%d] %s%s\n' "$bold" "$n" "$STEPS" "$1" "$plain"
}
note() { printf '%s      %s%s\n' "$dim" "$1" "$plain"; }

quietly() { # runs a command; its output only when it fails
    local code=0
    "$@" >"$LOG" 2>&1 </dev/null || code=$?
    if [[ $code != 0 ]]; then
        tail -n 40 "$LOG" >&2
        printf 'attune: error: quickstart: %s failed\n  hint: everything it said is in %s\n' "$1" "$LOG" >&2
        exit "$code"
    fi
}

ranks() { "$(command -v mpirun.mpich || command -v mpirun)" -n "$RANKS" "$@" </dev/null; }
state() { sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$OUTPUT/status.json" 2>/dev/null || true; }

started=$SECONDS
step "packages"
launch/install.sh

step "build"
mkdir -p build
quietly cmake --preset cpu
quietly cmake --build build --target attune
note "build/attune"

step "base model"
launch/install.sh --model
note "models/SmolLM2-135M-Instruct"

step "evaluation of the base model"
if [[ -f $OUTPUT/eval-base.json ]]; then
    note "done before: $OUTPUT/eval-base.json"
else
    mkdir -p "$OUTPUT"
    ranks build/attune eval "$RECIPE" --base "$@"
fi

step "training, $RANKS ranks"
case $(state) in
completed) note "done before: $OUTPUT/adapter" ;;
'') ranks build/attune train "$RECIPE" "$@" ;;
*) # interrupted
    ranks build/attune train "$RECIPE" --resume "$@"
    rm -f "$OUTPUT/eval.json"
    ;;
esac

step "evaluation of the tuned model"
if [[ -f $OUTPUT/eval.json ]]; then
    note "done before: $OUTPUT/eval.json"
else
    ranks build/attune eval "$RECIPE" "$@"
fi

echo
python3 launch/compare.py "$OUTPUT/eval-base.json" "$OUTPUT/eval.json"
cat <<END

  adapter     $OUTPUT/adapter   (PEFT)
  checkpoint  $(ls -d "$OUTPUT"/checkpoints/step-* | tail -n 1)
  report      $OUTPUT/report.html
  talk to it  build/attune generate models/SmolLM2-135M-Instruct/*.gguf --chat --adapter $OUTPUT/adapter
  $((SECONDS - started)) s in all
END
