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
