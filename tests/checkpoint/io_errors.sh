#!/bin/bash
# io_errors.sh MPIEXEC DRIVER STRIKE FAILIO: every system call of a save, in either of two ranks, fails once, and from there on. The
# save ends within its deadline, says why it failed, and does no harm; one that claims success has published what loads.
set -u
mpiexec=$1 driver=$2 strike=$3 failio=$4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failures=0 faults=0 late=0
complain() {
    failures=$((failures + 1))
    echo "FAILED: $*"
    cat "$dir/log"
}

# save CALL N ERROR RANK: 1 when the call was not reached
save() {
    local code=0 what="$1 number $2 fails with $3 in rank $4" log=$dir/log
    rm -rf "$dir/fired" "$dir/run"
    cp -r "$dir/one" "$dir/run"
    ATTUNE_SAVE_DEADLINE=2 FAILIO=$1:$2:$3 FAILIO_DIR=$dir/run FAILIO_RANK=$4 FAILIO_FIRED=$dir/fired "$strike" -w 20 -- \
        "$mpiexec" -n 2 env LD_PRELOAD="$failio" "$driver" save "$dir/run" 2 >"$log" 2>&1 || code=$?
    [[ -e $dir/fired ]] || return 1
    faults=$((faults + 1))
    case $code in
    0) want=2 ;;
    1) want=1 ;;
    *) complain "$what: exit code $code" ;;
    esac
    if grep -q 'not ended within' "$log"; then
        late=$((late + 1)) # ended by the deadline: what it was writing stays for the next run to remove
    elif [[ $code == 1 ]]; then
        grep -Eq 'ckpt_driver: .*(Input/output error|No space left|open failed on a remote node)' "$log" || complain "$what: the cause is not told"
        [[ -z $(compgen -G "$dir/run/checkpoints/.tmp-*") || $1 == rename ]] || complain "$what: leftovers"
    fi
    "$driver" load "$dir/run" >>"$log" 2>&1 || complain "$what: what is there does not load"
    grep -q skipped "$log" && complain "$what: a damaged checkpoint was published"
    newest=$(ls "$dir/run/checkpoints" | sed -n 's/^step-0*//p' | tail -n 1)
    [[ $newest == "$want" ]] || complain "$what: exit code $code, and step $newest is the newest"
    return 0
}

"$driver" save "$dir/one" 1 || exit 1
for rank in 0 1; do
    for call in mkdir open write sync fallocate rename; do
        for ((n = 1; n <= 300; n++)); do save $call $n EIO $rank || break; done
        for n in 1 3 7 20; do save $call $n ENOSPC:on $rank || break; done
    done
done

# Reading: a fault is told, and nothing wrong is taken for right.
"$driver" save "$dir/one" 2 || exit 1
for ((n = 1; n <= 300; n++)); do
    rm -f "$dir/fired"
    FAILIO=read:$n:EIO FAILIO_DIR=$dir/one FAILIO_FIRED=$dir/fired LD_PRELOAD=$failio "$driver" load "$dir/one" >"$dir/log" 2>&1
    [[ -e $dir/fired ]] || break
    faults=$((faults + 1))
    grep -q 'Input/output error' "$dir/log" || complain "reading, call $n: nothing is told"
    grep -q 'wrong value' "$dir/log" && complain "reading, call $n: wrong values"
done
[[ $n -gt 3 ]] || complain "too few reads"

echo "$faults faults, $late ended by the deadline"
[[ $faults -gt 60 ]] || complain "too few faults: is the library preloaded?"
[[ $failures == 0 ]]
