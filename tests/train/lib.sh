# lib.sh ATTUNE MPIEXEC: what the tests of whole runs share. Source it; end with `finish`.
set -uo pipefail
attune=$1 mpiexec=$2
golden=tests/golden/families
strike=$(dirname "$attune")/tests/strike # runs a job and sends signals to its processes
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # tiny models: threads would only wait for each other

complain() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$*"
}
finish() {
    [[ $failures == 0 ]] && echo "all passed"
    exit $((failures > 0))
}

# rows COUNT FILE: rows of 2 to 60 made-up ids below 320, always the same
rows() {
    awk -v n="$1" 'BEGIN {
        s = 12345
        for (i = 0; i < n; i++) {
            printf "{\"tokens\": ["
            s = (s * 1103515245 + 12345) % 2147483648; len = 2 + s % 59
            for (k = 0; k < len; k++) { s = (s * 1103515245 + 12345) % 2147483648; printf "%s%d", k ? ", " : "", 3 + int(s / 7) % 317 }
            print "]}"
        }
    }' >"$2"
}

# run EXIT RANKS ARGUMENTS...: attune, alone for 0 ranks; what it says is in $work/log
run() {
    local want=$1 ranks=$2 got=0
    shift 2
    if [[ $ranks == 0 ]]; then
        "$attune" "$@" >"$work/log" 2>&1 </dev/null || got=$?
    else
        "$mpiexec" -n "$ranks" "$attune" "$@" >"$work/log" 2>&1 </dev/null || got=$?
    fi
    [[ $got == "$want" ]] && return
    complain "exit code $got, not $want: ($ranks ranks) $*"
    tail -n 5 "$work/log"
}
# train EXIT RANKS OUTPUT OVERRIDES...: the recipe $work/recipe.yaml
train() {
    local want=$1 ranks=$2 output=$3
    shift 3
    run "$want" "$ranks" train "$work/recipe.yaml" "output=$output" "$@"
}
says() { grep -Ezq -- "$1" "$work/log" || { complain "not said: $1"; tail -n 5 "$work/log"; }; }

# struck EXIT RANKS "OPTIONS OF STRIKE" ARGUMENTS...: as run, and a process of the job is hit. EXIT "killed": any code but 0 to 3, of
# which a job that was killed has none, 124 (it hung) and 125 (processes were left)
struck() {
    local want=$1 ranks=$2 options=$3 got=0
    shift 3
    # shellcheck disable=SC2086 # options are words
    "$strike" $options -- "$mpiexec" -n "$ranks" "$attune" "$@" >"$work/log" 2>&1 </dev/null || got=$?
    [[ $got == "$want" ]] && return
    [[ $want == killed && $got -gt 3 && $got != 124 && $got != 125 ]] && return
    [[ $want == any && $got != 124 && $got != 125 ]] && return
    complain "exit code $got, not $want: ($ranks ranks, strike $options) $*"
    tail -n 5 "$work/log"
}
newest() { ls "$1/checkpoints" 2>/dev/null | sed -n 's/^step-0*//p' | sort -n | tail -n 1; } # the newest step of a run
keys() { sed 's/"tokens_per_s.*//' "$1/metrics.jsonl"; }                                       # metrics but the timings
status_is() { grep -q "\"state\": \"$2\"" "$1/status.json" || complain "status is not $2: $(cat "$1/status.json" 2>&1)"; }

# values KEY FILE: the numbers of one key of a JSONL file, a line each
values() { sed -n "s|.*\"$1\": \([^,}]*\).*|\1|p" "$2"; }
# numbers FILE...: every number of the files, a line each
numbers() { grep -Eo -- '-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?' "$@"; }
# near A B TOLERANCE WHAT: two lists of numbers, compared as |a-b| <= TOLERANCE * max(1, |b|)
near() {
    paste "$1" "$2" | awk -v t="$3" 'NF != 2 { bad = 1 } { d = $1 - $2; if (d < 0) d = -d; m = $2 < 0 ? -$2 : $2; if (m < 1) m = 1
        if (!(d <= t * m)) bad = 1 } END { exit bad || !NR }' || complain "$4: numbers differ"
}
same() { cmp -s "$1" "$2" || complain "$3: $1 and $2 differ"; }

# largest KEY A B: the largest relative difference of two runs' values
largest() {
    values "$1" "$2/metrics.jsonl" >"$work/a"
    values "$1" "$3/metrics.jsonl" >"$work/b"
    paste "$work/a" "$work/b" |
        awk '{ d = ($1 - $2) / $2; if (d < 0) d = -d; if (d > m) m = d } END { printf "%.9f", NR == 10 ? m : 1 }'
}
within() { awk -v x="$1" -v limit="$2" 'BEGIN { exit !(x <= limit) }' || complain "$3: differs by $1"; }

# layouts FAMILY METHOD RESULT OVERRIDES...: every layout of up to 4 tensor and 2 data ranks of the recipe, whose runs have 10 steps, against one
# rank; the bits, those of RESULT too, against one data rank
layouts() {
    local family=$1 method=$2 result=$3 one=$work/$1-$2-one tp dp zero
    shift 3
    local args=("model=$golden/$family" "method=$method" "$@")
    train 0 0 "$one" "${args[@]}"
    for tp in 1 2 3 4; do
        local first=$work/$family-$method-$tp
        for dp in 1 2; do
            for zero in 0 1 2 3; do
                ((dp == 1 && zero)) && continue # one data rank has nobody to share with
                [[ ${FEW_LAYOUTS:-} ]] && ((dp == 2 && zero != 4 - tp)) && continue # for programs that run slowly
                local name="$family $method tensor $tp data $dp zero $zero" out=$first-$dp-$zero
                train 0 $((tp * dp)) "$out" "${args[@]}" parallel.tensor=$tp parallel.zero=$zero
                within "$(largest loss "$out" "$one")" 1e-5 "$name: loss"
                within "$(largest grad_norm "$out" "$one")" 1e-4 "$name: grad_norm"
                for key in loss grad_norm; do
                    values $key "$first-1-0/metrics.jsonl" >"$work/want"
                    values $key "$out/metrics.jsonl" >"$work/got"
                    same "$work/got" "$work/want" "$name: bits of $key"
                done
                same "$out/$result" "$first-1-0/$result" "$name"
            done
        done
    done
}
