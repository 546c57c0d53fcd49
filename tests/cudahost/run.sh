#!/usr/bin/env bash
# run.sh COMMAND...: runs a CUDA build without a GPU: libcudahost.so stands in for the CUDA runtime, cuBLASLt and NCCL, and runs the
# kernels on the host. Under mpirun it comes after it: mpirun -n 2 tests/cudahost/run.sh build-cuda/attune train ...
# fake/fake.h lists what the environment can set.
here=$(cd "$(dirname "$0")/../.." && pwd)
library=${CUDAHOST_LIBRARY:-$here/build-cuda/tests/libcudahost.so}
if [[ ! -f $library ]]; then
    echo "run.sh: no $library: cmake --preset cuda && cmake --build build-cuda" >&2
    exit 3
fi
export LD_PRELOAD=$library${LD_PRELOAD:+:$LD_PRELOAD}
exec "$@"
