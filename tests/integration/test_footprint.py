"""The parts of a process with an open session: its threads, and the libraries that it has loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import EmbeddedEtcd

_PROCESS = """
import asyncio, json, os, sys, threading, time
from codomyrmex.concurrency import DistributedLock, Session

async def main():
    async with Session() as session, DistributedLock("x", session):
        deadline = time.monotonic() + 5
        while len(threading.enumerate()) > 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        tasks = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 2
        names = [one.name for one in threading.enumerate()]
        print(json.dumps({"names": names, "tasks": tasks, "loaded": [*sys.modules]}))

asyncio.run(main())
"""


def seen(endpoint: str, namespace: str) -> dict[str, Any]:
    """The threads and modules of a new process with a session, over the default transport."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CODOMYRMEX_ETCD_")}
    environment |= {"CODOMYRMEX_ETCD_ENDPOINTS": endpoint, "CODOMYRMEX_ETCD_NAMESPACE": namespace}
    command = (sys.executable, "-c", _PROCESS)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_has_no_thread_but_the_main_one_and_the_keepalives(
    etcd: EmbeddedEtcd, namespace: str, host: str
) -> None:
    parts = urlsplit(etcd.endpoint)
    if parts.hostname != "127.0.0.1":
        pytest.skip("not run: the etcd of this run has a name of its own")
    found = seen(f"http://{host}:{parts.port}", namespace)
    main, keepalive = found["names"]
    assert main == "MainThread" and keepalive.startswith("etcd-keepalive-")
    assert found["tasks"] == 2, "threads that Python has not started"


def test_a_process_loads_no_library_that_its_transport_does_not_need(etcd: EmbeddedEtcd, namespace: str) -> None:
    loaded = seen(etcd.endpoint, namespace)["loaded"]
    unneeded = {"grpc", "aiohttp", "requests", "etcd3", "pydantic_settings", "rich", "click", "urllib.request"}
    assert unneeded.isdisjoint(loaded) and "hpack" in loaded
