"""By hand: `python -m tests.kubernetes.lab` runs a cluster until it is interrupted; `... kubectl ARGS` speaks to it."""

from __future__ import annotations

import os
import signal
import sys

from tests.kubernetes.lab import cluster
from tests.kubernetes.lab.places import program

_ENDS = {signal.SIGINT, signal.SIGTERM}

if sys.argv[1:2] == ["kubectl"]:
    known = cluster.Cluster()
    command = (*known.prefix, program("kubectl"), *sys.argv[2:])
    os.execvpe(command[0], command, known.environment)
if reason := cluster.missing(whole=True):
    raise SystemExit(f"no cluster can run here: {reason}")
with cluster.running():
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    print("the cluster runs; end it with Ctrl+C", flush=True)
    signal.sigwait(_ENDS)
