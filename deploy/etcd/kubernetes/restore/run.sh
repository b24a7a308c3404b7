#!/usr/bin/env bash
# Restore all three members from one snapshot, and wait until every one is restored. etcd must be stopped.
#
#   kubernetes/restore/run.sh snapshot.db
#
# It exits with 0 when all three are restored. At the first failure it prints the log and exits with 1; mend the cause and
# run it again: members that are restored stay so. It deletes only jobs that failed and jobs of an earlier restore.
# RESTORE_WAIT is how many seconds may pass without a step (1800).
set -euo pipefail
[ $# = 1 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
[ -f "$1" ] || { echo "run.sh: $1 is not there" >&2; exit 2; }
folder=$(dirname "$0")
members='etcd-0 etcd-1 etcd-2'

ask() { kubectl -n codomyrmex-etcd "$@"; }
conditions() { ask get "job/restore-$1" --ignore-not-found -o 'jsonpath={.status.conditions[?(@.status=="True")].type}'; }
made() { ask get "$1" --ignore-not-found -o 'jsonpath={.metadata.creationTimestamp}'; }
stop() {
  echo "run.sh: $*" >&2
  echo "run.sh: not every member is restored. Do not start etcd. Mend the cause, and run this command again." >&2
  exit 1
}

stamped=$(made configmap/etcd-restore)
[ -n "$stamped" ] || stop "the ConfigMap etcd-restore is not there: make it first"
for member in $members; do
  job=$(made "job/restore-$member")
  [ -n "$job" ] || continue
  if [[ $job < $stamped || $(conditions "$member") == *Failed* ]]; then ask delete "job/restore-$member"; fi
done

# A new claim gets its volume where its pod runs. So the pods whose volumes exist take their nodes first.
bound='' count=0
for member in $members; do
  phase=$(ask get "pvc/data-$member" -o 'jsonpath={.status.phase}') || stop "make the claim of $member first"
  [ "$phase" != Bound ] || bound="$bound,$member" count=$((count + 1))
done
if [ "$count" = 1 ] || [ "$count" = 2 ]; then
  first="codomyrmex.io/member in (${bound#,})"
  kubectl apply -k "$folder/run" -l "$first"
  SECONDS=0
  until [ "$(ask get pods -l "app.kubernetes.io/name=etcd-restore,$first" -o 'jsonpath={.items[*].spec.nodeName}' |
    wc -w)" -ge "$count" ]; do
    [ "$SECONDS" -lt 120 ] || stop "no node takes the pods of ${bound#,}"
    sleep 1
  done
fi
kubectl apply -k "$folder/run"

sent='' restored='' SECONDS=0
while [ "$restored" != " $members" ]; do
  restored=''
  for member in $members; do
    case $(conditions "$member") in
      *Complete*) restored="$restored $member" ;;
      *Failed*)
        ask logs "job/restore-$member" --all-containers --prefix >&2 || true
        stop "$member failed; its log is above"
        ;;
      *)
        [[ $sent != *$member* ]] || continue
        [[ $(ask logs "job/restore-$member" -c receive 2>/dev/null) == *'waits for the snapshot'* ]] || continue
        ask exec -i "job/restore-$member" -c receive -- python /restore/restore.py receive <"$1" ||
          stop "$member did not take the snapshot"
        sent="$sent $member" SECONDS=0
        ;;
    esac
  done
  if [ "$SECONDS" -gt "${RESTORE_WAIT:-1800}" ]; then
    ask get pods -l app.kubernetes.io/name=etcd-restore -o wide >&2 || true
    stop "nothing happened for ${RESTORE_WAIT:-1800} seconds. A pod that is Pending has no volume or no node:" \
      "kubectl -n codomyrmex-etcd describe pods -l app.kubernetes.io/name=etcd-restore"
  fi
  sleep 1
done
for member in $members; do ask logs "job/restore-$member" -c exchange; done
echo "all three are restored"
