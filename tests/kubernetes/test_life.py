"""The life of the deployment on three nodes: made, killed, drained, cut off, renewed, restored, under clients.

The tests build on each other in their order: the first makes the cluster as the operators' page says. They run every
command of that page and of the runbooks, which the last test makes sure of.
"""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.deployment import AGENTS, ETCD, Deployment, pod, rest
from tests.kubernetes.lab import programs
from tests.kubernetes.lab.images import named
from tests.kubernetes.lab.places import DEPLOY, NODES
from tests.kubernetes.pages import commands, unmarked

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(2400)]

TTL = 15  # seconds; the default of a session's lease
PAGE = "kubernetes.md"
STEADY = {f"steady-{node}": (node, "steady", [f"steady-{node}"]) for node in NODES}
TURNS = {f"turns-{node}": (node, "turns", ["turns-a", "turns-b"]) for node in NODES}
FLEET = {**STEADY, **TURNS}
OLDER = f"images: [{{name: gcr.io/etcd-development/etcd, newTag: {programs.OLDER_ETCD}}}]\n"


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[None]:
    """Each test but those of the installation begins and ends with three ready members and no node cut off."""
    installs = "install" in request.node.name
    if not installs:
        deployment.until_healthy()
    yield
    if not installs:
        for node in deployment.cluster.nodes.values():
            node.heal()
        deployment.cluster.kubectl("uncordon", *NODES)
        deployment.until_healthy()


# The installation


def test_install_says_what_a_cluster_lacks(deployment: Deployment) -> None:
    """A missing namespace, label, secret or CRD is said, and nothing is applied."""
    cluster = deployment.cluster
    with pytest.raises(RuntimeError, match="the namespace codomyrmex-etcd is not there: kubectl apply -f") as refused:
        deployment.follow(PAGE, "before")
    assert "the secret etcd-root is not there" in str(refused.value)
    cluster.kubectl("create", "namespace", ETCD)
    with pytest.raises(RuntimeError, match="lacks the label pod-security"):
        deployment.follow(PAGE, "before")
    crd = json.dumps(cluster.get("crd", "prometheusrules.monitoring.coreos.com"))
    cluster.kubectl("delete", "crd", "prometheusrules.monitoring.coreos.com")
    with pytest.raises(RuntimeError, match=r"knows no PrometheusRule .*install the Prometheus operator"):
        deployment.follow(PAGE, "before")
    cluster.kubectl("create", "-f", "-", stdin=crd)
    assert cluster.names("statefulset", "-n", ETCD) == []
    cluster.kubectl("delete", "namespace", ETCD)


def test_install_by_the_page_and_twice(deployment: Deployment) -> None:
    """The first apply starts with an older etcd, from which a later test upgrades."""
    deployment.overlay(OLDER)
    assert "Warning" not in deployment.follow(PAGE, "prepare", "prepare-backups")
    assert "can be applied" in deployment.follow(PAGE, "before")
    began = time.monotonic()
    said = deployment.follow(PAGE, "apply")
    deployment.note(f"installed, with users and their proof: {time.monotonic() - began:.0f} s")
    assert "Warning" not in said
    for line in ("certificates: 8 are ready", "etcd: 3 of 3 pods are ready", "etcd-roles: complete"):
        assert line in said, said
    generations = _generations(deployment)
    said = deployment.follow(PAGE, "apply")
    assert "Warning" not in said and "created" not in said
    assert _generations(deployment) == generations
    said = deployment.follow(PAGE, "look")
    assert "3 members" in said or said.count("etcd-") >= 3, said
    # The commands of the table at the page's end.
    assert "nameserver" in deployment.shell("kubectl -n codomyrmex-etcd exec tools -- cat /etc/resolv.conf")
    table = "kubectl -n default get endpointslices -l kubernetes.io/service-name=kubernetes"
    assert table in (deployment.folder / PAGE).read_text() and "6443" in deployment.shell(table)
    assert re.search(r"^[0-9a-f]{64}$", deployment.follow(PAGE, "copy-backup"), re.MULTILINE), "the copy is whole"
    [copy] = deployment.folder.glob("etcd-*.db")
    assert copy.stat().st_mode & 0o077 == 0


def _generations(deployment: Deployment) -> dict[str, object]:
    listed = deployment.cluster.get("all,certificates,networkpolicies", "-n", ETCD)["items"]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"].get("generation") for one in listed}


def test_install_of_a_second_cluster_and_a_missing_certificate_are_told(deployment: Deployment) -> None:
    """The overlay `dev` cannot take over what `production` made; nothing of it is applied."""
    generations = _generations(deployment)
    with pytest.raises(RuntimeError, match="was made by another overlay"):
        deployment.shell("python3 kubernetes/check.py before kubernetes/overlays/dev")
    assert _generations(deployment) == generations
    deployment.kubectl("delete", "certificate/agent", "secret/agent-tls")
    with pytest.raises(RuntimeError, match="the certificate agent is not there: apply the overlay"):
        deployment.shell("python3 kubernetes/check.py after kubernetes/overlays/production --timeout 0")
    deployment.follow(PAGE, "apply")


def test_install_the_fleet(deployment: Deployment) -> None:
    began = time.monotonic()
    said = deployment.follow(PAGE, "agents")
    assert "Warning" not in said
    deployment.note(f"the fleet installed: {time.monotonic() - began:.0f} s")
    deployment.cluster.until(
        lambda: "file_edit" in deployment.codomyrmex("locks").stdout, "the fleet's locks are shown", 60
    )
    assert "file_edit" in deployment.follow(PAGE, "see")
    labelled, unlabelled, *_ = deployment.follow(PAGE, "policies").splitlines()
    assert labelled == "open", "the second line proves nothing"
    assert any(text in unlabelled for text in ("timed out", "refused", "No route to host")), unlabelled


# Users


def test_users_are_made_again_without_harm_and_an_agent_is_confined(deployment: Deployment) -> None:
    deployment.kubectl("delete", "job", "etcd-roles", "--ignore-not-found")
    deployment.shell("kubectl apply -k kubernetes/overlays/production")
    deployment.kubectl("wait", "--for=condition=complete", "job/etcd-roles", "--timeout=120s")
    assert "auth is on" in deployment.kubectl("logs", "job/etcd-roles")
    script = (
        "import asyncio\n"
        "from codomyrmex.concurrency import DistributedLock, EtcdAuthError, Session\n"
        "async def main():\n"
        "    async with Session() as session, DistributedLock('confined', session) as grant:\n"
        "        await grant.put('/codomyrmex/confined', 'inside')\n"
        "        try:\n"
        "            await grant.put('/elsewhere/confined', 'outside')\n"
        "        except EtcdAuthError as error:\n"
        "            print('refused:', error)\n"
        "asyncio.run(main())\n"
    )
    assert "refused:" in _run(deployment, "confined", script)


def _run(deployment: Deployment, name: str, script: str, **others: Any) -> str:
    """Run a script in a pod to its end, and return its log."""
    deployment.cluster.apply(pod(name, ["python", "-c", script], **others))
    return _ended(deployment, name, others.get("namespace", ETCD))


def _ended(deployment: Deployment, name: str, namespace: str) -> str:
    """Wait until a pod has ended, and return its log."""
    cluster, ended = deployment.cluster, {"Succeeded", "Failed"}
    cluster.until(
        lambda: cluster.get("pod", name, "-n", namespace)["status"]["phase"] in ended, f"pod {name} has ended", 120
    )
    log = cluster.kubectl("-n", namespace, "logs", name)
    cluster.kubectl("-n", namespace, "delete", "pod", name, "--grace-period=1")
    return log


def test_the_policies_hold(deployment: Deployment) -> None:
    """The label opens the clients' port, and the namespace `monitoring` the metrics; the peers' port is closed."""
    cluster = deployment.cluster
    for namespace in ("monitoring", "elsewhere"):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        cluster.kubectl("-n", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    script = (
        "import socket, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def opens(port):\n"
        "    end = time.monotonic() + 12  # the firewall learns of a new pod after some seconds\n"
        "    while time.monotonic() < end:\n"
        "        try:\n"
        "            socket.create_connection(('etcd-0.etcd-peers.codomyrmex-etcd.svc.cluster.local', port), 2)\n"
        "            return True\n"
        "        except OSError:\n"
        "            time.sleep(0.5)\n"
        "with ThreadPoolExecutor() as executor:\n"
        "    ports = (2379, 2380, 2381)\n"
        "    print([port for port, opened in zip(ports, executor.map(opens, ports)) if opened])\n"
    )
    pods = (
        ("labelled", ETCD, True),
        ("labelled", "elsewhere", True),
        ("unlabelled", ETCD, False),
        ("unlabelled", "elsewhere", False),
        ("prometheus", "monitoring", False),
    )
    for name, namespace, labelled in pods:
        cluster.apply(pod(name, ["python", "-c", script], labelled=labelled, namespace=namespace))
    assert {(name, namespace): _ended(deployment, name, namespace).strip() for name, namespace, _ in pods} == {
        ("labelled", ETCD): "[2379]",
        ("labelled", "elsewhere"): "[2379]",
        ("unlabelled", ETCD): "[]",
        ("unlabelled", "elsewhere"): "[]",
        ("prometheus", "monitoring"): "[2381]",
    }


def test_metrics_reach_the_monitoring_namespace(deployment: Deployment) -> None:
    cluster = deployment.cluster
    listed = cluster.get("pods", "-n", AGENTS, "-l", "app.kubernetes.io/name=agents")["items"]
    agent = listed[0]["status"]["podIP"]
    script = (
        "import time\n"
        "from urllib.request import urlopen\n"
        "time.sleep(5)  # the firewall learns of a new pod after some seconds\n"
        "for url in ('http://etcd-0.etcd-peers.codomyrmex-etcd.svc.cluster.local:2381/metrics',\n"
        f"            'http://{agent}:9464/metrics'):\n"
        "    print(urlopen(url, timeout=5).read().decode())\n"
    )
    said = _run(deployment, "prometheus", script, labelled=False, namespace="monitoring")
    assert "etcd_server_has_leader 1" in said and "codomyrmex_grants_total" in said


# Members and nodes


def test_a_members_pod_is_killed(deployment: Deployment) -> None:
    leader = deployment.leader()
    with deployment.clients(f"the leader's pod ({leader}) deleted by force", **FLEET) as clients:
        rest(3)
        deployment.kubectl("delete", "pod", leader, "--force", "--grace-period=0")
        deployment.note(f"  ready again after {deployment.until_healthy():.0f} s")
        rest(5)
        clients.nobody_lost()


def test_a_node_is_drained_under_the_budget(deployment: Deployment) -> None:
    cluster = deployment.cluster
    with deployment.clients("a node drained", **FLEET) as clients:
        began = time.monotonic()
        drain = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--force")
        mine = "--pod-selector=app.kubernetes.io/name in (etcd, agents)"
        cluster.kubectl(*drain, "--timeout=90s", mine, "n2")
        deployment.note(f"  drained in {time.monotonic() - began:.0f} s")
        refused = cluster.try_kubectl(*drain, "--timeout=8s", mine, "n3")
        assert refused.returncode and "disruption budget" in refused.stderr, refused.stderr
        cluster.kubectl("uncordon", *NODES)
        deployment.note(f"  three members {deployment.until_healthy():.0f} s after uncordon")
        clients.nobody_lost()


def test_a_rolling_restart(deployment: Deployment) -> None:
    """Each member comes back with a new address."""
    with deployment.clients("a rolling restart", **FLEET) as clients:
        deployment.kubectl("rollout", "restart", "statefulset/etcd")
        deployment.note(f"  {deployment.until_healthy(400):.0f} s")
        rest(5)
        clients.nobody_lost()


def test_an_upgrade_by_the_runbook(deployment: Deployment) -> None:
    runbook = "runbooks/upgrade.md"
    with deployment.clients(f"an upgrade from {programs.OLDER_ETCD} to {named('etcd')[-6:]}", **FLEET) as clients:
        deployment.follow(runbook, "tools", "backup", "status")
        deployment.overlay("")
        deployment.follow(runbook, "apply", timeout=900)
        deployment.follow(runbook, "after")
        clients.nobody_lost()
    images = {
        one["spec"]["containers"][0]["image"]
        for one in deployment.cluster.get("pods", "-n", ETCD, "-l", "app.kubernetes.io/name=etcd")["items"]
    }
    assert images == {named("etcd")}


def test_a_template_that_cannot_run_is_repaired_by_the_runbook(deployment: Deployment) -> None:
    """No member can run, so there is no quorum, and a template that could run reaches one pod alone."""
    deployment.kubectl("scale", "statefulset/etcd", "--replicas=0")
    deployment.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=etcd", "--timeout=120s")
    deployment.kubectl("set", "image", "statefulset/etcd", "etcd=gcr.io/etcd-development/etcd:v0.0.0")
    deployment.kubectl("scale", "statefulset/etcd", "--replicas=3")
    pods = ("pods", "-n", ETCD, "-l", "app.kubernetes.io/name=etcd")
    deployment.cluster.until(lambda: len(deployment.cluster.names(*pods)) == 3, "three pods that cannot run", 60)
    deployment.shell("kubectl apply -k kubernetes/overlays/production")
    rest(20)
    assert deployment.ready_members() == []
    deployment.follow("runbooks/upgrade.md", "repair")


def test_a_member_is_replaced_by_the_runbook(deployment: Deployment) -> None:
    runbook = "runbooks/replace-a-member.md"
    with deployment.clients("a member replaced", **FLEET) as clients:
        began = time.monotonic()
        deployment.follow(runbook, "look", "remove", "announce", "join", "start")
        deployment.cluster.until(deployment.cluster.empty_disks, "the deleted claim's disk is free again", 60)
        said = deployment.follow(runbook, "check")
        deployment.note(f"  replaced in {time.monotonic() - began:.0f} s")
        assert said.count("https://etcd-") == 3
        clients.nobody_lost()


def test_a_node_is_cut_off_with_a_holder_on_it(deployment: Deployment) -> None:
    cluster = deployment.cluster
    near = {f"near-{node}": (node, "steady", [f"near-{node}"]) for node in ("n1", "n2")}
    far, after = ("n3", "steady", ["far"]), ("n1", "wait", ["far"])
    with deployment.clients("a node cut off for 40 s", **near, far=far, after=after) as clients:
        rest(2)
        cut = time.monotonic()
        cluster.nodes["n3"].cut()
        cluster.until(lambda: clients.has_told("after", "granted"), "the waiter has the lock", 60)
        granted = next(line["at"] for line in clients.told("after") if line["kind"] == "granted")
        rest(max(0.0, cut + 40 - time.monotonic()))
        cluster.nodes["n3"].heal()
        cluster.until(lambda: clients.has_told("far", "hold"), "the holder on the node tells of its loss", 90)
        hold = next(line for line in clients.told("far") if line["kind"] == "hold")
        deployment.note(f"  holder told after {hold['until'] - cut:.1f} s, next granted after {granted - cut:.1f} s")
        assert hold["lost"] and hold["until"] < granted, "two held the lock"
        clients.nobody_lost(*near)


# Agents


def test_agents_are_rolled_out_anew(deployment: Deployment) -> None:
    """Each agent gives its locks back and revokes its lease: none is left to its end."""
    cluster = deployment.cluster
    leases = _leases(deployment)
    before = set(cluster.names("pods", "-n", AGENTS, "-l", "app.kubernetes.io/name=agents"))
    began = time.monotonic()
    cluster.kubectl("-n", AGENTS, "rollout", "restart", "deployment/agents")
    cluster.kubectl("-n", AGENTS, "rollout", "status", "deployment/agents", "--timeout=120s")
    cluster.until(lambda: not before & set(cluster.names("pods", "-n", AGENTS)), "every former agent has ended", 60)
    took = time.monotonic() - began
    deployment.note(
        f"three agents rolled out anew in {took:.0f} s; leases before {leases}, after {_leases(deployment)}"
    )
    assert _leases(deployment) <= leases


def _leases(deployment: Deployment) -> int:
    said = deployment.etcdctl("lease", "list")
    return int(said.split("found", 1)[1].split()[0])


# Certificates


def test_certificates_and_an_authority_are_renewed(deployment: Deployment) -> None:
    runbook = "runbooks/ca-rotation.md"
    with deployment.clients("every certificate renewed", **FLEET) as clients:
        deployment.follow(runbook, "renew", "copy")
        rest(100)  # the kubelet puts new secrets into pods within about a minute
        clients.nobody_lost()
    with deployment.clients("a restart after an authority is renewed", **FLEET) as clients:
        _fails_to_issue(deployment, "agent")
        deployment.shell("renew client-ca agent")
        deployment.follow(runbook, "restart", timeout=900)
        clients.nobody_lost()
    with deployment.clients("the clients' authority replaced", **FLEET) as clients:
        deployment.follow(runbook, "successor")
        deployment.follow(runbook, "trust-both", timeout=900)
        deployment.follow(runbook, "copy-both", "sign", "use-new")
        deployment.follow(runbook, "trust-new", timeout=900)
        said = deployment.follow(runbook, "check")
        assert said.count("Fingerprint") == 5 and len(set(said.splitlines()[::2])) == 1
        clients.nobody_lost()


def _fails_to_issue(deployment: Deployment, name: str) -> None:
    """Leave the condition of a failed issuance, which stays until the next one."""
    condition = {"type": "Issuing", "status": "False", "reason": "Failed", "message": "as after a failure"}
    patch = json.dumps([{"op": "add", "path": "/status/conditions/-", "value": condition}])
    deployment.kubectl("patch", "certificate", name, "--subresource=status", "--type=json", "-p", patch)


# Data


def test_backup_and_restore_by_the_runbook(deployment: Deployment) -> None:
    runbook = "runbooks/restore.md"
    cluster = deployment.cluster
    deployment.kubectl("delete", "job", "before-upgrade", "before-restore", "--ignore-not-found")
    deployment.kubectl("create", "job", "--from=cronjob/etcd-backup", "before-restore")
    deployment.kubectl("wait", "--for=condition=complete", "job/before-restore", "--timeout=120s")
    with deployment.clients("before the backup is restored", **TURNS) as clients:
        rest(3)
        highest = max(line["token"] for name in TURNS for line in clients.told(name) if line["kind"] == "granted")
    began = time.monotonic()
    assert "3 agents" in deployment.follow(runbook, "stop-agents", "snapshot")
    deployment.follow(runbook, "former", "stamp", "stop-etcd")
    assert deployment.follow(runbook, "claims").count("Bound") == 3
    deployment.shell("lost=etcd-1")
    assert "data-etcd-1 created" in deployment.follow(runbook, "lost-claim")
    cluster.until(cluster.empty_disks, "the deleted claim's disk is free again", 60)
    said = deployment.follow(runbook, "restore")
    assert said.count(" is restored; ") == 3 and said.count(" has the snapshot") == 3
    said = deployment.follow(runbook, "restore")  # once more: each member stays as it is, and nothing is sent
    assert said.count(" is restored; ") == 3 and " has the snapshot" not in said
    deployment.follow(runbook, "delete-jobs", "start-etcd")
    deployment.note(f"restored, with one disk lost, in {time.monotonic() - began:.0f} s")
    _root_gets_the_secrets_password(deployment)
    with deployment.clients("after the restore", **TURNS) as clients:
        rest(3)
        lowest = min(line["token"] for name in TURNS for line in clients.told(name) if line["kind"] == "granted")
    deployment.note(f"  highest token before {highest}, lowest after {lowest}")
    assert lowest > highest
    deployment.follow(runbook, "start-agents", "dead-letters")
    assert deployment.follow(runbook, "clean").count("the former data and the snapshots are deleted") == 3
    assert "etcd-restore" not in cluster.names("configmap", "-n", ETCD)


def _root_gets_the_secrets_password(deployment: Deployment) -> None:
    """The secret has another password than the snapshot; first the older one is known, then it is not."""
    runbook = "runbooks/restore.md"
    change = (
        "secret='kubectl -n codomyrmex-etcd get secret etcd-root'\n"
        "$secret -o jsonpath='{.data.password}' | base64 -d >older-password\n"
        "kubectl -n codomyrmex-etcd patch secret etcd-root --type=merge \\\n"
        '  -p "{\\"stringData\\":{\\"password\\":\\"$(openssl rand -base64 24)\\"}}"\n'
    )
    deployment.shell(change)
    deployment.follow(runbook, "older-password")
    assert "etcd-roles: complete" in deployment.follow(runbook, "users", timeout=900)
    deployment.follow(runbook, "forget-password")
    deployment.shell(f"{change}rm older-password")
    assert "Authentication Disabled" in deployment.follow(runbook, "unknown-password")
    assert "etcd-roles: complete" in deployment.follow(runbook, "users", timeout=900)


def test_maintenance_leaves_a_small_database_alone(deployment: Deployment) -> None:
    deployment.kubectl("create", "job", "--from=cronjob/etcd-maintenance", "maintenance")
    deployment.kubectl("wait", "--for=condition=complete", "job/maintenance", "--timeout=120s")
    assert deployment.kubectl("logs", "job/maintenance").count("left alone") == 3


def test_a_full_database_is_repaired_by_the_runbook(deployment: Deployment) -> None:
    """With a quota of 24 MiB the alarm is raised soon: by the history of one key, and then by data."""
    runbook = "runbooks/nospace.md"
    deployment.overlay(_quota(24 << 20))
    deployment.follow(runbook, "apply", timeout=900)
    deployment.follow(runbook, "tools")
    _fill(deployment, "/codomyrmex/filler")
    _is_full(deployment, deployment.follow(runbook, "look"))
    deployment.follow(runbook, "compact")
    assert deployment.follow(runbook, "defragment").count("is done") == 3
    deployment.follow(runbook, "disarm")

    _fill(deployment, "/codomyrmex/filler/{number}")
    _is_full(deployment, deployment.follow(runbook, "look"))
    for command in (("dlq", "stats"), ("locks",)):
        refused = deployment.codomyrmex(*command)
        assert refused.returncode and "database is full" in refused.stderr, refused
    deployment.follow(runbook, "compact")
    deployment.overlay(_quota(64 << 20))
    deployment.follow(runbook, "apply", timeout=900)
    deployment.follow(runbook, "disarm", "purge")
    deployment.etcdctl("del", "--prefix", "/codomyrmex/filler")  # stands for dead letters that are purged
    deployment.follow(runbook, "compact")
    assert deployment.follow(runbook, "defragment").count("is done") == 3
    deployment.overlay(_quota(24 << 20))
    deployment.follow(runbook, "apply", timeout=900)
    status = deployment.codomyrmex("status")
    assert status.returncode == 0, status.stdout + status.stderr
    deployment.follow(runbook, "end")
    deployment.overlay("")
    deployment.shell("kubectl apply -k kubernetes/overlays/production")
    deployment.until_healthy(400)


def _quota(limit: int) -> str:
    """The runbook's patch, with another figure."""
    page = (DEPLOY / "runbooks/nospace.md").read_text()
    [patch] = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)
    patch = re.sub(r"backend-bytes=\d+", f"backend-bytes={limit}", patch)
    return textwrap.indent(textwrap.dedent(patch), "  ").rstrip() + "\n"


def _fill(deployment: Deployment, key: str) -> None:
    """Write until etcd refuses."""
    script = (
        "import asyncio\n"
        "from codomyrmex.concurrency import DistributedLock, EtcdError, Session\n"
        "async def main():\n"
        "    async with Session() as session, DistributedLock('filler', session) as grant:\n"
        "        for number in range(10000):\n"
        "            try:\n"
        f"                await grant.put(f'{key}', 'x' * 400_000)\n"
        "            except EtcdError as error:\n"
        "                return print(type(error).__name__, error)\n"
        "asyncio.run(main())\n"
    )
    assert "EtcdQuotaExceeded" in _run(deployment, "filler", script)


def _is_full(deployment: Deployment, said: str) -> None:
    assert said.count("NOSPACE") > 1, said
    status = deployment.codomyrmex("status")
    assert status.returncode and "NOSPACE" in status.stdout + status.stderr


# The pages


def test_every_command_of_the_pages_was_run(deployment: Deployment) -> None:
    pages = [PAGE, *(f"runbooks/{path.name}" for path in sorted((deployment.folder / "runbooks").glob("*.md")))]
    missed = []
    for page in pages:
        path = deployment.folder / page
        missed += [f"{page}: {name}" for name in commands(path) if (page, name) not in deployment.followed]
        missed += [f"{page} has a block without a comment: {text}" for text in unmarked(path)]
    assert not missed, "\n".join(missed)
