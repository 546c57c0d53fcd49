#!/usr/bin/env bash
# What `attune plan` says is what runs do: bytes handed to collectives, checkpoints, results; a model that is only a configuration,
# by a calculation of its own.
source "$(dirname "$0")/lib.sh"
rows 23 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
data: {train: $work/rows.jsonl}
precision: f32
train: {steps: 5, batch: 7, micro_tokens: 64}
lora: {rank: 4, alpha: 8, dropout: 0.1}
checkpoint: {every: 0}
END
# plan EXIT RANKS ARGUMENTS...: to $work/plan, a number a line: KEY VALUE; classes and groups come as CLASS and GROUP.KEY
plan() {
    local want=$1 ranks=$2 got=0
    shift 2
    "$attune" plan "$@" --ranks "$ranks" --json >"$work/plan.json" 2>"$work/log" </dev/null || got=$?
    [[ $got == "$want" ]] || complain "exit code $got, not $want: plan for $ranks ranks: $*"
    awk '/": \{$/ { gsub(/[ ":{]/, ""); group = $0 == "bytes" || $0 == "comm" ? "" : $0 "." }
        /": [0-9.]/ { sub(/^ *"/, ""); key = $0; sub(/".*/, "", key); gsub(/ /, "_", key); sub(/.*: /, ""); sub(/,/, "")
                      print group key, $0 }
        /}/ { group = "" }' "$work/plan.json" >"$work/plan"
}
planned() { awk -v key="$1" '$1 == key { print $2; n++ } END { if (n != 1) print "none" }' "$work/plan"; }
# about PLANNED WANTED SHARE WHAT
about() {
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a ~ /^[0-9]/ && b > 0 && d <= t * b) }' ||
        complain "$4: planned $1, is $2"
}

# ---- layouts: plan and run --------------------------------------------------------------------------------------------------
# layout RANKS RESULT OVERRIDES...
layout() {
    local ranks=$1 result=$2 out=$work/run
    shift 2
    rm -rf "$out"
    train 0 "$ranks" "$out" "$@"
    plan 0 "$ranks" "$work/recipe.yaml" "output=$out" "$@"
    values comm_bytes "$out/metrics.jsonl" | awk '{ s += $1 } END { printf "%.0f", s / NR }' >"$work/want"
    planned comm_bytes_per_step | tr -d '\n' >"$work/got"
    same "$work/got" "$work/want" "$ranks ranks, $*: comm_bytes of plan and run: $(cat "$work/got" "$work/want" | tr '\n' ' ')"
    [[ $(cat "$work/want") -gt 100 ]] || complain "$*: nothing is exchanged"
    about "$(planned checkpoint_bytes)" "$(cat "$out"/checkpoints/*/* | wc -c)" 0.02 "$*: checkpoint"
    about "$(planned result_bytes)" "$(wc -c <"$out/$result")" 0 "$*: result"
}
adapter=adapter/adapter_model.safetensors model=model/model.safetensors
for zero in 0 1 2 3; do
    layout 2 $adapter "model=$golden/llama" parallel.zero=$zero
    layout 4 $model "model=$golden/llama" method=full parallel.tensor=2 parallel.zero=$zero
    layout 4 $adapter "model=$golden/llama3" parallel.tensor=2 parallel.zero=$zero deterministic=false # a shared key/value head
done
layout 4 $model "model=$golden/llama3" method=full parallel.tensor=4
layout 3 $adapter "model=$golden/llama_untied" parallel.tensor=3 lora.variant=dora # heads that do not divide
layout 2 $model "model=$golden/llama_untied" method=freeze 'freeze.train=[layers.1.mlp, norm, embed]' parallel.zero=2 train.recompute=true
layout 4 $model "model=$golden/llama_untied" method=full parallel.tensor=2 parallel.sequence=true parallel.zero=3 precision=bf16
train 0 0 "$work/alone" "model=$golden/llama"
[[ $(values comm_bytes "$work/alone/metrics.jsonl" | sort -u) == 0 ]] || complain "one rank exchanges something"
[[ $(values wait_ms "$work/run/metrics.jsonl" | awk '$1 > 0' | wc -l) == 5 ]] || complain "nobody waits"

# every class adds up, times are told when rates are
plan 0 4 "$work/recipe.yaml" "model=$golden/llama" parallel.tensor=2 parallel.zero=3 --disk-mbps 100 --net-gbps 1
sum=$(sed -n '/"bytes": {/,/}/s/.*: //p' "$work/plan.json" | awk '{ s += $1 } END { printf "%.0f", s }')
about "$(planned bytes_per_rank)" "$sum" 0 "sum of the classes"
about "$(planned checkpoint_s)" "$(awk -v b="$(planned checkpoint_bytes)" 'BEGIN { print b / 1e8 }')" 1e-4 "time of a checkpoint"
about "$(planned total.seconds)" "$(awk -v b="$(planned total.wire_bytes)" 'BEGIN { print b * 8 / 1e9 }')" 1e-4 "time of exchanges"
run 0 0 plan "$work/recipe.yaml" "model=$golden/llama" --ranks 4 parallel.tensor=2
says 'memory of rank [0-3], the largest of 4 \(data 2 x tensor 2.*tensor \(2 ranks\).*data \(2 ranks\).*world \(4 ranks\)'

# ---- a model on paper: Llama-3-70B on 64 ranks --------------------------------------------------------------------------------
mkdir "$work/llama70"
cat >"$work/llama70/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
 "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 28672, "vocab_size": 128256,
 "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false, "hidden_act": "silu"}
END
awk 'BEGIN { for (i = 0; i < 64; i++) { printf "{\"tokens\": [1"; for (k = 1; k < 2048; k++) printf ", %d", (i * 2048 + k * 7919) % 128256; print "]}" } }' \
    >"$work/long.jsonl"
cat >"$work/paper.yaml" <<END
model: $work/llama70
method: full
output: $work/paper
precision: bf16
data: {train: $work/long.jsonl, max_tokens: 8192}
train: {epochs: 1, batch: 64, micro_tokens: 8192}
lora: {rank: 32}
parallel: {tensor: 8, zero: 3}
END
plan 0 64 "$work/paper.yaml"
awk 'BEGIN {
    L = 80; C = 8192; F = 28672; V = 128256; Q = 64 * 128; KV = 8 * 128; T = 8192; TP = 8; DP = 8
    matrices = 2 * C * Q + 2 * C * KV + 3 * C * F               # of a layer
    vectors = (2 * L + 1) * C
    print "parameters", L * matrices + 2 * V * C + vectors
    Vr = 251 * 64                                               # rows of the vocabulary: 2004 blocks of 64 over 8 ranks
    layer = matrices / TP; ends = 2 * Vr * C; own = L * layer + ends
    print "weights", 2 * ends + 4 * vectors + 2 * T * 64 * 4    # head and embedding in bf16, norms, rotary tables
    print "f32_masters", 4 * own / DP
    print "AdamW_moments", 8 * (own + vectors) / DP
    print "gradients", 8 * (own + vectors) / DP + 2 * 8 * layer + 8 * vectors + 4 * Vr * C / DP # sums, work buffers, one as f32
    print "ZeRO_buffers", 2 * 2 * 2 * layer + 2 * layer         # two slots of rows and packed, one unit
    kept = 2 * C + 2 * Q / TP + 2 * KV / TP + 2 * F / TP        # of a token and layer: x, x_mid, q, o, kv, gate and up
    scratch = 4 * C + 2 * F / TP + 2 * Q / TP + 2 * KV / TP + 3 * C # h, dx, dh, x_out; a, da; dq, dout; dkv; head
    print "activations", 2 * T * (L * kept + scratch) + 4 * T * L * (2 + 64 / TP) + 4 * Vr * C * 2 # and two of the vocabulary in f32
    M = T - 4; rounds = 2                                       # four rows of 2048 in a micro-batch, 16 of these for 8 ranks
    print "tensor.bytes", rounds * (2 * T * C * (1 + 4 * L) + 2 * M * C + 12 * M)
    gathers = 2 * rounds * L - 2 * (2 * rounds - 1)             # a layer each, but for the two that are still there
    print "data.bytes", gathers * 2 * layer / DP + rounds * 8 * (own + vectors) + (2 * ends + 4 * vectors) / DP
    print "checkpoint_bytes", 12 * (L * matrices + 2 * V * C + vectors)
    print "result_bytes", 2 * (L * matrices + 2 * V * C + vectors)
}' | sed 's/e+.*/&/' >"$work/want"
while read -r key value; do about "$(planned "$key")" "$value" 0.005 "70 B, $key"; done < <(
    awk '{ printf "%s %.0f\n", $1, $2 }' "$work/want")
about "$(planned parameters)" 70553706496 0 "70 B, parameters"
plan 0 64 "$work/paper.yaml" method=lora
about "$(planned trained_parameters)" $((80 * 32 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)))) 0 "70 B, adapters"
# embedding and head, a part of every layer, adapters cut with their layers, all in bf16; norms and rotary tables
awk 'BEGIN { adapters = 80 * 32 * (7 * 8192 + (2 * 8192 + 2 * 1024 + 3 * 28672) / 8)
    printf "%.0f\n", 2 * (80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) / 64 + 2 * 16064 * 8192 + adapters) + 4 * 161 * 8192 + 8192 * 64 * 8 }' \
    >"$work/want"
about "$(planned weights)" "$(cat "$work/want")" 0.005 "70 B, frozen weights in parts"
train 2 0 "$work/never" "model=$work/llama70"
says 'attune: error: .*llama70: no model.safetensors'
run 2 0 inspect "$work/llama70"

# ---- layouts that cannot be ------------------------------------------------------------------------------------------------------
bad() { # PATTERN RANKS OVERRIDES...
    local pattern=$1 ranks=$2
    shift 2
    plan 2 "$ranks" "$work/paper.yaml" "$@"
    says "attune: error: $pattern"
}
bad 'parallel.tensor: 64 ranks cannot be divided into groups of 3' 64 parallel.tensor=3
bad 'parallel.tensor: 128 tensor ranks for 64 query heads' 128 parallel.tensor=128
bad '.*no/model: no such file' 8 "model=$work/no/model"
bad '.*long.jsonl:1: token 1 is 7919, the model has ids 0 to 319' 8 "model=$golden/llama"
bad '.*' 8 "data.valid=$work/long.jsonl" 'eval.metrics=[rouge]' # there is no text to compare with
finish
