#!/usr/bin/env bash
# lint/run.sh JOBS: formatting by .clang-format of all that is in git; clang-tidy by .clang-tidy of the program. (Tests are left
# out of the latter: it takes cmocka's asserts for functions that return.)
set -euo pipefail
cd "$(dirname "$0")/../.."
jobs=${1:-2}

mapfile -t sources < <(git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh')
clang-format-14 --dry-run -Werror "${sources[@]}"
echo "formatting: ${#sources[@]} files"

cmake --preset cpu >/dev/null
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Flags of gcc that clang does not know are no finding.
if ! run-clang-tidy-14 -quiet -p build -j "$jobs" -extra-arg=-Wno-unknown-warning-option \
    "^$PWD/(kernels|comm|sharding|runtime|launch)/.*\.c$" >"$log" 2>&1; then
    grep -E '(warning|error):' -A 4 "$log" || tail -n 40 "$log"
    exit 1
fi
echo "clang-tidy: no findings"
