#!/usr/bin/env bash
# test_configure.sh: what is needed for CUDA and is not there ends the configuration with one message that names it.
set -uo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
without() { # WHAT OPTIONS...
    local what=$1 code=0
    shift
    rm -rf "$work/build"
    cmake -S . -B "$work/build" -G Ninja -DATTUNE_CUDA=ON "$@" >"$work/log" 2>&1 </dev/null || code=$?
    if [[ $code == 0 || $(grep -c 'CMake Error' "$work/log") != 1 ]] || ! tr -s ' \n' ' ' <"$work/log" | grep -q "$what"; then
        printf 'FAILED: exit code %d with %s\n' "$code" "$*"
        grep -A 6 'CMake Error' "$work/log"
        failures=$((failures + 1))
    fi
}
without 'No MPI: ranks are connected by it, .* launch/install.sh' -DMPI_C_COMPILER=/nonexistent
without 'no nvcc. Install the CUDA toolkit' -DNVCC=
without 'no NCCL (nccl.h, libnccl.so)' -DNCCL_INCLUDE_DIR=/nonexistent -DNCCL_LIBRARY=/nonexistent
[[ $failures == 0 ]] && echo "all passed"
exit $((failures > 0))
