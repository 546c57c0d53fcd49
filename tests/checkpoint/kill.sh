#!/bin/sh
# kill.sh MPIEXEC DRIVER STRIKE TRIALS SEED: a rank, or the launcher, is killed at a random moment of a job that saves without pause.
# Each job goes on from what the one before has left and checks every value of it. No step that was published may be lost or
# damaged, no job may hang, and no process may be left.
set -eu
mpiexec=$1 driver=$2 strike=$3 trials=$4 seed=$5
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

newest() { ls "$dir/checkpoints" | sed -n 's/^step-0*//p' | sort -n | tail -n 1; }
draw() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); drawn=$((seed / 65536 % $1)); } # C's old example
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# How long a job with one save takes here: kills fall into its first few saves.
start=$(now_ms)
"$mpiexec" -n 2 "$driver" save "$dir" 1
span=$(($(now_ms) - start))

[ $span -lt 300 ] || span=300
[ $span -gt 100 ] || span=100
before=1 interrupted=0
for trial in $(seq "$trials"); do
    draw 20; ranks=$((drawn < 17 ? 2 : drawn < 19 ? 3 : 1))
    draw $((ranks + 1)); victim="-r $drawn"
    [ $drawn != $ranks ] || victim=-l # its ranks follow within a moment
    draw $((3 * span)); ms=$((drawn + span / 2))
    code=0
    "$strike" $victim -m $ms -w 60 -- "$mpiexec" -n $ranks "$driver" loop "$dir" >"$dir/log" 2>&1 || code=$?
    what="trial $trial ($victim of $ranks after $ms ms)"
    case $code in
    0 | 1 | 124 | 125) echo "$what: exit code $code" >&2; cat "$dir/log" >&2; exit 1 ;;
    esac
    if grep -E 'skipped|ckpt_driver:' "$dir/log" >&2; then echo "$what: the job before left this" >&2; exit 1; fi
    ls -d "$dir"/checkpoints/.tmp-* >/dev/null 2>&1 && interrupted=$((interrupted + 1))
    after=$(newest)
    [ "$after" -ge "$before" ] || { echo "$what: step $before was lost, $after is the newest" >&2; exit 1; }
    before=$after
done
"$mpiexec" -n 2 "$driver" load "$dir" $before
"$mpiexec" -n 2 "$driver" save "$dir" $((before + 1))
"$driver" load "$dir" $((before + 1))
[ -z "$(ls -d "$dir"/checkpoints/.[a-z]* 2>/dev/null)" ] || { echo "unfinished saves were not removed" >&2; exit 1; }
echo "$trials kills, $interrupted inside a save, $before steps"
[ $interrupted -gt $((trials / 10)) ] || { echo "too few kills fell into a save" >&2; exit 1; }
