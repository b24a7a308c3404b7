"""The first process of a node's namespaces: mounts, then containerd, the kubelet, kube-proxy and the firewall.

Started by `node.py` as `python -m tests.kubernetes.lab.inside NODE` after `unshare`. What it mounts is seen by the node
alone. The kernel ends everything here when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.kubernetes.lab.control import kubeconfig
from tests.kubernetes.lab.places import SERVICES, address, cache, program, run

# The kubelet sets these for the whole machine. A file mounted over each takes the value instead.
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_SOCKET = "/run/containerd/containerd.sock"


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _mounts(folder: Path) -> None:
    _mount("--make-rshared", "/")
    _mount("-t", "tmpfs", "tmpfs", "/run")
    mounts = {
        "/var/lib/kubelet": "kubelet",
        "/var/lib/containerd": "containerd",
        "/var/lib/cni": "cni",
        "/var/log/pods": "pods",
        "/var/log/containers": "containers",
        "/etc/cni/net.d": "net.d",
    }
    for path in ("/run/containerd", "/run/netns", "/run/lock", *mounts):
        Path(path).mkdir(parents=True, exist_ok=True)
    for path, name in mounts.items():
        _mount("--bind", str(folder / name), path)
    _mount("--make-rshared", "/var/lib/kubelet")
    for number, (name, value) in enumerate(_SYSCTLS.items()):
        stand_in = Path(f"/run/sysctl-{number}")
        stand_in.write_text(value)
        _mount("--bind", str(stand_in), f"/proc/sys/{name}")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if bridged.exists():
        bridged.write_text("1")


def _start(folder: Path, name: str, *command: str, **environment: str) -> int:
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}).pid


def _until(*command: str) -> None:
    while subprocess.run(command, capture_output=True, check=False).returncode:
        time.sleep(0.2)


def _containerd(folder: Path) -> int:
    pid = _start(folder, "containerd", "containerd", "--config", str(folder / "containerd.toml"))
    _until("ctr", "-a", _SOCKET, "version")
    for image in sorted((cache() / "images").glob("*.tar")):
        subprocess.run(["ctr", "-a", _SOCKET, "-n", "k8s.io", "images", "import", str(image)], check=True)
    return pid


def main(node: str) -> None:
    folder, config = run() / node, kubeconfig(f"system:node:{node}")
    subprocess.run(["hostname", node], check=True)
    os.environ["PATH"] = f"{cache() / 'bin'}:{os.environ['PATH']}"
    _mounts(folder)
    started = {_containerd(folder): "containerd"}
    kubelet = _start(
        folder,
        "kubelet",
        program("kubelet"),
        f"--config={folder / 'kubelet.yaml'}",
        f"--kubeconfig={config}",
        f"--hostname-override={node}",
        f"--node-ip={address(node)}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
    )
    proxy = _start(folder, "kube-proxy", program("kube-proxy"), f"--config={folder / 'proxy.yaml'}")
    admin = str(kubeconfig("admin"))
    _until(program("kubectl"), f"--kubeconfig={admin}", "get", "node", node)  # kube-router ends without its node
    firewall = _start(
        folder,
        "kube-router",
        program("kube-router"),
        f"--kubeconfig={admin}",
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-firewall=true",
        "--run-loadbalancer=false",
        f"--hostname-override={node}",
        f"--service-cluster-ip-range={SERVICES}",
        "--health-port=0",
        "--metrics-port=0",
        NODE_NAME=node,
    )
    started |= {kubelet: "kubelet", proxy: "kube-proxy", firewall: "kube-router"}
    while True:  # as the first process of its namespace it reaps orphans, too
        pid, status = os.wait()
        if pid in started:
            log = (folder / f"{started[pid]}.log").read_text(errors="replace")
            raise SystemExit(f"{started[pid]} ended with {os.waitstatus_to_exitcode(status)}: {log[-1500:]}")


if __name__ == "__main__":
    main(sys.argv[1])
