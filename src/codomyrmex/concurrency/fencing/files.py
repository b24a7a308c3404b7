"""Files on a shared disk that only the latest holder of a lock replaces.

Beside ``report.txt`` lie ``.report.txt.fencing``, with the highest token of each lock that was seen, and
``.report.txt.fencing-lock``, whose POSIX lock lets one process at a time compare and replace. A replacement is written
to ``.report.txt.fencing-new``, synced and renamed. The token is recorded before the file is replaced, so a crash in
between leaves the old file, and earlier holders stay out.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from codomyrmex.concurrency.decode import MAX_NUMBER
from codomyrmex.concurrency.fencing.fence import Fence, Granted, Reserved, fence_with_paths, rejected
from codomyrmex.concurrency.fencing.unavailable import FencingUnavailable

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class _Turn:
    """A lock among the threads of this process: to POSIX locks they are all one holder."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_turns: WeakValueDictionary[tuple[int, int, str], _Turn] = WeakValueDictionary()
_turns_lock = threading.Lock()


def replace(path: str | os.PathLike[str], data: str | bytes, grant: Granted | Reserved) -> None:
    """Replace the content of a file, or make the file, if no later holder of the lock was seen there.

    A reader sees the old content or the new, never a part. Text is written in UTF-8. The call blocks while another one
    replaces or reads this file; in an event loop, call it by ``asyncio.to_thread``.

    Args:
        path: the file, in a folder that is there. A symbolic link stays, and its target is replaced.
        data: the whole new content.
        grant: the grant of a lock or of paths or the term of an election, asyncio or blocking, or a reservation.

    Raises ``FencedWriteRejected`` if a higher token was seen, and ``FencingUnavailable`` where there are no POSIX locks
    (Windows, some file systems) or the record is damaged; then nothing was written. Raises ``TypeError`` or
    ``ValueError`` for a grant that does not exclude others, and ``OSError`` as the file system does.
    """
    if not isinstance(data, str | bytes):
        raise TypeError(f"data must be str or bytes, not {type(data).__name__}")
    content = data.encode() if isinstance(data, str) else data
    fence, target = fence_with_paths(grant), _resolved(path)
    with _locked(target):
        _advance(target, fence)
        _put(target, target, content)


def read(path: str | os.PathLike[str], grant: Granted | Reserved) -> bytes:
    """The content of a file. From then on no earlier holder of the lock can replace it.

    Read a file that you are about to change with this function. Raises as ``replace`` does, and ``FileNotFoundError``
    if there is no such file.
    """
    fence, target = fence_with_paths(grant), _resolved(path)
    with _locked(target):
        _advance(target, fence)
        return target.read_bytes()


def _resolved(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{str(path)!r} is not a regular file, so it cannot be replaced")
    return target


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.fencing{suffix}")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep every other thread and process out of ``target``."""
    try:
        import fcntl
    except ImportError:
        raise FencingUnavailable(
            "files cannot be fenced on Windows, which has no POSIX locks; fence the write in a database, or run this "
            "on Linux or macOS"
        ) from None
    turn = _turn_of(target)
    with turn.lock, _beside(target, "-lock").open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise FencingUnavailable(
                f"the file system of {str(target)!r} has no POSIX locks ({error.strerror}); put the file on one that "
                "has, such as NFSv4 or a local disk"
            ) from error
        yield


def _turn_of(target: Path) -> _Turn:
    folder = target.parent.stat()
    key = (folder.st_dev, folder.st_ino, target.name)
    with _turns_lock:
        turn = _turns.get(key)
        if turn is None:
            turn = _turns[key] = _Turn()
        return turn


def _advance(target: Path, fence: Fence) -> None:
    """Record the token of ``fence``, or raise ``FencedWriteRejected``."""
    record = _beside(target, "")
    seen = _tokens_in(record)
    for name in fence.names:
        if seen.get(name, 0) > fence.token:
            raise rejected(name, fence.token, seen[name], "nothing was written")
    advanced = seen | dict.fromkeys(fence.names, fence.token)
    if advanced != seen:
        _put(target, record, json.dumps(advanced, indent=1).encode())


def _tokens_in(record: Path) -> dict[str, int]:
    try:
        found = json.loads(record.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if isinstance(found, dict) and all(type(token) is int and 0 < token <= MAX_NUMBER for token in found.values()):
        return found
    raise FencingUnavailable(
        f"{str(record)!r} is damaged, so the highest token is unknown; delete it when no earlier holder is left"
    )


def _put(target: Path, path: Path, content: bytes) -> None:
    """Replace ``path``, which is ``target`` or its record, so that a crash leaves the old content or the new."""
    new, mode = _beside(target, "-new"), _mode_of(target)
    with suppress(FileNotFoundError):
        new.unlink()  # a crash left it
    with open(new, "xb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _mode_of(path: Path) -> int | None:
    """The permissions of a file; None if there is no such file."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
