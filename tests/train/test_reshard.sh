#!/usr/bin/env bash
# A checkpoint saved by any layout is resumed by any other, all pairs: the run goes on as the uninterrupted one would have. With the
# same tensor size bit for bit, whatever the data ranks and ZeRO stages of either; with another within rounding.
source "$(dirname "$0")/lib.sh"
rows 29 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 8, batch: 4, lr: 3.0e-3, micro_tokens: 64, weight_decay: 0.1}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 4, keep: 0}
END

# layout T.D.Z: ranks and overrides of tensor size T, data ranks D, stage Z
ranks_of() { local t d z && IFS=. read -r t d z <<<"$1" && echo $((t * d)); }
flags_of() { local t d z && IFS=. read -r t d z <<<"$1" && echo "parallel.tensor=$t parallel.zero=$z"; }

near_losses() { # RUN WANT NAME
    values loss "$1/metrics.jsonl" >"$work/got"
    values loss "$2/metrics.jsonl" >"$work/want"
    near "$work/got" "$work/want" 1e-5 "$3: losses"
    [[ $(wc -l <"$work/got") == 8 ]] || complain "$3: not 8 steps"
}

# matrix METHOD RESULT LAYOUTS...
matrix() {
    local method=$1 result=$2 from to
    shift 2
    for from in "$@"; do
        # shellcheck disable=SC2046 # flags are words
        train 0 "$(ranks_of "$from")" "$work/$method-$from" "method=$method" $(flags_of "$from")
        near_losses "$work/$method-$from" "$work/$method-$1" "$method $from"
    done
    for from in "$@"; do
        for to in "$@"; do
            local run=$work/$method-$from-to-$to name="$method saved at $from, resumed at $to"
            cp -r "$work/$method-$from" "$run"
            rm -rf "$run/checkpoints/step-00000008" "${run:?}/${result%%/*}"
            # shellcheck disable=SC2046
            train 0 "$(ranks_of "$to")" "$run" "method=$method" $(flags_of "$to") --resume
            says 'after step 4'
            near_losses "$run" "$work/$method-$1" "$name"
            [[ ${from%%.*} == "${to%%.*}" ]] && same "$run/$result" "$work/$method-$from/$result" "$name"
            rm -r "$run"
        done
    done
}
full=(1.1.0 1.2.0 1.2.3 2.1.0 2.2.2 3.1.0 4.1.0) lora=(1.1.0 1.3.1 2.1.0 4.1.0)
[[ ${FEW_LAYOUTS:-} ]] && full=(1.1.0 1.2.0 1.2.3 4.1.0) lora=(1.1.0 2.1.0) # for programs that run slowly
matrix full model/model.safetensors "${full[@]}"
matrix lora adapter/adapter_model.safetensors "${lora[@]}"

# the files themselves: the same tensors whoever wrote them
h5() { h5dump -d "/model/model.layers.1.self_attn.k_proj.weight" "$1/checkpoints/step-00000004/state.h5" | tail -n +2; }
if command -v h5dump >/dev/null; then
    h5 "$work/full-1.1.0" >"$work/want"
    for layout in 1.2.0 1.2.3; do
        h5 "$work/full-$layout" >"$work/got"
        same "$work/got" "$work/want" "k_proj in the checkpoint of $layout"
    done
fi
finish
