#!/usr/bin/env bash
# A checkpoint's file is what README.md says: every dataset is one of its table's, and every row of the table is met.
source "$(dirname "$0")/lib.sh"
rows 12 "$work/rows.jsonl"
cat >"$work/recipe.yaml" <<END
model: $golden/llama
precision: f32
data: {train: $work/rows.jsonl}
train: {steps: 2, batch: 4, micro_tokens: 64}
checkpoint: {every: 0}
END
# "/optim/NAME/m" -> "^/optim/[^/]+/m$"
sed -n '/^## Checkpoints/,/^## /{/^| `\//p}' README.md | cut -d '|' -f 2 | grep -o '`[^`]*`' | tr -d '`' | sed 's|NAME|[^/]+|; s|.*|^&$|' >"$work/documented"
[[ $(wc -l <"$work/documented") == 5 ]] || complain "README.md names $(wc -l <"$work/documented") kinds of datasets"

declare -A met=()
for method in lora full; do
    train 0 2 "$work/$method" method=$method parallel.tensor=2
    state=$work/$method/checkpoints/step-00000002/state.h5
    h5ls -r "$state" | awk '$2 == "Dataset" { print $1 }' >"$work/datasets"
    [[ -s $work/datasets ]] || complain "h5ls lists nothing"
    while read -r name; do
        found=
        while read -r pattern; do [[ $name =~ $pattern ]] && found=$pattern && met[$pattern]=1; done <"$work/documented"
        [[ -n $found ]] || complain "$name is not in README.md"
    done <"$work/datasets"
    h5dump -A "$state" >"$work/attributes"
    for attribute in '"format"' '"format_version"' '"step"' '"complete"'; do
        grep -q "ATTRIBUTE $attribute" "$work/attributes" || complain "there is no attribute $attribute"
    done
    [[ $(grep -c ATTRIBUTE "$work/attributes") == 4 ]] || complain "attributes that README.md does not name"
    h5dump -a /complete "$state" | grep -q '(0): 1' || complain "complete is not 1"
done
while read -r pattern; do [[ ${met[$pattern]:-} == 1 ]] || complain "README.md names $pattern, which was not met"; done <"$work/documented"

# global shapes and plain storage; the numbers are those of the results
name=model.layers.0.self_attn.q_proj.lora_A.weight
h5dump -p -H -d "/adapter/$name" "$work/lora/checkpoints/step-00000002/state.h5" >"$work/log"
says 'H5T_IEEE_F32LE'
says 'SIMPLE . . 16, 64 .'
says 'CONTIGUOUS'
says 'FILTERS .[[:space:]]*NONE'
h5dump -b LE -o "$work/bytes" -d "/model/model.norm.weight" "$work/full/checkpoints/step-00000002/state.h5" >/dev/null
[[ $(wc -c <"$work/bytes") == 256 ]] || complain "model.norm.weight has $(wc -c <"$work/bytes") bytes"
hex() { od -An -v -tx1 "$1" | tr -d ' \n'; }
hex "$work/full/model/model.safetensors" | grep -q "$(hex "$work/bytes")" || complain "h5dump's numbers are not those of model/"
finish
