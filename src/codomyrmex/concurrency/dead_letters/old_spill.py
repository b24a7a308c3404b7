"""The files of release 0.1, a record a line, taken over as files of ``spill.py``.

Their names, ``<namespace>.<queue>.<pid>.jsonl`` or ``.sending``, do not show where a namespace ends. A file that may
belong to another queue is left for a person, with one warning.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.spill import Spill, is_stale, state_folder
from codomyrmex.concurrency.keys import escape

log = logging.getLogger("codomyrmex.concurrency")

_warned: set[str] = set()  # names of files that were left


def left(namespace: str, queue: str) -> list[Path]:
    """The files that processes of the earlier release left for this queue."""
    stem = f"{namespace}.{escape(queue)}"
    try:
        names = sorted(os.listdir(state_folder()))
    except FileNotFoundError:
        return []
    named = [state_folder() / name for name in names if name not in _warned and _is_named(name, stem)]
    found = [path for path in named if path.is_file()]
    if stem.count(".") > 1:
        for path in found:
            _warn(path, f"it may hold the dead letters of another queue than {queue!r}")
        return []
    return [path for path in found if _is_left(path)]


def take_over(spill: Spill, path: Path) -> None:
    """Make a record of each line of a file, then remove it; raises ``OSError`` if there is no space for them."""
    if not os.access(path, os.R_OK | os.W_OK):
        if path.exists():
            _warn(path, "this user may not read or remove it")
        return
    seen: set[str] = set()  # one record may be there very many times
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            entry = record.decode(b"", line)
            if entry is None:
                spill.keep_aside(f"{path.name}.{number}", line)
            elif entry.id not in seen:
                seen.add(entry.id)
                spill.write(entry)
    path.unlink(missing_ok=True)


def _warn(path: Path, why: str) -> None:
    _warned.add(path.name)
    log.warning("the spilled dead letters in %s are left where they are: %s", path, why)


def _is_named(name: str, stem: str) -> bool:
    pid, _, kind = name.removeprefix(f"{stem}.").partition(".")
    return name.startswith(f"{stem}.") and pid.isascii() and pid.isdigit() and kind in ("jsonl", "sending")


def _is_left(path: Path) -> bool:
    """True if no process of the earlier release uses the file any more: its process is gone, or another process has its
    number by now. A living process that cannot send rewrites its file every two seconds."""
    pid = int(path.name.split(".")[-2])
    return pid == os.getpid() or not _is_alive(pid) or is_stale(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
