# lib.sh ATTUNE MPIEXEC LIBRARY: as tests/train/lib.sh, for a CUDA build; what follows `on_host` runs over libcudahost.so, or, when
# LIBRARY is `none`, on the machine's GPUs.
source "$(dirname "$0")/../../train/lib.sh"
export CUDAHOST_LIBRARY=$3
program=$attune
on_host() { # COMMAND...: with the stand-in preloaded into every rank
    attune=$work/attune-on-host
    "$@"
    attune=$program
}
cat >"$work/attune-on-host" <<END
#!/bin/sh
exec $([[ $3 == none ]] || echo "'$(cd "$(dirname "$0")/.." && pwd)/run.sh'") "$program" "\$@"
END
chmod +x "$work/attune-on-host"
letters() { # a tokenizer: a token for each letter, one for the space, and something to print for each of the other ids below 320
    awk 'BEGIN {
        printf "{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"post_processor\": null, \"pre_tokenizer\": "
        printf "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}, \"decoder\": {\"type\": \"ByteLevel\"}, "
        printf "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {"
        for (i = 0; i < 320; i++) printf "%s\"%s\": %d", i ? ", " : "", i < 26 ? sprintf("%c", 97 + i) : i == 26 ? "Ġ" : "z" i, i
        print "}}}"
    }'
}
