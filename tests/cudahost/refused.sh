#!/usr/bin/env bash
# refused.sh COMPILER OPTION...: atomics on floats do not compile in kernels, because they are deleted; those on integers do.
set -euo pipefail
compiler=("$@")
here=$(dirname "$0")

compile() { # STATEMENTS
    printf '#include "dev.cuh"\n__global__ void k(float *f, double *d, int *i, unsigned long long *u)\n{\n%s\n}\n' "$1" |
        "${compiler[@]}" -x c++ -std=gnu++17 -fsyntax-only -include "$here/exec/shim.h" -I"$here" -I"$here/../../kernels/cuda" - 2>&1
}
compile '(void)f, (void)d; atomicAdd(i, 1); atomicAdd(u, 1ull); atomicMax(i, 3); atomicOr((unsigned *)i, 4u);'
if text=$(compile '(void)i, (void)u; atomicAdd(f, 1.0f); atomicAdd(d, 1.0); atomicMax(f, 1.0f);'); then
    echo "atomics on floats compile"
    exit 1
fi
[[ $(grep -c 'error: use of deleted function' <<<"$text") == 3 ]] || { echo "$text"; exit 1; }
