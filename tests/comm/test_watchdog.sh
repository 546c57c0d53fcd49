#!/usr/bin/env bash
# test_watchdog.sh COMM_END MPIEXEC: jobs that stand still end by themselves, with the right rank named, and nothing is left behind.
# Jobs that mostly wait run at the same time.
set -uo pipefail
program=$1 mpiexec=$2
top=$(mktemp -d)
failed=$top/failed
pids() { cat "$work"/pid.* 2>/dev/null; }
clean() {
    local pid
    for pid in $(cat "$top"/*/pid.* "$top"/*/*/pid.* 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$top"
}
trap clean EXIT

complain() {
    touch "$failed"
    printf 'FAILED: %s\n' "$*"
    sed 's/^/    /' "$work/log"
}
all_gone() {
    local pid
    for pid in $(pids); do
        if kill -0 "$pid" 2>/dev/null; then return 1; fi
    done
}

# job CODE RANKS HOW RANK [MPIEXEC'S OPTIONS]: runs it in a directory of its own; what it says is in $work/log
job() {
    local want=$1 ranks=$2 how=$3 culprit=$4 got=0
    shift 4
    work=$(mktemp -d -p "$top")
    timeout 50 "$mpiexec" "$@" -n "$ranks" "$program" "$how" "$culprit" "$work" >"$work/log" 2>&1 </dev/null || got=$?
    [[ $got == "$want" ]] || complain "$how of rank $culprit: exit code $got, not $want"
    for _ in {1..40}; do
        all_gone && return
        sleep 0.1
    done
    complain "$how of rank $culprit: processes are left"
}
# blames RANK WHAT: one error, of this rank, and the hook was told the same
blames() {
    local errors
    errors=$(grep -c '^attune: error: ' "$work/log")
    [[ $errors == 1 ]] || complain "$errors errors"
    grep -Eq "^attune: error: rank $1 \([^,()]+, pid $(cat "$work/pid.$1")\): $2" "$work/log" || complain "not said: rank $1 ... $2"
    grep -q '^  hint: .*ATTUNE_COMM_TIMEOUT' "$work/log" || complain "no hint"
    [[ $(wc -l <"$work/log") == 2 ]] || complain "more was said"
    grep -Eq "^$1\|rank $1 .*: $2" "$work/told" || complain "the hook was not told of rank $1: $(cat "$work/told" 2>/dev/null)"
}
quiet() { [[ ! -s $work/log ]] || complain "something was said"; }

silent='no sign of life for [2-9] s' away='in no collective for [1-9] s'
stop_first() {
    job 1 3 stop 0 "$@"
    blames 0 "$silent; rank 1 waits in all_reduce for [1-9] s"
}
stop_last() {
    job 1 3 stop 2 "$@"
    blames 2 "$silent; ranks 0, 1 wait in all_reduce for [1-9] s"
}
stay_away() {
    job 1 3 away "$1"
    blames "$1" "$away; ranks $2 wait in all_reduce for [2-9] s"
}
tangle() {
    job 1 4 tangled 3
    blames 3 "$away; ranks 0, 1, 2 wait in "
}
ring() {
    job 1 2 ring 0
    grep -Eq '^attune: error: rank [01] .*: waits in barrier for [2-9] s, and so do the others' "$work/log" || complain "ring: not said"
}
well() {
    job 0 3 none 0
    quiet
}
well_unwatched() {
    ATTUNE_COMM_TIMEOUT=0 job 0 3 none 0
    quiet
}
wrong_limit() {
    ATTUNE_COMM_TIMEOUT=soon job 100 2 none 0
}
# The whole job is suspended for longer than the limit, two ranks inside a collective, and the third goes on a second after them:
# nobody is to blame for that.
suspend_and_go_on() {
    local pid=()
    for _ in {1..200}; do
        sleep 0.1
        read -r -d '' -a pid < <(cat "$1"/*/pid.[012] 2>/dev/null)
        [[ ${#pid[@]} == 3 ]] && grep -q '^State:.T' "/proc/${pid[2]}/status" 2>/dev/null && break
    done
    sleep 0.3
    kill -STOP "${pid[0]}" "${pid[1]}"
    sleep 6
    kill -CONT "${pid[0]}" "${pid[1]}"
    sleep 1
    kill -CONT "${pid[2]}"
}
suspended() {
    local top=$top/suspended # where no other job is
    mkdir "$top"
    suspend_and_go_on "$top" &
    job 0 3 stop 2
    wait $!
    quiet
}

export ATTUNE_COMM_TIMEOUT=2
stop_first & stop_last -genv ATTUNE_COMM mpi & stop_last -launcher fork -hosts a,b -ppn 2 & wait
stop_last & stop_first -launcher fork -hosts a,b -ppn 2 & stay_away 0 '1, 2' & wait
stay_away 2 '0, 1' & tangle & ring & wait
suspended & well & wait
well_unwatched
wrong_limit

[[ ! -e $failed ]] || exit 1
echo "all passed"
