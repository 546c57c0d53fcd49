#!/bin/sh
# run.sh TARGET CORPUS SECONDS: fuzzes on a copy of the corpus; an input that fails is left in ./crashes/ of the build directory.
set -eu
target=$1 corpus=$2 seconds=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -d "$corpus" ]; then cp "$corpus"/* "$work"/; fi
mkdir -p crashes
"$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 -artifact_prefix=crashes/ "$work" >log.$$ 2>&1 || {
    status=$?
    tail -n 60 log.$$
    rm -f log.$$
    exit "$status"
}
grep -E '^stat::(number_of_executed|new_units|peak)|^#[0-9]+.*DONE' log.$$ || true
rm -f log.$$
