"""The file of a record: JSON lines that are appended in batches, each on disk before the next one.

A process that dies leaves at most one torn line, which the next one removes. A disk that is full leaves the batches
that were written before. The file is locked while a recorder has it open.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from codomyrmex.concurrency.errors import ConcurrencyError

try:
    import fcntl
except ImportError:  # Windows has no such locks: two recorders of one file are not refused
    fcntl = None  # type: ignore[assignment]

_BEGINNING = b'{"begin": '


class Written(NamedTuple):
    """The end of a record: it has ``lines`` lines of ``revision``, the last one that it has.

    ``steps`` is False if these lines are the entries at that revision, as a beginning or a gap has them.
    """

    revision: int
    lines: int
    steps: bool


class RecordFile:
    """A file to which a recorder appends. Raises ``ConcurrencyError`` that says what is wrong with it."""

    def __init__(self, path: Path, namespace: str, prefix: str) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._error("cannot be opened", error) from None
        try:
            self._lock()
            self._check(namespace, prefix)
            self._size = self._repaired()
            self.written = self._last()
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write lines; they are on disk when this returns. If it fails, the file is as it was before."""
        batch = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        try:
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            _write(self._descriptor, batch)
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):  # else the next recorder removes the torn line
                os.ftruncate(self._descriptor, self._size)
            raise self._error("cannot be written; all earlier lines are in it", error) from None
        self._size += len(batch)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ConcurrencyError(f"{self._path} is no regular file; name a file that can be appended to")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConcurrencyError(f"another recorder writes to {self._path}; give each one a file") from None

    def _check(self, namespace: str, prefix: str) -> None:
        """Refuse a file that is no record, and one of other locks."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            first = file.readline()
        if not first or (not first.endswith(b"\n") and _is_torn_beginning(first)):
            return
        begin = _parsed(first).get("begin")
        if not isinstance(begin, dict):
            raise ConcurrencyError(f"{self._path} is no record of locks; choose another file")
        if (begin.get("namespace"), begin.get("prefix")) != (namespace, prefix):
            raise ConcurrencyError(
                f"{self._path} is a record of the namespace {begin.get('namespace')!r} with the prefix "
                f"{begin.get('prefix')!r}; choose another file"
            )

    def _repaired(self) -> int:
        """The size of the file without a torn last line, which is cut off."""
        size = os.fstat(self._descriptor).st_size
        if size:
            with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as content:
                size = content.rfind(b"\n") + 1
            os.ftruncate(self._descriptor, size)
        return size

    def _last(self) -> Written | None:
        """The end of the record; None if it is new."""
        if not self._size:
            return None
        last, number = 0, 0
        for line in map(_parsed, self._backwards()):
            if "begin" in line or "gap" in line:
                at = line["begin"]["revision"] if "begin" in line else line["gap"]["to"]
                return Written(last or at, number, last > at)
            if not isinstance(line.get("revision"), int):
                break
            if last and line["revision"] != last:
                return Written(last, number, steps=True)
            last, number = line["revision"], number + 1
        raise ConcurrencyError(f"{self._path} has a line that is none of a record; choose another file")

    def _backwards(self) -> Iterator[bytes]:
        """The lines of the file, the last one first."""
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as content:
            end = self._size - 1
            while end > 0:
                begin = content.rfind(b"\n", 0, end) + 1
                yield content[begin:end]
                end = begin - 1

    def _error(self, what: str, error: OSError) -> ConcurrencyError:
        return ConcurrencyError(f"{self._path} {what}: {error.strerror}")


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a record, to which a recorder may append at this moment. Raises ``ConcurrencyError``."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
    except OSError as error:
        raise ConcurrencyError(f"{path} cannot be read: {error.strerror}") from None


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _is_torn_beginning(line: bytes) -> bool:
    return line.startswith(_BEGINNING) or _BEGINNING.startswith(line)


def _parsed(line: bytes) -> dict[str, Any]:
    """The object in a line; empty if there is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
