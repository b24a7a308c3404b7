#!/usr/bin/env bash
# Save a snapshot to the file named, and say what is in it. etcdctl is told of the cluster by its ETCDCTL_* variables.
set -euo pipefail
target=${1:?usage: backup.sh FILE}
umask 077 # a snapshot holds all data and the hashes of passwords
rm -f "$target.partial" "$target.partial.part" # of a run that was killed
etcdctl snapshot save "$target.partial"
etcdutl snapshot status --write-out=table "$target.partial"
sync "$target.partial"
mv "$target.partial" "$target"
