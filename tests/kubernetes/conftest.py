"""One cluster for all tests of this folder that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.deployment import Deployment
from tests.kubernetes.lab import cluster
from tests.kubernetes.lab.cluster import Cluster


@pytest.fixture(scope="module")  # it ends before the whole cluster starts: one at a time uses the cache folder
def api() -> Iterator[Cluster]:
    """An API server with the CRDs of cert-manager and the Prometheus operator, and no node."""
    if reason := cluster.missing(whole=False):
        pytest.skip(f"not run: the API server ({reason})")
    with cluster.running(whole=False) as started:
        yield started


@pytest.fixture(scope="session")
def lab() -> Iterator[Cluster]:
    """A whole cluster of three nodes."""
    if reason := cluster.missing(whole=True):
        pytest.skip(f"not run: Kubernetes ({reason})")
    with cluster.running() as started:
        yield started


_noted: list[str] = []


@pytest.fixture(scope="session")
def deployment(lab: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The deployment's folder, for this cluster. Nothing of it has been applied yet."""
    made = Deployment(lab, tmp_path_factory.mktemp("deploy"))
    made.phases = _noted
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the cluster's life below the tests."""
    if _noted:
        terminalreporter.section("the deployment's life")
        for text in _noted:
            terminalreporter.line(text)
