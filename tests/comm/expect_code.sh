#!/bin/sh
# expect_code.sh CODE COMMAND...: succeeds when the command ends with this exit code.
want=$1
shift
"$@"
got=$?
[ "$got" = "$want" ] || { echo "exit code $got, expected $want: $*" >&2; exit 1; }
