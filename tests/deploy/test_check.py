"""The checks before and after an overlay is applied: from what kubectl tells to lines for the operator."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.deploy

FILE = Path(__file__).resolve().parents[2] / "deploy" / "etcd" / "kubernetes" / "check.py"
OVERLAYS = FILE.parent / "overlays"
Document = dict[str, Any]

_spec = importlib.util.spec_from_file_location("check", FILE)
assert _spec and _spec.loader
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)


@pytest.fixture(scope="module")
def production() -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("not run: the checks of a cluster (kubectl is not installed)")
    return list(check.overlay_documents(str(OVERLAYS / "production")))


@pytest.fixture(scope="module")
def dev() -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("not run: the checks of a cluster (kubectl is not installed)")
    return list(check.overlay_documents(str(OVERLAYS / "dev")))


def made(name: str, **others: Any) -> Document:
    metadata = others.pop("metadata", {})
    return {"metadata": {"name": name, "namespace": "codomyrmex-etcd", **metadata}, **others}


def definition(group: str, kind: str) -> Document:
    return made(f"{kind}.{group}", spec={"group": group, "names": {"kind": kind}})


CERTIFICATES = [definition("cert-manager.io", kind) for kind in ("Certificate", "Issuer")]
PROMETHEUS = [definition("monitoring.coreos.com", kind) for kind in ("PodMonitor", "PrometheusRule")]


def test_kinds_that_the_cluster_does_not_know(production: list[Document], dev: list[Document]) -> None:
    assert not list(check.unknown_kinds(production, CERTIFICATES + PROMETHEUS))
    assert not list(check.unknown_kinds(dev, CERTIFICATES))
    told = list(check.unknown_kinds(production, CERTIFICATES))
    assert len(told) == 2 and all("install the Prometheus operator" in line for line in told)
    assert "install cert-manager" in " ".join(check.unknown_kinds(dev, PROMETHEUS))


def test_the_namespace_must_be_there_with_its_label() -> None:
    labelled = made("x", metadata={"labels": {check.LABEL: "restricted"}})
    assert not list(check.unfit_namespace("x", labelled))
    for namespace in (None, made("x"), made("x", metadata={"labels": {check.LABEL: "baseline"}})):
        [told] = check.unfit_namespace("x", namespace)
        assert told.endswith("kubectl apply -f kubernetes/base/namespace.yaml")


def test_secrets_and_claims_that_are_made_by_hand(production: list[Document], dev: list[Document]) -> None:
    password, claim = made("etcd-root", data={"password": "eA=="}), made("etcd-backups", status={"phase": "Pending"})
    wanted = {volume["configMap"]["name"] for volume in check.volumes(production) if "configMap" in volume}
    configs = [made(name) for name in wanted]
    assert not list(check.missing_by_hand(production, [password], [claim], configs))
    assert not list(check.missing_by_hand(dev, [password], [], configs))
    told = list(check.missing_by_hand(production, [], [], configs))
    assert len(told) == 2 and "create secret generic etcd-root" in told[0] and "backups-claim.yaml" in told[1]
    [told_of_password] = check.missing_by_hand(production, [made("etcd-root", data={})], [claim], configs)
    assert "has no password" in told_of_password
    [lost] = check.missing_by_hand(production, [password], [made("etcd-backups", status={"phase": "Lost"})], configs)
    assert "has lost its volume" in lost


def test_what_is_optional_need_not_be_there(production: list[Document]) -> None:
    named = {volume["configMap"]["name"] for volume in check.volumes(production) if "configMap" in volume}
    assert named == {"operate"}, "the bundles of authorities are made for a rotation alone"


def test_a_default_storage_class_is_needed_until_the_claims_are_there(dev: list[Document]) -> None:
    default = made("x", metadata={"annotations": {check.DEFAULT_CLASS: "true"}})
    assert not list(check.no_storage(dev, [], [made("y"), default]))
    assert "kubectl annotate storageclass" in next(check.no_storage(dev, [], [made("y")]))
    assert not list(check.no_storage(dev, [made(f"data-etcd-{number}") for number in range(3)], []))


def node(name: str, cpu: str = "4", memory: str = "16Gi", **spec: Any) -> Document:
    status = {"allocatable": {"cpu": cpu, "memory": memory}, "conditions": [{"type": "Ready", "status": "True"}]}
    return made(name, spec=spec, status=status)


def pod(name: str, where: str, cpu: str, phase: str = "Running", **metadata: Any) -> Document:
    spec = {"nodeName": where, "containers": [{"resources": {"requests": {"cpu": cpu}}}, {}]}
    return made(name, metadata=metadata, spec=spec, status={"phase": phase})


def test_members_need_room_beside_the_pods_that_run(production: list[Document], dev: list[Document]) -> None:
    three = [node(f"n{number}") for number in range(3)]
    assert not list(check.too_little_room(production, three, []))
    assert not list(check.too_little_room(dev, [node("n1", "300m", "800Mi")], []))
    [told] = check.too_little_room(production, three[:2], [])
    assert told.startswith("3 members ask for 4 CPU and 16 GiB each on a node of its own, and there is room for 2")
    for unfit in (
        node("n2", cpu="3950m"),
        node("n2", memory="16000000Ki"),
        node("n2", unschedulable=True),
        node("n2", taints=[{"effect": "NoSchedule"}]),
        {**node("n2"), "status": {**node("n2")["status"], "conditions": [{"type": "Ready", "status": "Unknown"}]}},
    ):
        assert list(check.too_little_room(production, [*three[:2], unfit], []))
    assert list(check.too_little_room(production, three, [pod("other", "n2", "100m")]))
    assert not list(check.too_little_room(production, three, [pod("other", "n2", "1", phase="Succeeded")]))
    owner = [{"kind": "StatefulSet", "name": "etcd"}]
    assert not list(check.too_little_room(production, three, [pod("etcd-2", "n2", "4", ownerReferences=owner)]))
    assert list(check.too_little_room(dev, [node("n1", "250m")], []))


def test_another_cluster_of_the_same_name_is_told(production: list[Document], dev: list[Document]) -> None:
    [ours], [small] = check.of(production, "StatefulSet"), check.of(dev, "StatefulSet")
    assert not list(check.another_cluster(production, [])) and not list(check.another_cluster(production, [ours]))
    [told] = check.another_cluster(production, [small])
    assert "other values of volumeClaimTemplates" in told and "Apply that one" in told
    foreign = json.loads(json.dumps(ours).replace("cluster-token=codomyrmex-kubernetes", "cluster-token=theirs"))
    [told] = check.another_cluster(production, [foreign])
    assert "belongs to another cluster (theirs): take another namespace" in told


def test_certificates_are_told_with_the_reason(dev: list[Document]) -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    wanted = check.of(dev, "Certificate")
    found = [made(one["metadata"]["name"], status=copy.deepcopy(ready)) for one in wanted]
    secrets = [made(one["spec"]["secretName"]) for one in wanted]
    assert not list(check.unready_certificates(dev, found, secrets))
    assert len(list(check.unready_certificates(dev, [], []))) == len(wanted)
    [told] = check.unready_certificates(dev, found, secrets[1:])
    assert f"the secret {secrets[0]['metadata']['name']} of" in told
    found[0]["status"]["conditions"][0] |= {"status": "False", "reason": "Pending", "message": "issuer not found"}
    found[1]["status"] = {}
    told, other = check.unready_certificates(dev, found, secrets)
    assert "(Pending: issuer not found): kubectl describe" in told and "cert-manager has not seen it" in other


def member(number: int, revision: str = "new", **status: Any) -> Document:
    labels = {"app.kubernetes.io/name": "etcd", "controller-revision-hash": revision}
    return made(f"etcd-{number}", metadata={"labels": labels}, status=status)


def test_pods_are_told_with_the_reason_and_what_to_do(dev: list[Document]) -> None:
    sets = [made("etcd", status={"updateRevision": "new"})]
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pulls = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
    unscheduled = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "3 Insufficient cpu."}]}
    pods = [
        member(0, **ready),
        member(1, "old", phase="Pending", **unscheduled),
        member(2, phase="Pending", containerStatuses=[pulls]),
        member(3, phase="Running", containerStatuses=[{"state": {"running": {}}}]),
        made("other", metadata={"labels": {}}, status={}),
    ]
    assert list(check.unready_pods(dev, pods, sets)) == [
        "the pod etcd-1 is Pending (3 Insufficient cpu.): it has a former template: kubectl delete pod etcd-1 "
        "(runbooks/upgrade.md)",
        "the pod etcd-2 waits in ImagePullBackOff (not found): kubectl describe pod etcd-2, and mend the overlay",
        "the pod etcd-3 is Running and not ready: kubectl describe pod etcd-3, and mend the overlay",
    ]


def event(
    kind: str, name: str, message: str, at: str = "2026-01-01T00:00:00Z", reason: str = "FailedCreate"
) -> Document:
    about = {"kind": kind, "name": name}
    return made("x", involvedObject=about, reason=reason, message=message, lastTimestamp=at)


def test_a_pod_that_is_refused_is_told_with_the_latest_reason(dev: list[Document]) -> None:
    """A quota, or OpenShift's constraints: the set is there, and no pod."""
    running, ended = made("etcd-roles", status={}), {"type": "Complete", "status": "True"}
    events = [
        event("StatefulSet", "etcd", "exceeded quota: later", "2026-01-01T00:02:00Z"),
        event("StatefulSet", "etcd", "exceeded quota: earlier"),
        event("StatefulSet", "etcd", "made it", "2026-01-01T00:03:00Z", reason="SuccessfulCreate"),
        event("Job", "etcd-roles", "unable to validate against any security context constraint"),
        event("StatefulSet", "other", "not ours"),
    ]
    told = list(check.refused_pods(dev, events, [member(0)], [running]))
    assert sorted(line.partition(": mend")[0] for line in told) == [
        "a pod of the Job etcd-roles is refused (unable to validate against any security context constraint)",
        "a pod of the StatefulSet etcd is refused (exceeded quota: later)",
    ]
    members = [member(number) for number in range(3)]
    pods = [*members, made("x", metadata={"labels": {"app.kubernetes.io/name": "etcd-roles"}})]
    assert not list(check.refused_pods(dev, events, pods, [running])), "an event stays for an hour after its cause"
    assert not list(check.refused_pods(dev, events, members, [made("etcd-roles", status={"conditions": [ended]})]))
    assert not list(check.refused_pods(dev, events, members, []))


def test_a_deployments_pods_are_refused_by_its_replica_set() -> None:
    template = {"metadata": {"labels": {"app.kubernetes.io/name": "agents"}}}
    agents = [made("agents", kind="Deployment", spec={"replicas": 3, "template": template})]
    [told] = check.refused_pods(agents, [event("ReplicaSet", "agents-5d8f", "exceeded quota")], [], [])
    assert told.startswith("a pod of the Deployment agents is refused (exceeded quota)")
    assert not list(check.refused_pods(agents, [event("ReplicaSet", "agents-old-5d8f", "exceeded quota")], [], []))


def test_too_little_room_is_a_warning_since_an_autoscaler_may_add_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], production: list[Document]
) -> None:
    found = {
        "namespaces": [made("codomyrmex-etcd", metadata={"labels": {check.LABEL: "restricted"}})],
        "customresourcedefinitions": CERTIFICATES + PROMETHEUS,
        "secrets": [made("etcd-root", data={"password": "eA=="})],
        "persistentvolumeclaims": [made("etcd-backups")],
        "configmaps": [made("operate")],
        "storageclasses": [made("x", metadata={"annotations": {check.DEFAULT_CLASS: "true"}})],
    }
    monkeypatch.setattr(check, "items", lambda kind, namespace="": found.get(kind, []))
    monkeypatch.setattr(check, "overlay_documents", lambda overlay: production)
    monkeypatch.setattr(check, "kubectl", lambda *arguments, **options: "")
    monkeypatch.setattr(sys, "argv", ["check.py", "before", "production"])
    assert check.main() == 0
    warning, well = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: 3 members ask for 4 CPU") and "there is room for 0: add nodes unless" in warning
    assert well == "production can be applied"
    found["secrets"] = []
    assert check.main() == 1
    assert "can be applied" not in capsys.readouterr().out


def test_sets_and_jobs_are_told_until_they_are_done(dev: list[Document]) -> None:
    well = [made("etcd", status={"readyReplicas": 3, "updatedReplicas": 3})]
    assert not list(check.unready_sets(dev, well, []))
    told = list(check.unready_sets(dev, [made("etcd", status={"readyReplicas": 2})], []))
    assert told == ["2 of 3 pods of etcd are ready", "0 of 3 pods of etcd have the new template"]
    assert list(check.unready_sets(dev, [], [])) == ["the StatefulSet etcd is not there: apply the overlay"]

    def job(*conditions: Document) -> list[Document]:
        return [made("etcd-roles", status={"conditions": list(conditions)})]

    assert not list(check.unfinished_jobs(dev, job({"type": "Complete", "status": "True"})))
    assert "is not complete yet" in next(check.unfinished_jobs(dev, job()))
    failed = {"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}
    assert "has failed (BackoffLimitExceeded)" in next(check.unfinished_jobs(dev, job(failed)))
    assert not list(check.unfinished_jobs(dev, [])), "the job goes some time after its end"
    [kept] = [dict(one, spec={**one["spec"]}) for one in check.of(dev, "Job")]
    del kept["spec"]["ttlSecondsAfterFinished"]
    assert "is not there" in next(check.unfinished_jobs([kept], []))


@pytest.mark.parametrize(
    ("text", "number"),
    [("100m", Fraction(1, 10)), ("2", 2), (3, 3), ("16Gi", 16 * 2**30), ("500M", 5e8), ("128Ki", 131072)],
)
def test_quantities(text: str | int, number: float) -> None:
    assert check.quantity(text) == number


def test_a_cluster_that_does_not_answer_is_no_verdict(tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("not run: the checks of a cluster (kubectl is not installed)")
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": ""}}],
            }
        )
    )  # fmt: skip
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "KUBECONFIG": str(nowhere)}
    for command in ("before", "after"):
        done = subprocess.run(
            (sys.executable, str(FILE), command, str(OVERLAYS / "dev")),
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("check.py: "), done.stdout
