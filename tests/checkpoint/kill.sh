#!/bin/sh
# kill.sh MPIEXEC DRIVER TRIALS SEED: a rank, or the launcher, is killed at a random moment of a run that saves without pause.
# Whatever is then published must be whole, no step may be lost, and the next run must be able to go on.
set -eu
mpiexec=$1 driver=$2 trials=$3 seed=$4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

newest() { ls "$dir/checkpoints" 2>/dev/null | sed -n 's/^step-0*//p' | sort -n | tail -n 1; }
random() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); echo $((seed / 65536 % $1)); } # C's old example

before=0
for trial in $(seq "$trials"); do
    ms=$(($(random 400) + 20))
    victim=$(random 3)
    if [ "$victim" = 2 ]; then # the launcher; its ranks follow within a moment
        timeout -s KILL 0.$((ms + 300)) "$mpiexec" -n 2 "$driver" loop "$dir" 9 0 >/dev/null 2>&1 || true
        sleep 0.3
    else
        "$mpiexec" -n 2 "$driver" loop "$dir" "$victim" $ms >/dev/null 2>&1 || true
    fi
    after=$(newest)
    after=${after:-0}
    [ "$after" -ge "$before" ] || { echo "trial $trial: step $before was lost, $after is the newest" >&2; exit 1; }
    if [ "$after" -gt 0 ]; then
        "$driver" load "$dir" "$after" || { echo "trial $trial: step $after is not whole" >&2; exit 1; }
    fi
    before=$after
done
[ "$before" -gt 0 ] || { echo "no step was ever saved: nothing was tested" >&2; exit 1; }
echo "$trials kills, $before steps"
