"""Where dead letters go while etcd is away: a local file, one JSON record a line, sent when etcd is back.

A record keeps its id, so one that is sent twice is stored once. A file belongs to the process that writes it; what a
process left behind is taken over by the next one of its user, which renames it first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.errors import PayloadTooLarge
from codomyrmex.concurrency.keys import escape

log = logging.getLogger("codomyrmex.concurrency")


def folder() -> Path:
    """``$XDG_STATE_HOME/codomyrmex/dead-letters``, by default in ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "codomyrmex" / "dead-letters"


class Spill:
    """The file of one queue and one process, and those that dead processes left."""

    def __init__(self, namespace: str, queue: str, where: Path | None = None) -> None:
        self._where = where or folder()
        self._stem = f"{namespace}.{escape(queue)}".replace("/", "_")
        self.path = self._where / f"{self._stem}.{os.getpid()}.jsonl"

    def write(self, entry: DeadLetter) -> Path:
        """Append a record and have it on disk before this returns; raises ``OSError``."""
        self._where.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(record.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return self.path

    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return any(self._files())

    async def send(self, add: Callable[[DeadLetter], Awaitable[str]]) -> int:
        """Send all there is; returns how many were sent. What cannot be sent stays, and the error is raised."""
        sent = 0
        for path in self._files():
            taken = path.with_name(f"{self._stem}.{os.getpid()}.sending")
            lines = (taken.read_bytes() if taken.exists() else b"") + path.read_bytes()
            taken.write_bytes(lines)
            if path != taken:
                path.unlink()
            for line in lines.splitlines():
                entry = record.decode(b"", line)
                if entry is None:
                    log.error("skipping a spilled dead letter that cannot be read: %.200r", line)
                    continue
                try:
                    await add(entry)
                except (PayloadTooLarge, ValueError) as error:
                    log.error("a spilled dead letter cannot be stored: %s", error)
                    continue
                sent += 1
            taken.unlink()
        return sent

    def _files(self) -> list[Path]:
        """Ours, and those whose process is gone."""
        if not self._where.is_dir():
            return []
        found = []
        for path in sorted(self._where.glob(f"{self._stem}.*")):
            pid = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
            if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
                found.append(path)
        return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
