"""A real API server with the real CRDs takes every manifest without a warning, twice."""

from __future__ import annotations

import json

import pytest

from tests.kubernetes.lab.cluster import Cluster
from tests.kubernetes.lab.places import DEPLOY

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

KUBERNETES = DEPLOY / "kubernetes"
NAMESPACE = "codomyrmex-etcd"


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/production", "agents"])
def test_the_api_server_takes_an_overlay_twice_without_a_warning(api: Cluster, overlay: str) -> None:
    api.kubectl("delete", "statefulset", "etcd", "-n", NAMESPACE, "--ignore-not-found")  # dev is no step to production
    api.kubectl("apply", "-f", str(KUBERNETES / "base" / "namespace.yaml"))
    generations = []
    for time in ("first", "second"):
        done = api.try_kubectl("apply", "-k", str(KUBERNETES / overlay))
        assert done.returncode == 0 and done.stderr == "", f"the {time} time: {done.stderr}"
        assert "statefulset.apps/etcd" in done.stdout or overlay == "agents"
        generations.append(_generations(api, overlay))
    assert generations[0] == generations[1] and len(generations[0]) > 5


def _generations(api: Cluster, overlay: str) -> dict[str, object]:
    """The generation of every object of an overlay; a second apply must leave them as they are."""
    listed = json.loads(api.kubectl("get", "-k", str(KUBERNETES / overlay), "-o", "json"))["items"]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"].get("generation") for one in listed}


def test_what_the_namespace_forbids_is_refused(api: Cluster) -> None:
    api.kubectl("apply", "-f", str(KUBERNETES / "base" / "namespace.yaml"))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "one", "image": "one", "securityContext": {"privileged": True}}]},
    }
    done = api.try_kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    assert done.returncode and "forbidden" in done.stderr
