"""The folders, names and addresses of the lab."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]  # the project
DEPLOY = ROOT / "deploy" / "etcd"
CONTROL = "10.88.0.1"
NODES = ("n1", "n2", "n3")
SERVICES = "10.96.0.0/16"
DNS = "10.96.0.10"
PODS = "10.244.0.0/16"


def cache() -> Path:
    """The folder that keeps programs and images from one run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBERNETES_LAB_CACHE") or Path(base) / "codomyrmex-kubernetes")


def run() -> Path:
    """The folder of the cluster that runs; it is removed with the cluster."""
    return cache() / "run"


def program(name: str) -> str:
    return str(cache() / "bin" / name)


def namespace(host: str) -> str:
    """The network namespace of a node, or of the control plane (`cp`)."""
    return f"cx-{host}"


def address(node: str) -> str:
    return f"10.88.0.1{node[1:]}"


def inside(host: str) -> tuple[str, ...]:
    """The words before a command that is to run in a host's network namespace."""
    return ("nsenter", f"--net=/run/netns/{namespace(host)}")
