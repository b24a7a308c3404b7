"""Hosts of our own: network namespaces on a bridge, each of which can be cut off. Needs root and ``ip`` on Linux."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from tests.workers import WORKER

_NET = f"10.213.{80 + WORKER}"
_numbers = itertools.count()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host:
    """A network namespace with one address."""

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self.address = f"{_NET}.{number}"
        self.prefix = ("ip", "netns", "exec", name)  # before a command that is to run there

    def cut(self) -> None:
        """Cut the host off: nothing reaches or leaves it. Connections are not closed, they fall silent."""
        _ip("link", "set", f"{self._name}-v", "down")

    def heal(self) -> None:
        _ip("link", "set", f"{self._name}-v", "up")


def missing() -> str | None:
    """The reason why hosts cannot be made here, or None."""
    if sys.platform != "linux" or not shutil.which("ip"):
        return "network namespaces need Linux and iproute2"
    name = f"cx{os.getpid()}t"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """``count`` hosts that reach one another and are reached from here."""
    stem = f"cx{os.getpid() % 10_000}x{next(_numbers) % 100}"  # the kernel frees a name some time after its use
    bridge = f"{stem}br"
    made = [Host(f"{stem}n{number}", number) for number in range(1, count + 1)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{_NET}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        _forward("-I", bridge)
        for host in made:
            name = host._name
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}-v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}-v", "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for host in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host._name)
        _forward("-D", bridge)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _forward(change: str, bridge: str) -> None:
    """Where Docker runs, the kernel forwards nothing between bridges' ports that no rule allows."""
    if shutil.which("iptables"):
        rule = ("iptables", change, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT")
        subprocess.run(rule, check=False, capture_output=True)
