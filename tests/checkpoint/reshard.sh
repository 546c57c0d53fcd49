#!/bin/sh
# reshard.sh MPIEXEC DRIVER: what one number of ranks saved, any other loads, with and without MPI, cut by rows, by columns or into
# random grids; all values are compared. The file shows nothing of the cut: h5ls lists the same tensors with their global shapes.
set -eu
mpiexec=$1 driver=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
step=0

on() { # RANKS COMMAND...: 0: without a launcher
    ranks=$1
    shift
    if [ "$ranks" = 0 ]; then "$@"; else "$mpiexec" -n "$ranks" "$@"; fi
}
listed() {
    h5ls -r "$(printf '%s/checkpoints/step-%08d/state.h5' "$dir" $step)" | sed -n 's/ *Dataset / /p' | grep -v '^/meta' | sort
}
cat >"$dir/want" <<END
/data/seen {1000}
/model/embed.weight {700, 2048}
/model/layers.0.o.weight {24, 41}
/model/layers.0.q.weight {37, 24}
/model/norm.weight {24}
/optim/counts {5}
/optim/layers.0.q.weight/m {2, 24}
END
for saved in 0 1 2 3 4; do
    for seed in 0 $((saved * 7 + 1)); do
        step=$((step + 1))
        on $saved "$driver" save "$dir" $step $seed
        listed >"$dir/got"
        cmp "$dir/got" "$dir/want" || { echo "saved by $saved ranks: h5ls lists" >&2; cat "$dir/got" >&2; exit 1; }
        for loaded in 0 1 2 3 4; do
            on $loaded "$driver" load "$dir" $step $((seed * loaded)) ||
                { echo "saved by $saved ranks (seed $seed), loaded by $loaded" >&2; exit 1; }
        done
    done
done
