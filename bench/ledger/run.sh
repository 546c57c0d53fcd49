#!/usr/bin/env bash
# run.sh BUILD [--write]: the ledger of the CUDA kernels: tables to stdout, breaches of its gates to stderr, exit status 1 if there is one.
#   BUILD    a build directory with the executor (cmake --preset cpu)
#   --write  also to bench/results/ledger.md
# With nvcc (in PATH, $CUDA_HOME or /usr/local/cuda) registers and spills are in it; logs are kept in BUILD/ledger while sources
# do not change. NVCC_FLAGS: as the program is built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
write=${2:-}
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
logs=$build/ledger
mkdir -p "$logs"

ptxas() { # SOURCE: its log, made when it is older than the source or any header
    local log=$logs/$(basename "$1" .cu).log
    if [[ -f $log && -z $(find "$1" "$root"/kernels/*.h "$root"/kernels/*.def "$root"/kernels/cuda/*.{h,cuh} -newer "$log") ]]; then return; fi
    nvcc -std=c++17 -O3 ${NVCC_FLAGS:-} -I"$root/kernels" -I"$root/kernels/cuda" -gencode arch=compute_80,code=sm_80 \
        -gencode arch=compute_90,code=sm_90 -Xptxas -v -c "$1" -o /dev/null >"$log.new" 2>&1 || { cat "$log.new" >&2; exit 1; }
    mv "$log.new" "$log"
}
export root logs
export -f ptxas
if command -v nvcc >/dev/null; then
    mapfile -t sources < <(find "$root/kernels/cuda" -name '*.cu' | sort)
    printf '%s\0' "${sources[@]}" | xargs -0 -P "$(nproc)" -I{} bash -c 'ptxas {}'
    made=()
    for source in "${sources[@]}"; do made+=("$logs/$(basename "$source" .cu).log"); done
else
    echo "no nvcc: no registers" >&2
    made=()
fi
status=0
"$build/tests/ledger" "${made[@]}" >"$logs/ledger.md" || status=$?
cat "$logs/ledger.md"
if [[ $write == --write ]]; then
    {
        printf '# Ledger of the CUDA kernels\n\nMade by `bench/ledger/run.sh BUILD --write`; what the columns mean: `bench/ledger/ledger.c`.\n\n'
        cat "$logs/ledger.md"
    } >"$root/bench/results/ledger.md"
fi
exit "$status"
