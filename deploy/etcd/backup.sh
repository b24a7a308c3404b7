#!/usr/bin/env bash
# Save a snapshot to the file named, and say what is in it. etcdctl is told of the cluster by its ETCDCTL_* variables.
set -euo pipefail
target=${1:?usage: backup.sh FILE}
etcdctl snapshot save "$target.partial"
etcdutl snapshot status --write-out=table "$target.partial"
mv "$target.partial" "$target"
