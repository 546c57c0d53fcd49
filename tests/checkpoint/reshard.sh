#!/bin/sh
# reshard.sh MPIEXEC DRIVER: what one number of ranks saved, any other loads, with and without MPI; all values are compared.
set -eu
mpiexec=$1 driver=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
step=0
for saved in 0 1 2 4; do # 0: without a launcher
    step=$((step + 1))
    if [ $saved = 0 ]; then "$driver" save "$dir" $step; else "$mpiexec" -n $saved "$driver" save "$dir" $step; fi
    "$driver" load "$dir" $step
    for loaded in 1 2 3 4; do
        "$mpiexec" -n $loaded "$driver" load "$dir" $step || { echo "saved by $saved ranks, loaded by $loaded" >&2; exit 1; }
    done
done
