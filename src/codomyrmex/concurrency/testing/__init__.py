"""A harness for tests of code that uses the library: processes, a cluster, a faulty network, a checker.

The pytest fixtures are in ``codomyrmex.concurrency.testing.plugin``. The public names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codomyrmex.concurrency.testing.checker import BelievedHold as BelievedHold
    from codomyrmex.concurrency.testing.checker import Change as Change
    from codomyrmex.concurrency.testing.checker import Verdict as Verdict
    from codomyrmex.concurrency.testing.checker import Violation as Violation
    from codomyrmex.concurrency.testing.checker import check_locks as check_locks
    from codomyrmex.concurrency.testing.cluster import Cluster as Cluster
    from codomyrmex.concurrency.testing.cluster import ClusterMember as ClusterMember
    from codomyrmex.concurrency.testing.fleet import Fleet as Fleet
    from codomyrmex.concurrency.testing.fleet import FleetProcess as FleetProcess
    from codomyrmex.concurrency.testing.proxy import TcpProxy as TcpProxy
    from codomyrmex.concurrency.testing.recording import Recording as Recording
    from codomyrmex.concurrency.testing.recording import RecordingLost as RecordingLost

_MODULE = {
    "Change": "checker",
    "Cluster": "cluster",
    "ClusterMember": "cluster",
    "Fleet": "fleet",
    "FleetProcess": "fleet",
    "BelievedHold": "checker",
    "Recording": "recording",
    "RecordingLost": "recording",
    "TcpProxy": "proxy",
    "Verdict": "checker",
    "Violation": "checker",
    "check_locks": "checker",
}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
