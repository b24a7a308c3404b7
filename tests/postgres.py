"""A PostgreSQL of its own for a test run, on a free port of the loopback: Debian's package ``postgresql`` has it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"  # root must not run the server


def missing() -> str:
    """The reason why no PostgreSQL can be started here; empty if one can."""
    if not _programs():
        return "PostgreSQL is not installed (apt-get install --no-install-recommends postgresql)"
    if os.geteuid() == 0 and not shutil.which("runuser"):
        return "root cannot start PostgreSQL without runuser"
    return ""


@contextmanager
def served() -> Iterator[str]:
    """Start a server; yields the connection string of its superuser."""
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), _free_port()
    data = folder / "data"
    if os.geteuid() == 0:
        shutil.chown(folder, _USER)
    try:
        _run("initdb", "--pgdata", data, "--auth=trust", f"--username={_USER}", "--no-sync", "--encoding=UTF8")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        _run("pg_ctl", "--pgdata", data, "--wait", "--log", folder / "log", "--options", options, "start")
        try:
            yield f"host=127.0.0.1 port={port} user={_USER} dbname=postgres"
        finally:
            _run("pg_ctl", "--pgdata", data, "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """The folder of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("pg_ctl")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _run(program: str, *arguments: str | Path) -> None:
    programs = _programs()
    assert programs
    command = [programs / program, *arguments]
    if os.geteuid() == 0:
        command = ["runuser", "-u", _USER, "--", *command]
    # The server inherits its output from pg_ctl, so a pipe would stay open.
    subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
