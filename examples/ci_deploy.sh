#!/bin/sh
# One deploy at a time, whoever starts it. Run it with an etcd around it:
#
#     codomyrmex concurrency dev -- sh examples/ci_deploy.sh [TARGET]
#
# DEPLOY is the command to run, TIMEOUT how long to wait for one's turn.
set -eu

target=${1:-staging}
timeout=${TIMEOUT:-10m}
: "${DEPLOY:=echo deploying under fencing token \$CODOMYRMEX_FENCING_TOKEN}"

code=0
codomyrmex concurrency run --lock "deploy:$target" --timeout "$timeout" -- sh -c "$DEPLOY" || code=$?

case $code in
    0) echo "$target is deployed" ;;
    75) echo "$target is still being deployed by another job; try again later" >&2 ;;
    76) echo "the deploy was ended because its lock was lost; $target may be half deployed" >&2 ;;
    *) echo "the deploy failed with exit code $code" >&2 ;;
esac
exit "$code"
