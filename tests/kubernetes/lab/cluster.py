"""The whole cluster: starts it, speaks to it, takes it down."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.kubernetes.lab import control, images, node, programs
from tests.kubernetes.lab.node import Node
from tests.kubernetes.lab.places import NODES, cache, inside, namespace, program, run
from tests.kubernetes.lab.process import Process

_MANIFESTS = Path(__file__).with_name("cluster.yaml")


def missing(whole: bool) -> str | None:
    """The reason why the lab cannot run on this machine, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it needs Linux and root"
    wanted = {"go": "Go", "ip": "iproute2", "nsenter": "util-linux", "openssl": "openssl", "nice": "coreutils"}
    if whole:
        wanted |= {
            "containerd": "containerd",
            "runc": "runc",
            "iptables": "iptables",
            "ipset": "ipset",
            "unshare": "util-linux",
        }
    for command, package in wanted.items():
        if not shutil.which(command):
            return f"{package} is not installed"
    if whole and not Path("/usr/lib/cni/bridge").exists():
        return "containernetworking-plugins is not installed"
    if whole and not Path("/sys/fs/cgroup/cpuset").exists():
        return "it needs control groups of version 1"
    probe = namespace("probe")
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces are not permitted: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


class Cluster:
    """A cluster that runs. ``kubectl`` is its administrator's."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._processes: list[Process] = []

    def start(self, whole: bool) -> None:
        """Start the control plane with the CRDs; with ``whole`` also three nodes, DNS, disks and cert-manager."""
        self._processes += control.start(images.etcd_version(), whole)
        files = [argument for path in programs.crds() for argument in ("-f", str(path))]
        self.kubectl("apply", "--server-side", *files)
        self.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=30s")
        if whole:
            self._start_nodes()

    def _start_nodes(self) -> None:
        self.nodes = {name: Node(name) for name in NODES}
        self.until(lambda: set(self.names("node")) == set(NODES), "every node has joined", 120)
        self.kubectl("apply", "-f", str(_MANIFESTS))
        for name in NODES:
            for disk, size in (("a", "50Gi"), ("b", "250Gi")):
                self.apply(_disk(name, disk, size))
        self._processes.append(
            Process(
                run() / "cp" / "cert-manager", *inside("cp"), program("cert-manager"), str(control.kubeconfig("admin"))
            )
        )
        self.kubectl("wait", "--for=condition=ready", "node", "--all", "--timeout=120s")
        for name in NODES:
            self.kubectl("label", "node", name, f"topology.kubernetes.io/zone=z{name[1:]}")
        self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 180) -> str:
        """Run kubectl, and return its output. Raises ``RuntimeError`` with its words if it fails."""
        done = self.try_kubectl(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str | None = None, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; it may fail."""
        return subprocess.run(
            (*self.prefix, program("kubectl"), *arguments),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self.environment,
        )

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before a command that is to reach the API server."""
        return inside("cp")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command that calls ``kubectl`` as the administrator."""
        path = f"{cache() / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(control.kubeconfig("admin")), "PATH": path}

    def apply(self, *documents: dict[str, Any]) -> str:
        """Apply documents."""
        return self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        )

    def get(self, *arguments: str) -> dict[str, Any]:
        """Read an object or a list."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def empty_disks(self) -> int:
        """Make the disks anew whose claims were deleted, as a provisioner of storage does; returns their number."""
        released = [disk for disk in self.get("pv")["items"] if disk["status"]["phase"] == "Released"]
        for disk in released:
            folder = Path(disk["spec"]["local"]["path"])
            shutil.rmtree(folder)
            folder.mkdir()
            self.kubectl("delete", "pv", disk["metadata"]["name"])
            self.apply(_disk(folder.parts[-3], folder.name, disk["spec"]["capacity"]["storage"]))
        return len(released)

    def names(self, *arguments: str) -> list[str]:
        """The names of a list's objects."""
        return [item["metadata"]["name"] for item in self.get(*arguments)["items"]]

    def until(self, holds: Callable[[], object], expected: str, timeout: float = 60, every: float = 0.3) -> float:
        """Wait until ``holds()`` is true; returns the seconds it took. Raises ``AssertionError`` after ``timeout``."""
        began = time.monotonic()
        while not holds():
            self.check()
            if time.monotonic() - began > timeout:
                raise AssertionError(f"not within {timeout} s: {expected}")
            time.sleep(every)
        return time.monotonic() - began

    def check(self) -> None:
        """Raise ``RuntimeError`` if a program of the lab has ended."""
        for process in self._processes:
            process.check()
        for one in self.nodes.values():
            one.check()

    def stop(self) -> None:
        """End every program that was started."""
        for one in self.nodes.values():
            one.stop()
        for process in reversed(self._processes):
            process.stop()


def _disk(name: str, disk: str, size: str) -> dict[str, Any]:
    selectors = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"disk-{name}-{disk}"},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "local": {"path": str(run() / name / "disks" / disk)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": selectors}},
        },
    }


def remove_remains() -> None:
    """Remove what a cluster leaves in the kernel and on disk; also after one that was killed."""
    for host in (*NODES, "cp"):
        if Path(f"/run/netns/{namespace(host)}").exists():
            subprocess.run(["ip", "netns", "del", namespace(host)], check=True)
    for name in NODES:
        deadline = time.monotonic() + 10
        while True:
            try:
                node.remove_cgroups(name)
                break
            except OSError:  # the kernel takes a moment to empty the group of a killed process
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    shutil.rmtree(run(), ignore_errors=True)


@contextlib.contextmanager
def running(whole: bool = True) -> Iterator[Cluster]:
    """A cluster, for as long as the block lasts. Builds what is missing first. One at a time uses a cache folder."""
    version = images.etcd_version()
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if whole:
            programs.build_all(version)
            images.make_all()
        else:
            programs.build_api(version)
        remove_remains()
        cluster = Cluster()
        try:
            cluster.start(whole)
            yield cluster
        finally:
            cluster.stop()
            remove_remains()
