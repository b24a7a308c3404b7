#!/usr/bin/env bash
# Make one member's data directory anew from a snapshot. Every member needs the same snapshot, cluster and stamp.
#
#   stamp=$(date +%s)     # once, for all members
#   restore.sh SNAPSHOT DATA_DIR NAME PEER_URL INITIAL_CLUSTER "$stamp"
#
# The revision is raised by ten thousand times the stamp and all before it marked as compacted: revisions are fencing
# tokens, and a cluster that went back would give a token out a second time, also when one snapshot is restored twice.
# See runbooks/restore.md.
set -euo pipefail
[[ $# = 6 && $6 =~ ^[1-9][0-9]{9}$ ]] || { sed -n '2,5p' "$0" >&2; exit 2; }
if [ -e "$2" ]; then
  echo "restore.sh: $2 exists; move it away first, it may be all that is left" >&2
  exit 1
fi
exec etcdutl snapshot restore "$1" --data-dir="$2" --name="$3" --initial-advertise-peer-urls="$4" \
  --initial-cluster="$5" --initial-cluster-token="restored-$6" \
  --bump-revision="$(($6 * 10000))" --mark-compacted
