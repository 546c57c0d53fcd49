#!/bin/sh
# stall.sh MPIEXEC DRIVER: a save in which a rank hangs ends the job within its deadline, with code 1, and harms nothing.
set -eu
mpiexec=$1 driver=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$driver" save "$dir" 1
code=0
start=$(date +%s)
ATTUNE_SAVE_DEADLINE=1 "$mpiexec" -n 2 "$driver" stall "$dir" || code=$?
[ $code = 1 ] || { echo "exit code $code" >&2; exit 1; }
[ $(($(date +%s) - start)) -lt 30 ] || { echo "the deadline came too late" >&2; exit 1; }
"$driver" load "$dir" 1
