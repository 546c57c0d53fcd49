#!/usr/bin/env bash
# run.sh [CTEST OPTION...]: installs what is missing, builds with warnings as errors, runs every test; the last lines are ctest's.
# ATTUNE_STAGE=asan  the same under AddressSanitizer and UndefinedBehaviorSanitizer
# ATTUNE_STAGE=cuda  the CUDA device: builds with nvcc, runs the program over a stand-in for the GPU (needs the CUDA toolkit and NCCL)
# ATTUNE_STAGE=fuzz  every fuzz target for some seconds on its corpus
# ATTUNE_STAGE=lint  formatting and clang-tidy
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${ATTUNE_STAGE:-cpu}
jobs=$(nproc)

build() { # PRESET
    cmake --preset "$1" >/dev/null
    cmake --build --preset "$1" -j "$jobs" -- --quiet
}

launch/install.sh --test
case $stage in
cpu | asan)
    build "$stage"
    dir=build
    [[ $stage == cpu ]] || dir=build-$stage
    exec ctest --test-dir "$dir" --output-on-failure -j "$jobs" --no-tests=error "$@"
    ;;
cuda)
    build cuda
    exec ctest --test-dir build-cuda --output-on-failure -j "$jobs" -L cuda --no-tests=error "$@"
    ;;
fuzz)
    build fuzz
    exec ctest --test-dir build-fuzz --output-on-failure -j "$jobs" -L fuzz --no-tests=error "$@"
    ;;
lint) exec tests/lint/run.sh "$jobs" ;;
*)
    printf 'attune: error: ATTUNE_STAGE: there is no stage %s\n  hint: cpu (default), asan, cuda, fuzz, lint\n' "$stage" >&2
    exit 2
    ;;
esac
