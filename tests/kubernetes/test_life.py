"""The life of the deployment on three nodes: made, killed, drained, cut off, renewed, restored, under clients.

The tests build on each other in their order: the first makes the cluster as the operators' page says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.kubernetes.deployment import AGENTS, ETCD, MEMBERS, Deployment, is_ready, pod, rest
from tests.kubernetes.lab.places import NODES

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1200)]

TTL = 15  # seconds; the default of a session's lease
STEADY = {f"steady-{node}": (node, "steady", [f"steady-{node}"]) for node in NODES}
TURNS = {f"turns-{node}": (node, "turns", ["turns-a", "turns-b"]) for node in NODES}


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[None]:
    """Each test begins and ends with three ready members."""
    if "first" not in request.node.name:
        deployment.until_healthy()
    yield
    for node in deployment.cluster.nodes.values():
        node.heal()
    for name in NODES:
        deployment.cluster.kubectl("uncordon", name)
    deployment.until_healthy()


def test_a_members_pod_is_killed(deployment: Deployment) -> None:
    leader = deployment.leader()
    with deployment.clients(f"the leader's pod ({leader}) deleted by force", **STEADY, **TURNS) as clients:
        rest(3)
        deployment.kubectl("delete", "pod", leader, "--force", "--grace-period=0")
        deployment.note(f"  ready again after {deployment.until_healthy():.0f} s")
        rest(5)
        assert not any(line["lost"] for name in STEADY for line in clients.told(name) if line["kind"] == "hold")


def test_a_node_is_drained_under_the_budget(deployment: Deployment) -> None:
    cluster = deployment.cluster
    with deployment.clients("a node drained", **STEADY, **TURNS):
        began = time.monotonic()
        drain = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
        mine = "--pod-selector=app.kubernetes.io/name=etcd"
        cluster.kubectl(*drain, mine, "n2")
        deployment.note(f"  drained in {time.monotonic() - began:.0f} s")
        refused = cluster.try_kubectl(*drain[:-1], "--timeout=8s", mine, "n3")
        assert refused.returncode and "disruption budget" in refused.stderr, refused.stderr
        cluster.kubectl("uncordon", "n2")
        cluster.kubectl("uncordon", "n3")
        deployment.note(f"  three members {deployment.until_healthy():.0f} s after uncordon")


def test_a_node_is_cut_off_with_a_holder_on_it(deployment: Deployment) -> None:
    cluster = deployment.cluster
    steady = {"near": ("n1", "steady", ["near"]), "far": ("n3", "steady", ["far"])}
    with deployment.clients("a node cut off for 40 s", **steady, after=("n1", "wait", ["far"])) as clients:
        rest(2)
        cut = time.monotonic()
        cluster.nodes["n3"].cut()
        cluster.until(lambda: clients.has_told("after", "granted"), "the waiter has the lock", 60)
        granted = next(line["at"] for line in clients.told("after") if line["kind"] == "granted")
        rest(max(0.0, cut + 40 - time.monotonic()))
        cluster.nodes["n3"].heal()
        cluster.until(lambda: clients.has_told("far", "hold"), "the holder on the node tells of its loss", 60)
        hold = next(line for line in clients.told("far") if line["kind"] == "hold")
        deployment.note(f"  holder told after {hold['until'] - cut:.1f} s, next granted after {granted - cut:.1f} s")
        assert hold["lost"] and hold["until"] < granted, "two held the lock"
        assert granted - cut < 2 * TTL
        assert not clients.has_told("near", "hold"), "a holder on a healthy node lost its lock"
