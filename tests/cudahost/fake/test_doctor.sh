#!/usr/bin/env bash
# What a CUDA build says of GPUs: with one, with none, with too few, without memory.
source "$(dirname "$0")/lib.sh"
on_host run 0 1 doctor
says 'host stand-in, 4 GiB, compute capability 9.0'
CUDAHOST_DEVICES=0 on_host run 0 0 doctor
says 'no CUDA-capable device'
if ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    run 0 0 doctor
    says 'device cuda: CUDA driver version is insufficient'
fi

rows 8 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 1, batch: 4, micro_tokens: 64}
lora: {rank: 4}
checkpoint: {every: 0}
END
CUDAHOST_DEVICES=0 on_host train 3 0 "$work/none" device=cuda
says 'attune: error: cuda: no CUDA-capable device'
says 'hint: '
CUDAHOST_DEVICES=0 on_host train 0 0 "$work/auto" # takes the CPU
CUDAHOST_DEVICES=1 on_host train 2 2 "$work/shared" device=cuda
says 'ranks 0 and 1 have the same GPU'
CUDAHOST_MEMORY=41 on_host train 1 0 "$work/small" device=cuda
says 'cuda: .* memory: .* GiB asked'
says 'hint: .*micro_tokens'

if [[ $3 != none ]]; then # what the stand-in lacks would be asked of the real libraries
    names() { nm -D "$1" "$2" | sed 's/@.*//' | grep -Eo '(__)?(cuda|cublas|nccl)[A-Za-z_0-9]+' | sort -u; }
    lacking=$(comm -23 <(names --undefined-only "$attune") <(names --defined-only "$3"))
    [[ -z $lacking ]] || complain "the stand-in has no $lacking"
    [[ -n $(names --undefined-only "$attune") ]] || complain "the program is not linked with CUDA's shared libraries"
fi
finish
