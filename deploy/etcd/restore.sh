#!/usr/bin/env bash
# Make one member's data directory anew from a snapshot. Every member needs the same snapshot and the same cluster.
#
#   restore.sh SNAPSHOT DATA_DIR NAME PEER_URL INITIAL_CLUSTER
#
# The revision is raised by a thousand million and all before it marked as compacted: revisions are fencing tokens, and a
# cluster that went back would give a token out a second time. See runbooks/restore.md.
set -euo pipefail
[ $# = 5 ] || { sed -n '2,4p' "$0"; exit 2; }
if [ -e "$2" ]; then
  echo "restore.sh: $2 exists; move it away first, it may be all that is left" >&2
  exit 1
fi
exec etcdutl snapshot restore "$1" --data-dir="$2" --name="$3" --initial-advertise-peer-urls="$4" \
  --initial-cluster="$5" --initial-cluster-token="restored-$(date -u +%Y%m%dT%H%M%S)" \
  --bump-revision=1000000000 --mark-compacted
