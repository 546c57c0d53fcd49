#!/usr/bin/env bash
# lint/run.sh JOBS: formatting by .clang-format of all that is in git; clang-tidy by .clang-tidy of the program. (Tests are left
# out of the latter: it takes cmocka's asserts for functions that return.)
set -euo pipefail
cd "$(dirname "$0")/../.."
jobs=${1:-2}

mapfile -t sources < <(git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh')
clang-format-14 --dry-run -Werror "${sources[@]}"
echo "formatting: ${#sources[@]} files"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
tidy() { # BUILD FILES; flags of other compilers that clang does not know are no finding
    run-clang-tidy-14 -quiet -p "$1" -j "$jobs" -extra-arg=-Wno-unknown-warning-option "^$PWD/$2\.c$" >"$log" 2>&1 && return
    grep -E '(warning|error):' -A 4 "$log" || tail -n 40 "$log"
    exit 1
}
cmake --preset cpu >/dev/null
tidy build '(kernels|comm|sharding|runtime|launch)/.*'
if command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    cmake --preset cuda >/dev/null
    tidy build-cuda '(kernels/cuda/[a-z_]+|comm/comm_nccl)'
fi
echo "clang-tidy: no findings"
