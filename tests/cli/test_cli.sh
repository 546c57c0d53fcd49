#!/usr/bin/env bash
# test_cli.sh ATTUNE MPIEXEC: the command line from outside. One check a line:
#   check EXIT_CODE "STDERR PATTERN" ARGUMENTS...
#   prints "STDOUT PATTERN" ARGUMENTS...
# Patterns are extended regular expressions over the whole stream.
set -uo pipefail
attune=$1 mpiexec=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
run=("$attune")

report() {
    failures=$((failures + 1))
    printf 'FAILED: attune %s\n  %s\n' "$1" "$2"
    sed 's/^/  stdout: /' "$work/out" | head -n 5
    sed 's/^/  stderr: /' "$work/err" | head -n 5
}

check() {
    local code=$1 pattern=$2 got=0
    shift 2
    "${run[@]}" "$@" >"$work/out" 2>"$work/err" </dev/null || got=$?
    [[ $got == "$code" ]] || report "$*" "exit code $got, not $code"
    if [[ $code == 0 && -s $work/err ]]; then report "$*" "something is on stderr"; fi
    if [[ $code != 0 ]] && ! grep -Ezq -- "$pattern" "$work/err"; then report "$*" "stderr does not match: $pattern"; fi
    # An error is told once, in one format, and nothing else is on stderr.
    if [[ $code == 2 ]]; then
        [[ $(grep -c '^attune: error: ' "$work/err") == 1 ]] || report "$*" "not exactly one error line"
        [[ -z $(grep -v '^attune: error: \|^  hint: ' "$work/err") ]] || report "$*" "more than an error and a hint"
    fi
}
prints() {
    local pattern=$1
    shift
    check 0 '' "$@"
    grep -Ezq -- "$pattern" "$work/out" || report "$*" "stdout does not match: $pattern"
}

# ---- help and version
prints 'train .*eval .*score .*generate .*plan .*tokenize .*data .*convert .*inspect .*doctor' help
prints 'Usage: attune VERB' --help
prints '^attune [0-9]+\.[0-9]+\.[0-9]+' --version
for verb in train eval score generate plan tokenize data convert inspect doctor help; do
    prints "Usage: attune $verb" "$verb" --help
    prints "Usage: attune $verb" help "$verb"
done
prints 'max_tokens: 1024    # 2\.\.1048576' help recipe
prints '^attune [0-9]' train --version

# ---- usage
check 2 'command line: no verb is given'
check 2 'there is no verb trian.*did you mean `attune train`' trian
check 2 'here it is `attune train RECIPE`' finetune
check 2 'the verb comes first' --resume train
check 2 'attune train needs RECIPE' train
check 2 'has no option --resum3.*did you mean --resume' train r --resum3
check 2 '--force takes no value' train r --force=1
check 2 '--prompt takes a value' generate m --prompt
check 2 'needs a prompt.*give one of --prompt' generate m
check 2 'exclude each other' generate m --prompt a --chat
check 2 'attune generate needs --out' generate m --data f
check 2 '--temperature takes a number from 0 to 100, not "-1"' generate m --prompt a --temperature -1
check 2 '--temperature takes a number' generate m --prompt a --temperature nan
check 2 '--max-new takes a whole number' generate m --prompt a --max-new 1.5
check 2 '--seed takes a whole number' generate m --prompt a --seed -1
check 2 '--precision takes bf16\|f32, not "f16"' eval r --precision f16
check 2 '--memory takes a size such as 16G' plan r --memory lots
check 2 'attune score needs --data' score m
check 2 'attune convert needs SRC DST' convert a
check 2 'does not know what to do with "b"' inspect a b
check 2 'there is no verb nothing' help nothing
check 2 'no completions for the shell "fish"' completions fish

# ---- recipes
printf 'model: m\nlr: 1e-5\n' >"$work/r.yaml"
for verb in train eval plan data; do
    check 2 "attune: error: $work/r.yaml:2: unknown key lr.*  hint: did you mean train.lr\?" "$verb" "$work/r.yaml"
    check 2 'attune: error: .*no-such.yaml: ' "$verb" "$work/no-such.yaml"
done
printf 'model: %s/absent\ndata: {train: t.jsonl, test: t.jsonl}\noutput: %s/run\n' "$work" "$work" >"$work/r.yaml"
check 2 'command line: unknown option train.lrr.*did you mean train.lr' train "$work/r.yaml" train.lrr=1
check 2 'command line: train.lr takes a number' train "$work/r.yaml" train.lr=fast
check 2 "$work/absent" train "$work/r.yaml"
check 2 "$work/absent" eval "$work/r.yaml"
check 2 "$work/absent" score "$work/absent" --data f --out "$work/g"
check 2 "$work/absent" generate "$work/absent" --prompt a
check 2 "$work/absent" inspect "$work/absent"
check 2 "$work/absent" tokenize "$work/absent" --data f --out "$work/g"
check 2 "$work/absent" convert "$work/absent" "$work/dst"
[[ ! -e $work/dst && ! -e $work/g && ! -e $work/run/status.json ]] || report '' 'a failed command left something behind'

# ---- this machine, output that goes nowhere
prints 'CPU .*memory .*ranks +1.*libraries.*parallel HDF5' doctor
prints 'device cuda: no device named `cuda` in this build' doctor
code=0
"$attune" help >/dev/full 2>"$work/err" || code=$?
[[ $code == 1 ]] || report help "exit code $code on a full disk, not 1"
# A reader that leaves early is no failure.
"$attune" help recipe | head -n 1 >/dev/null
[[ ${PIPESTATUS[0]} == 0 ]] || report 'help recipe' "a closed pipe is taken for a failure"

# ---- completion
"$attune" completions bash >"$work/completions"
complete_last() { # WORDS...: what completes the last of them
    bash -c 'source "$0"; compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
             _attune attune "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[*]}"' \
        "$work/completions" "$@"
}
expect_completion() { # WANTED WORDS...
    local wanted=$1
    shift
    [[ $(complete_last "$@") == "$wanted" ]] || report "$*" "completes to \"$(complete_last "$@")\", not \"$wanted\""
}
expect_completion 'train' attune tr
expect_completion '--resume' attune train --r
expect_completion 'bf16 f32' attune eval r.yaml --precision ''
expect_completion 'train.lr=' attune train r.yaml train.lr
expect_completion 'doctor' attune doc

# ---- ranks: an error is told once, whoever has it; verbs of one rank run once
run=("$mpiexec" -n 2 "$attune")
check 2 'there is no verb trian' trian
check 2 "unknown option train.lrr" train "$work/r.yaml" train.lrr=1
check 2 "$work/absent" train "$work/r.yaml"
check 2 "$work/absent" inspect "$work/absent"
prints 'ranks +2,.*rank 0 on.*rank 1 on' doctor
prints 'Usage: attune train' train --help
[[ $(grep -c 'Usage: attune train' "$work/out") == 1 ]] || report 'train --help' "two ranks print the help twice"

[[ $failures == 0 ]] && echo "all checks passed"
exit $((failures != 0))
