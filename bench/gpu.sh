#!/usr/bin/env bash
# gpu.sh [OUT.json]: for a machine with a GPU, in less than ten minutes: builds, checks the kernels and the device against the CPU, runs
# them under compute-sanitizer where there is one, trains a tiny model on the CPU and on the GPU, and measures the ops, beside PyTorch's
# where PYTHON (python3) has a PyTorch for the GPU. One JSON in the end; the exit status is 1 when a check failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-gpu.json}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CUDA_LAUNCH_BLOCKING=1 # tests read results when a launch returns
build='build-cuda'
failed=0
rows=()

note() { # GROUP NAME OK SECONDS
    rows+=("{\"group\": \"$1\", \"name\": \"$2\", \"ok\": $3, \"seconds\": $4}")
    [[ $3 == true ]] || failed=1
    printf '%-10s %-32s %s (%s s)\n' "$1" "$2" "$3" "$4"
}
check() { # GROUP NAME COMMAND...
    local group=$1 name=$2 start=$SECONDS ok=true
    shift 2
    timeout 300 "$@" >"$work/log" 2>&1 </dev/null || ok=false
    [[ $ok == true ]] || tail -n 15 "$work/log"
    note "$group" "$name" $ok $((SECONDS - start))
}

if [[ ! -x $build/attune || -n ${REBUILD-} ]]; then
    check build configure cmake --preset cuda
    check build compile cmake --build $build -j "$(nproc)"
fi
check build bench cmake --build $build -j "$(nproc)" --target bench_cuda
[[ $failed == 0 ]] || exit 1

tests=(primitives elementwise activation layernorm optim dora linear border attention head sample)
for name in "${tests[@]}"; do
    [[ -x $build/tests/test_gpu_$name ]] && check device "$name" $build/tests/test_gpu_"$name"
done
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
        check sanitizer "$tool" compute-sanitizer --tool $tool --error-exitcode 1 --kernel-regex-exclude kns=cutlass \
            $build/tests/test_gpu_primitives
        check sanitizer "$tool attention" env KERNEL_MOST_WORK=1e5 compute-sanitizer --tool $tool --error-exitcode 1 \
            $build/tests/test_gpu_attention
    done
fi
unset CUDA_LAUNCH_BLOCKING

mpiexec=$(command -v mpiexec.mpich || command -v mpiexec)
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
check train runs tests/cudahost/fake/test_runs.sh $build/attune "$mpiexec" none
[[ $gpus -gt 1 ]] || export ATTUNE_SHARE_GPUS=1 # NCCL wants a GPU for each rank
check train ranks tests/cudahost/fake/test_ranks.sh $build/attune "$mpiexec" none
unset ATTUNE_SHARE_GPUS

echo null >"$work/bench.json"
read -ra options <<<"${BENCH_OPTIONS-}" # of bench_cuda
if $build/bench_cuda "${options[@]}" >"$work/bench.json.new" 2>"$work/log"; then
    mv "$work/bench.json.new" "$work/bench.json"
else
    tail -n 5 "$work/log"
    failed=1
fi
echo null >"$work/torch.json"
python=${PYTHON:-python3}
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    timeout 120 "$python" bench/peers/torch_ops.py >"$work/torch.json.new" 2>"$work/log" && mv "$work/torch.json.new" "$work/torch.json"
fi
{
    printf '{"commit": "%s", "gpus": %s, "driver": "%s", "ok": %s,\n"checks": [\n' "$(git rev-parse HEAD 2>/dev/null)" "$gpus" \
        "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" "$([[ $failed == 0 ]] && echo true || echo false)"
    (IFS=$'\n'; printf '%s' "${rows[*]}" | sed '$!s/$/,/')
    printf '\n],\n"bench": '
    cat "$work/bench.json"
    printf ',\n"torch": '
    cat "$work/torch.json"
    printf '}\n'
} >"$out"
echo "$out"
exit $failed
