#!/usr/bin/env bash
# layers.sh ROOT: the rules of the tree that a compiler does not check. Prints every breach; exit status 1 if there is one.
set -euo pipefail
cd "$1"
breaches=0
breach() {
    echo "$1"
    breaches=$((breaches + 1))
}
mapfile -t sources < <(find kernels comm sharding runtime launch -name '*.c' -o -name '*.h' -o -name '*.def' -o -name '*.cu' -o -name '*.cuh' | sort)

# A foreign library's header is included in one place: HEADER, then the files that may, as a regular expression.
while read -r header allowed; do
    while IFS=: read -r file _; do
        [[ -z $file || $file =~ ^($allowed)$ ]] || breach "$file includes <$header>; only $allowed may"
    done < <(grep -l "#include <$header" "${sources[@]}" || true)
done <<'END'
cuda_            kernels/cuda/[a-z_0-9]+\.(cuh|cu|[ch])|comm/comm_nccl\.c
cublasLt.h      kernels/cuda/[a-z_0-9]+\.[ch]
nccl.h          comm/comm_nccl[a-z_]*\.[ch]
mpi.h           comm/comm_mpi\.h|runtime/io/checkpoint_save\.c
hdf5.h          runtime/io/checkpoint_[a-z_0-9]*\.[ch]
hwloc           comm/topo\.c
oneapi/         kernels/cpu/[a-z_0-9]+\.c
cuda_           kernels/cuda/[a-z_0-9]+\.(c|h|cu|cuh)
cublasLt.h      kernels/cuda/cuda\.h
nccl.h          comm/comm_nccl\.c
yaml.h          runtime/config/recipe_yaml\.c
utf8proc.h      runtime/text/[a-z_]+\.c
pcre2.h         runtime/text/[a-z_]+\.[ch]|runtime/io/peft[a-z_]*\.c|runtime/model/[a-z_]+\.c
xxhash.h        kernels/base\.c|kernels/digest_body\.h
argp.h          launch/cli\.c
jansson.h       runtime/.*
END

# Knowledge points down: launch -> runtime -> sharding -> comm -> kernels.
while read -r folder above; do
    while IFS=: read -r file line _; do
        [[ -z $file ]] || breach "$file:$line: $folder/ includes a header of a layer above it"
    done < <(grep -nE "#include \"($above)" "${sources[@]}" | grep "^$folder/" || true)
done <<'END'
kernels   comm|sharding|runtime|config/|data/|eval/|io/|model/|objective/|optim/|text/|track/|cli
comm      sharding|runtime|config/|data/|eval/|io/|model/|objective/|optim/|text/|track/|cli
sharding  runtime|config/|data/|eval/|io/|model/|objective/|optim/|text/|track/|cli
runtime   cli
launch    config/|data/|eval/|io/|model/|objective/|optim/|text/|track/|session|trainer
END

# Only main ends the process (and the two that cannot go on: assert_fail and out of memory in base.c; a rank's abort in comm).
while IFS=: read -r file line text; do
    [[ -z $file || $file =~ ^(kernels/base|comm/comm[a-z_]*)\.c$ ]] || breach "$file:$line: ends the process: $text"
done < <(grep -nE '(^|[^a-z_])(exit|_exit|abort|quick_exit) ?\(' "${sources[@]}" | grep -vE ':[0-9]+: *//' || true)

# Only dev.cuh knows PTX: what it has, tests/cudahost has too.
while IFS=: read -r file line _; do
    [[ -z $file || $file == kernels/cuda/dev.cuh ]] || breach "$file:$line: inline assembly; it belongs into kernels/cuda/dev.cuh"
done < <(grep -nE '\basm\b' "${sources[@]}" | grep '^kernels/cuda/' || true)

# Sizes: files up to 1000 lines, functions up to 100 (from a signature at column 0 to the brace that closes it).
for file in "${sources[@]}"; do
    lines=$(wc -l <"$file")
    [[ $lines -le 1000 ]] || breach "$file: $lines lines"
done
while read -r long; do breach "$long"; done < <(awk '
    FNR == 1 { start = 0 }
    /^{/ { start = FNR }
    /^}/ { if (start && FNR - start > 100) printf "%s:%d: a function of %d lines\n", FILENAME, start, FNR - start; start = 0 }
' "${sources[@]}")

# Nothing is left for later.
while read -r later; do breach "$later"; done < <(grep -nE '\b(TODO|FIXME|XXX|HACK)\b' "${sources[@]}" || true)

[[ $breaches == 0 ]]
