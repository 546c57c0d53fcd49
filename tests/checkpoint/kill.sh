#!/bin/sh
# kill.sh MPIEXEC DRIVER TRIALS SEED: a rank, or the launcher, is killed at a random moment of a run that saves without pause.
# Whatever is then published must be whole, no step may be lost, and the next run must be able to go on.
set -eu
mpiexec=$1 driver=$2 trials=$3 seed=$4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

newest() { ls "$dir/checkpoints" | sed -n 's/^step-0*//p' | sort -n | tail -n 1; }
draw() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); drawn=$((seed / 65536 % $1)); } # C's old example
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# How long a run with one save takes here: kills fall into the first few saves.
start=$(now_ms)
"$mpiexec" -n 2 "$driver" save "$dir" 1
span=$(($(now_ms) - start))

before=1
for trial in $(seq "$trials"); do
    draw 3; victim=$drawn
    draw $((2 * span)); ms=$((drawn + 1))
    if [ "$victim" = 2 ]; then # the launcher; its ranks follow within a moment
        ms=$((ms + span))
        timeout -s KILL "$((ms / 1000)).$(printf %03d $((ms % 1000)))" "$mpiexec" -n 2 "$driver" loop "$dir" 9 0 >/dev/null 2>&1 || true
        sleep 0.5
    else
        "$mpiexec" -n 2 "$driver" loop "$dir" "$victim" $ms >/dev/null 2>&1 || true
    fi
    after=$(newest)
    [ "$after" -ge "$before" ] || { echo "trial $trial: step $before was lost, $after is the newest" >&2; exit 1; }
    "$driver" load "$dir" "$after" || { echo "trial $trial: step $after is not whole" >&2; exit 1; }
    before=$after
done
"$mpiexec" -n 2 "$driver" save "$dir" $((before + 1))
"$driver" load "$dir" $((before + 1))
[ -z "$(ls -d "$dir"/checkpoints/.[a-z]* 2>/dev/null)" ] || { echo "unfinished saves were not removed" >&2; exit 1; }
echo "$trials kills, $before steps"
