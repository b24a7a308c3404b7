#!/usr/bin/env bash
# Run etcdctl as the operator in a pod of its own, print what it prints, and exit with its code.
#
#   tools/etcdctl.sh member list
#   tools/etcdctl.sh --endpoints=https://etcd-1.etcd-peers.codomyrmex-etcd.svc:2379 defrag
#
# Without --endpoints it asks the service `etcd`, which holds the members that are ready. It waits as long as the pod runs,
# since a member goes on with a command whose client is gone. The pod ends after an hour, and etcdctl after its own
# --command-timeout. ETCDCTL_WAIT is how many seconds the pod may take to start (120).
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
namespace=codomyrmex-etcd
endpoints='"--endpoints=https://etcd.codomyrmex-etcd.svc:2379"'
given=
for argument in "$@"; do
  case $argument in --endpoints | --endpoints=*) endpoints= ;; esac
  argument=${argument//\\/\\\\}
  given=$given,\"${argument//\"/\\\"}\"
done
[ -n "$endpoints" ] || given=${given#,}
manifest=$(<"$(dirname "$0")/etcdctl.yaml")
pod=$(kubectl create -o name -f - <<<"${manifest%%ARGUMENTS*}$endpoints$given${manifest#*ARGUMENTS}")
trap 'kubectl -n "$namespace" delete "$pod" --wait=false >/dev/null' EXIT
waited=0
while ((waited < ${ETCDCTL_WAIT:-120})); do
  phase=$(kubectl -n "$namespace" get "$pod" -o 'jsonpath={.status.phase}') || phase=unknown
  case $phase in
    Succeeded | Failed)
      kubectl -n "$namespace" logs "$pod"
      code=$(kubectl -n "$namespace" get "$pod" -o 'jsonpath={.status.containerStatuses[0].state.terminated.exitCode}')
      exit "${code:-1}"
      ;;
    Running) waited=0 ;;
    *) ((waited += 1)) ;;
  esac
  sleep 1
done
echo "etcdctl.sh: $pod is still $phase; the events say why:" >&2
kubectl -n "$namespace" get events --field-selector "involvedObject.name=${pod#pod/}" >&2
exit 1
