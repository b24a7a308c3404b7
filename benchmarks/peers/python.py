"""Locks of other Python packages, each an adapter beside this file; what they need is asked before they run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.servers import missing

PACKAGES = {"aetcd": "aetcd", "python-etcd3": "etcd3.etcdrpc", "kazoo": "kazoo", "redis-py": "redis"}
SERVERS = {"kazoo": "zookeeper", "redis-py": "redis"}


def why_not(peer: str) -> str | None:
    """Why a peer cannot run here, or nothing."""
    package, _, inner = PACKAGES[peer].partition(".")
    spec = find_spec(package)
    if spec is None:
        return f"{peer} is not installed"
    if inner and not any(Path(folder, inner).is_dir() for folder in spec.submodule_search_locations or ()):
        return f"{peer} is not installed; what calls itself {package} here is another package"
    return missing(SERVERS.get(peer, "etcd"))
