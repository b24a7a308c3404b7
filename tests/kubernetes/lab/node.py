"""One node, seen from outside: its network, its control groups, the files of its programs, and its namespaces."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tests.kubernetes.lab.control import ip, kubeconfig
from tests.kubernetes.lab.images import PAUSE
from tests.kubernetes.lab.places import CONTROL, DNS, NODES, PODS, ROOT, address, cache, inside, namespace, run
from tests.kubernetes.lab.process import Process

_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")


class Node:
    """A node that runs. ``cut`` and ``heal`` take its link away and bring it back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = run() / name
        for part in ("kubelet", "containerd", "cni", "net.d", "pods", "containers", "disks/a", "disks/b"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._network()
        make_cgroups(name)
        self._configure()
        self._process = Process(
            self.folder / "node",
            *inside(name),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"),
            *("--propagation", "private", "--kill-child"),
            *(sys.executable, "-m", "tests.kubernetes.lab.inside", name),
            environment={"PYTHONPATH": str(ROOT), "KUBERNETES_LAB_CACHE": str(cache())},
        )

    def check(self) -> None:
        self._process.check()

    def cut(self) -> None:
        """Cut the node off: nothing reaches or leaves it. Connections are not closed, they fall silent."""
        ip("-n", namespace("cp"), "link", "set", f"v{self.name}", "down")

    def heal(self) -> None:
        ip("-n", namespace("cp"), "link", "set", f"v{self.name}", "up")

    def stop(self) -> None:
        """End the node and everything on it at once."""
        self._process.stop(signal.SIGKILL)

    def _network(self) -> None:
        own, control, link = namespace(self.name), namespace("cp"), f"v{self.name}"
        ip("netns", "add", own)
        ip("-n", own, "link", "set", "lo", "up")
        ip("link", "add", link, "netns", control, "type", "veth", "peer", "name", "eth0", "netns", own)
        ip("-n", control, "link", "set", link, "master", "lan0", "up")
        ip("-n", own, "addr", "add", f"{address(self.name)}/24", "dev", "eth0")
        ip("-n", own, "link", "set", "eth0", "up")
        ip("-n", own, "route", "add", "default", "via", CONTROL)
        for other in NODES:
            if other != self.name:
                ip("-n", own, "route", "add", pods(other), "via", address(other))
        ip("-n", control, "route", "replace", pods(self.name), "via", address(self.name))

    def _configure(self) -> None:
        files = {
            "containerd.toml": _CONTAINERD,
            "net.d/10-lab.conflist": json.dumps(_cni(self.name)),
            "kubelet.yaml": json.dumps(_kubelet(self.name, self.folder)),
            "proxy.yaml": json.dumps(_proxy(self.name)),
            "resolv.conf": "",
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)


def pods(node: str) -> str:
    """The addresses of a node's pods."""
    return f"10.244.{node[1:]}.0/24"


def make_cgroups(node: str) -> None:
    """A control group of the node's own under every controller; the kubelet keeps to it."""
    for controller in _CONTROLLERS:
        (_CGROUPS / controller / namespace(node)).mkdir(exist_ok=True)
    cpuset = _CGROUPS / "cpuset"
    for name in ("cpuset.cpus", "cpuset.mems"):
        (cpuset / namespace(node) / name).write_text((cpuset / name).read_text())


def remove_cgroups(node: str) -> None:
    for controller in _CONTROLLERS:
        top = _CGROUPS / controller / namespace(node)
        for folder, _, _ in os.walk(top, topdown=False):
            os.rmdir(folder)


_CONTAINERD = f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  enable_unprivileged_ports = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def _cni(node: str) -> dict[str, object]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": pods(node)}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False, "ipam": ipam}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "lab", "plugins": [bridge, ports]}


def _kubelet(node: str, folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{namespace(node)}",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failSwapOn": False,
        "failCgroupV1": False,
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        "resolvConf": str(folder / "resolv.conf"),
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": True,
    }


def _proxy(node: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(kubeconfig("system:kube-proxy"))},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
