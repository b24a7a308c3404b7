"""The servers that peers need, from Debian's packages, each made to write to disk before it answers, as etcd does."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

_ZOOKEEPER = Path("/usr/share/java/zookeeper.jar")


def missing(server: str) -> str | None:
    """Why a server cannot run here, or nothing."""
    there = {
        "etcd": True,
        "redis": shutil.which("redis-server"),
        "zookeeper": _ZOOKEEPER.exists() and shutil.which("java"),
    }[server]
    return None if there else f"{server} is not installed"


@asynccontextmanager
async def redis() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = ["redis-server", "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "yes"]
        async with _running([*command, "--appendfsync", "always"], port):
            yield f"redis://127.0.0.1:{port}"


@asynccontextmanager
async def zookeeper() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        settings = {
            "dataDir": folder,
            "clientPort": port,
            "clientPortAddress": "127.0.0.1",
            "tickTime": 2000,
            "maxClientCnxns": 0,
            "admin.enableServer": "false",
        }
        settings_file = Path(folder, "zoo.cfg")
        settings_file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        async with _running(["java", "-cp", str(_ZOOKEEPER), main, str(settings_file)], port):
            yield f"zookeeper://127.0.0.1:{port}"


@asynccontextmanager
async def _running(command: Sequence[str], port: int) -> AsyncIterator[None]:
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=nothing, stderr=nothing)
    try:
        async with asyncio.timeout(30):
            while not await _answers(port):
                if process.returncode is not None:
                    raise RuntimeError(f"{command[0]} ended with exit code {process.returncode}")
                await asyncio.sleep(0.1)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port
