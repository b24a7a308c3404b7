"""The deployment on the lab's cluster: a copy of `deploy/etcd` with an overlay for small nodes, and its clients."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kubernetes import history
from tests.kubernetes.history import Line
from tests.kubernetes.lab.cluster import Cluster
from tests.kubernetes.lab.images import named
from tests.kubernetes.lab.places import DEPLOY
from tests.kubernetes.pages import commands

ETCD = "codomyrmex-etcd"
AGENTS = "codomyrmex-agents"
MEMBERS = ("etcd-0", "etcd-1", "etcd-2")
_LABEL = {"codomyrmex.io/etcd-client": "true"}
_TESTS = Path(__file__).parent

# One machine cannot give four cores and 16 GiB to each member, nor a kubelet that counts local storage. Everything else
# is as in production.
_LOCAL = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../production]
patches:
  - target: {kind: CronJob, name: etcd-backup}
    patch: |
      - op: remove
        path: /spec/jobTemplate/spec/template/spec/initContainers/0/resources/requests/ephemeral-storage
  - target: {kind: StatefulSet, name: etcd}
    patch: |
      - op: replace
        path: /spec/template/spec/containers/0/resources
        value: {requests: {cpu: 100m, memory: 256Mi}, limits: {cpu: "1", memory: 512Mi}}
"""


class Deployment:
    """A copy of the deployment's folder, and commands on the cluster that it is applied to."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder / "etcd"
        shutil.copytree(DEPLOY, self.folder, ignore=shutil.ignore_patterns("certificates", "__pycache__"))
        self.overlay("")
        self.phases: list[str] = []
        self.followed: set[tuple[str, str]] = set()

    def overlay(self, more: str) -> None:
        """Write the overlay `local`, with ``more`` at its end."""
        local = self.folder / "kubernetes" / "overlays" / "local"
        local.mkdir(exist_ok=True)
        (local / "kustomization.yaml").write_text(_LOCAL + more)

    def follow(self, page: str, *names: str, timeout: float = 600) -> str:
        """Run the named commands of a page in its order, as an operator in one shell does; returns their output."""
        blocks = commands(self.folder / page)
        output = ""
        for name in names:
            self.followed.add((page, name))
            output += self.shell(blocks[name], timeout)
        return output

    def shell(self, script: str, timeout: float = 300) -> str:
        """Run commands in `deploy/etcd`, with the overlay of this machine; returns their output.

        Variables last from one call to the next.
        """
        script = script.replace("overlays/production", "overlays/local")
        state = self.folder.parent / "variables"
        keep = f"set -a\n[ -e {state} ] && . {state}\n{script}\n(export -p; declare -f) >{state}\n"
        done = subprocess.run(
            (*self.cluster.prefix, "bash", "-euo", "pipefail", "-c", keep),
            cwd=self.folder,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"{script}\nexit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def kubectl(self, *arguments: str, timeout: float = 180) -> str:
        """Run kubectl in etcd's namespace."""
        return self.cluster.kubectl("-n", ETCD, *arguments, timeout=timeout)

    def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl as the operator, in a pod of its own."""
        words = " ".join(f"'{one}'" for one in arguments)
        return self.shell(f"kubernetes/tools/etcdctl.sh {words}")

    def ready_members(self) -> list[str]:
        """The members that are ready."""
        pods = self.cluster.get("pods", "-n", ETCD, "-l", "app.kubernetes.io/name=etcd")["items"]
        return sorted(pod["metadata"]["name"] for pod in pods if is_ready(pod))

    def until_healthy(self, timeout: float = 180) -> float:
        """Wait until all three members are ready and none is being replaced; returns the seconds it took."""
        return self.cluster.until(self._is_healthy, f"three members ready: {self.ready_members()}", timeout)

    def _is_healthy(self) -> bool:
        status = self.cluster.get("statefulset", "etcd", "-n", ETCD)
        state, wanted = status["status"], status["metadata"]["generation"]
        return (
            state.get("observedGeneration") == wanted
            and state.get("readyReplicas", 0) == 3
            and state.get("updatedReplicas", 0) == 3
            and state.get("currentRevision") == state.get("updateRevision")
        )

    def leader(self) -> str:
        """The pod that leads."""
        statuses = json.loads(self.etcdctl("endpoint", "status", "--cluster", "-w", "json").strip().splitlines()[-1])
        [leading] = [
            one["Endpoint"] for one in statuses if one["Status"]["header"]["member_id"] == one["Status"].get("leader")
        ]
        return str(leading.partition("//")[2].partition(".")[0])

    def node_of(self, pod: str) -> str:
        return str(self.cluster.get("pod", pod, "-n", ETCD)["spec"]["nodeName"])

    def codomyrmex(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the library's command in the operator's pod."""
        command = ("codomyrmex", "concurrency", *arguments)
        return self.cluster.try_kubectl("-n", ETCD, "exec", "tools", "--", *command)

    def note(self, text: str) -> None:
        """Keep a figure for the end of the run."""
        self.phases.append(text)
        print(text, flush=True)

    @contextmanager
    def clients(self, phase: str, **commands: tuple[str, str, Sequence[str]]) -> Iterator[Clients]:
        """Clients by name: (node, mode, locks). At the end they are ended, and what they told is judged and noted."""
        clients = Clients(self, commands)
        try:
            clients.start()
            yield clients
            told = clients.end()
        finally:
            clients.remove()
        broken = history.violations(told)
        result = history.figures(told)
        self.note(f"{phase}: {result}")
        for error in result.errors[:5]:
            print(f"  {error}", flush=True)
        assert not broken, broken


class Clients:
    """Pods that run `agent.py`."""

    def __init__(self, deployment: Deployment, commands: dict[str, tuple[str, str, Sequence[str]]]) -> None:
        self._deployment = deployment
        self._commands = commands
        self._told: list[Line] = []

    def start(self) -> None:
        """Start every client, and wait until each has a session."""
        cluster = self._deployment.cluster
        script = {"agent.py": (_TESTS / "agent.py").read_text()}
        meta = {"name": "script", "namespace": ETCD}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": script})
        for name, (node, mode, locks) in self._commands.items():
            cluster.apply(pod(name, ["python", "-u", "/script/agent.py", mode, *locks], node))
        for name, (_, mode, _) in self._commands.items():
            expected = "granted" if mode != "wait" else "session"
            cluster.until(lambda name=name, kind=expected: self.has_told(name, kind), f"{name} began", 60)

    def told(self, name: str) -> list[Line]:
        """The lines of a client so far."""
        done = self._deployment.cluster.try_kubectl("-n", ETCD, "logs", name)
        return history.lines(done.stdout)

    def has_told(self, name: str, kind: str) -> bool:
        return any(line["kind"] == kind for line in self.told(name))

    def nobody_lost(self, *names: str) -> None:
        """Assert that no steady client lost its lock; of all, or of those named."""
        steady = [name for name, (_, mode, _) in self._commands.items() if mode == "steady"]
        lost = [name for name in names or steady if self.has_told(name, "hold") or self.has_told(name, "failed")]
        assert not lost, [line for name in lost for line in self.told(name) if line["kind"] != "granted"]

    def end(self) -> list[Line]:
        """End every client, and return what all of them told."""
        deployment = self._deployment
        for name in self._commands:
            kill = "import os, signal; os.kill(1, signal.SIGTERM)"
            deployment.cluster.try_kubectl("-n", ETCD, "exec", name, "--", "python", "-c", kill)
        told = []
        for name in self._commands:
            deployment.cluster.until(lambda name=name: self.has_told(name, "ended"), f"{name} has ended", 60)
            told += self.told(name)
        return told

    def remove(self) -> None:
        names = list(self._commands)
        self._deployment.kubectl("delete", "pod", *names, "--ignore-not-found", "--force", "--grace-period=0")


def pod(
    name: str, command: Sequence[str], node: str = "", labelled: bool = True, namespace: str = ETCD
) -> dict[str, Any]:
    """A client's pod with the agent's certificate, as the fleet's pods are."""
    members = (f"https://{member}.etcd-peers.{ETCD}.svc.cluster.local:2379" for member in MEMBERS)
    environment = {
        "CODOMYRMEX_ETCD_ENDPOINTS": ",".join(members),
        "CODOMYRMEX_ETCD_CA_FILE": "/tls/ca.crt",
        "CODOMYRMEX_ETCD_CERT_FILE": "/tls/tls.crt",
        "CODOMYRMEX_ETCD_KEY_FILE": "/tls/tls.key",
    }
    tls = [
        {"secret": {"name": "agent-tls", "optional": True}},
        {"configMap": {"name": "client-ca-bundle", "optional": True}},
    ]
    user = {"runAsNonRoot": True, "runAsUser": 10002, "runAsGroup": 10002, "fsGroup": 10002}
    container = {
        "name": "client",
        "image": named("codomyrmex-agent"),
        "command": list(command),
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}, {"name": "script", "mountPath": "/script"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 40,
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}, {"name": "timeout", "value": "1"}]},
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [{"operator": "Exists"}],  # a client on a node that is cut off stays there
        "containers": [container],
        "volumes": [
            {"name": "tls", "projected": {"defaultMode": 0o440, "sources": tls}},
            {"name": "script", "configMap": {"name": "script", "optional": True}},
        ],
        **({"nodeName": node} if node else {}),
    }
    metadata = {"name": name, "namespace": namespace, "labels": _LABEL if labelled else {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def is_ready(one: dict[str, Any]) -> bool:
    """True if a pod is ready and not about to end."""
    conditions = one.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in one["metadata"]


def rest(seconds: float) -> None:
    """Let the clients work for some time."""
    time.sleep(seconds)
