"""The control plane: etcd, the API server, the controller manager and the scheduler, in one network namespace."""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path

from tests.kubernetes.lab.places import CONTROL, NODES, PODS, SERVICES, inside, namespace, program, run
from tests.kubernetes.lab.process import Process

_USERS = {
    "admin": ("1", "system:masters"),
    "system:kube-controller-manager": ("2", ""),
    "system:kube-scheduler": ("3", ""),
    "system:kube-proxy": ("4", ""),
    **{f"system:node:{node}": (node, "system:nodes") for node in NODES},
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def kubeconfig(user: str) -> Path:
    return run() / "cp" / f"{user.replace(':', '-')}.conf"


def start(etcd_version: str, whole: bool) -> list[Process]:
    """Start the control plane, and return its processes; without ``whole`` only etcd and the API server."""
    folder = run() / "cp"
    folder.mkdir(parents=True)
    _network()
    _credentials(folder)
    started = [_etcd(folder, etcd_version), _api_server(folder)]
    _wait_for_api(started[1])
    if whole:
        started += [_controllers(folder), _scheduler(folder)]
    return started


def _network() -> None:
    """A bridge that the nodes are joined to. It exists in the control plane's namespace alone."""
    own = namespace("cp")
    ip("netns", "add", own)
    ip("-n", own, "link", "set", "lo", "up")
    ip("-n", own, "link", "add", "lan0", "type", "bridge")
    ip("-n", own, "addr", "add", f"{CONTROL}/24", "dev", "lan0")
    ip("-n", own, "link", "set", "lan0", "up")


def _credentials(folder: Path) -> None:
    """A token for each user, a kubeconfig with it, and the key that signs the tokens of service accounts."""
    lines = []
    for user, (uid, groups) in _USERS.items():
        token = secrets.token_hex(16)
        lines.append(f"{token},{user},{uid}{f',{groups}' if groups else ''}\n")
        kubeconfig(user).write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n"
            "clusters:\n"
            f'  - {{name: lab, cluster: {{server: "https://{CONTROL}:6443", insecure-skip-tls-verify: true}}}}\n'
            f'users: [{{name: me, user: {{token: "{token}"}}}}]\n'
            "contexts: [{name: lab, context: {cluster: lab, user: me}}]\n"
        )
    (folder / "tokens.csv").write_text("".join(lines))
    subprocess.run(["openssl", "genrsa", "-out", folder / "accounts.key", "2048"], check=True, capture_output=True)


def _etcd(folder: Path, version: str) -> Process:
    peer, client = "http://127.0.0.1:2380", "http://127.0.0.1:2379"
    return Process(
        folder / "etcd",
        *inside("cp"),
        program(f"etcd-{version}"),
        "--name=kubernetes",
        f"--data-dir={folder / 'etcd.data'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=kubernetes={peer}",
        "--unsafe-no-fsync",
    )


def _api_server(folder: Path) -> Process:
    key = folder / "accounts.key"
    return Process(
        folder / "kube-apiserver",
        *inside("cp"),
        program("kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        f"--advertise-address={CONTROL}",
        "--secure-port=6443",
        f"--cert-dir={folder / 'pki'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICES}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
    )


def _controllers(folder: Path) -> Process:
    config = kubeconfig("system:kube-controller-manager")
    return Process(
        folder / "kube-controller-manager",
        *inside("cp"),
        program("kube-controller-manager"),
        *_clients_flags(config),
        f"--service-account-private-key-file={folder / 'accounts.key'}",
        f"--root-ca-file={folder / 'pki' / 'apiserver.crt'}",
        "--use-service-account-credentials",
        "--allocate-node-cidrs",
        f"--cluster-cidr={PODS}",
        "--node-monitor-grace-period=40s",
    )


def _scheduler(folder: Path) -> Process:
    config = kubeconfig("system:kube-scheduler")
    return Process(folder / "kube-scheduler", *inside("cp"), program("kube-scheduler"), *_clients_flags(config))


def _clients_flags(config: Path) -> tuple[str, ...]:
    return (
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--leader-elect=false",
    )


def _wait_for_api(server: Process) -> None:
    """Wait until the API server is ready. Raises ``RuntimeError`` if it ends, or takes more than a minute."""
    probe = (*inside("cp"), program("kubectl"), f"--kubeconfig={kubeconfig('admin')}", "get", "--raw", "/readyz")
    deadline = time.monotonic() + 60
    while subprocess.run(probe, capture_output=True, check=False).returncode:
        server.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the API server is not ready after 60 s: {server.tail()}")
        time.sleep(0.3)
