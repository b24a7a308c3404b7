"""Files for dead letters while etcd is away: a folder for each queue, and in it a file for each record.

    <state>/codomyrmex/dead-letters/<namespace>/<queue>/<id>.json       a record that etcd does not have yet
                                                        <id>.writing    one that is being written
                                                        <id>.rejected   one that cannot be sent, for a person to see
                                                        sending.lock    locked by the process that sends at the moment

A file appears whole, by a rename, and is removed when etcd has its record. So a crash leaves no half record, and
a sent record is not sent again. The first line names the namespace and the queue, the second is the record as in etcd.
Files belong to no process: the next process of the user that sends them sends all.

Every function here may block, and is called in a thread; only ``lock`` and ``remove`` are called by the event loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes may send one record, and the first write wins
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("codomyrmex.concurrency")

_STALE = 3600.0  # seconds without a write after which a file counts as finished
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST = 180  # of a file name's 255 bytes


def state_folder() -> Path:
    """``$XDG_STATE_HOME/codomyrmex/dead-letters``, by default in ``~/.local/state``; raises ``OSError``."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise OSError(f"there is no folder for spilled dead letters; set XDG_STATE_HOME ({error})") from None
    return state / "codomyrmex" / "dead-letters"


def segment(name: str) -> str:
    """The file name for a name. No two names share one, not even on a file system that ignores case. A long name is
    hashed; ``=`` marks a hash."""
    text = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in name.encode())
    return text if len(text) <= _LONGEST else "=" + hashlib.sha256(name.encode()).hexdigest()


class Spill:
    """The spilled records of one queue."""

    def __init__(self, namespace: str, queue: str) -> None:
        self._owner = namespace, queue
        self._header = json.dumps({"namespace": namespace, "queue": queue}).encode()
        self._left: set[str] = set()  # names of the files that it left alone, with a warning

    @property
    def folder(self) -> Path:
        return state_folder().joinpath(*map(segment, self._owner))

    def write(self, entry: DeadLetter) -> Path:
        """Write a record to its file; it is on disk when this returns. Raises ``OSError``."""
        folder = self._make_folder()
        path = folder / f"{segment(entry.id)}.json"
        part = path.with_suffix(".writing")
        try:
            with open(part, "wb", opener=_private) as file:
                file.write(self._header + b"\n" + record.encode(entry) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)  # a full disk gets its space back
            raise
        _sync(folder)
        return path

    def waiting(self) -> list[Path]:
        """The files to send, in the order in which their records were made. A file that a crash left half written is
        among them; it is rejected when it is read."""
        for path in self._named(".writing"):
            if is_stale(path):
                with contextlib.suppress(FileNotFoundError):
                    path.replace(path.with_suffix(".json"))
        return sorted(path for path in self._named(".json") if path.name not in self._left)

    def is_empty(self) -> bool:
        """True if there is nothing to send; cheap even with very many files."""
        whole = any(path.name not in self._left for path in self._named(".json"))
        return not whole and not any(map(is_stale, self._named(".writing")))

    def _named(self, suffix: str) -> Iterator[Path]:
        try:
            with os.scandir(self.folder) as found:
                yield from (Path(each.path) for each in found if each.name.endswith(suffix))
        except FileNotFoundError:
            return

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """The lock of the process that sends this queue's records; yields False if another process has it. The system
        takes the lock from a process that dies."""
        descriptor = os.open(self._make_folder() / "sending.lock", os.O_RDWR | os.O_CREAT, 0o600)
        _locks.add(descriptor)
        locked = False
        try:
            locked = _locked(descriptor)
            yield locked
        finally:
            if locked and fcntl:
                with contextlib.suppress(OSError):  # a child forked meanwhile may have the file open too
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            if descriptor in _locks:  # in a forked child it is closed already
                _locks.discard(descriptor)
                os.close(descriptor)

    def read(self, path: Path) -> DeadLetter | None:
        """The record in a file; None, with a line in the log, if this queue cannot send it."""
        try:
            header, _, line = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._leave(path, str(error))
            return None
        owner = _owner(header)
        if owner and owner != self._owner:
            self._leave(path, f"it belongs to the queue {owner[1]!r} of the namespace {owner[0]!r}")
            return None
        entry = record.decode(b"", line) if owner else None
        if entry is None:
            self.reject(path, "it cannot be read")
            return None
        try:
            record.encode(entry)
        except ValueError as error:
            self.reject(path, str(error))
            return None
        return entry

    def reject(self, path: Path, why: str) -> None:
        """Rename the file of a record that can never be stored, so that a person sees it."""
        aside = path.with_suffix(".rejected")
        path.replace(aside)
        log.error("a spilled dead letter cannot be stored (%s); it is kept in %s", why, aside)

    @staticmethod
    def remove(path: Path) -> None:
        """Delete the file of a record that etcd has."""
        path.unlink(missing_ok=True)

    def keep_aside(self, name: str, content: bytes) -> None:
        """Keep content that cannot be read as a record, so that a person sees it."""
        path = self._make_folder() / f"{segment(name)}.rejected"
        with open(path, "wb", opener=_private) as file:
            file.write(content)
        log.error("a spilled dead letter cannot be read; it is kept in %s", path)

    def _leave(self, path: Path, why: str) -> None:
        self._left.add(path.name)
        log.warning("the spilled dead letter %s is left where it is: %s", path, why)

    def _make_folder(self) -> Path:
        """Make the folder, and this library's folders above it, for this user alone."""
        folder = self.folder
        folder.parents[1].mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.mkdir(exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    """Write the names in a folder to disk too."""
    if fcntl is None:
        return  # Windows cannot
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_stale(path: Path) -> bool:
    """True if no process writes to the file any more, by its age."""
    try:
        return time.time() - path.stat().st_mtime > _STALE
    except FileNotFoundError:
        return False


def _owner(header: bytes) -> tuple[str, str] | None:
    """The namespace and the queue that a file's first line names."""
    try:
        match json.loads(header):
            case {"namespace": str(namespace), "queue": str(queue)}:
                return namespace, queue
    except (ValueError, RecursionError):
        pass
    return None


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: two processes may send one record, of which the first write wins
    return True


_locks: set[int] = set()  # open lock files; a child that kept them open would keep a dead parent's lock


def _close_locks() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)
