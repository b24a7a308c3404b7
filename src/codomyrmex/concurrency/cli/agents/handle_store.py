"""The handles of an agent's reservations, kept in files between its calls: one file a reservation.

The files are in ``$XDG_STATE_HOME/codomyrmex/reservations/<namespace>/<agent>/``. A file is written aside and renamed,
so that a reader in a parallel call sees all of it or nothing, and a killed writer leaves no half. Whoever can read a
handle can use it: directories are 0700, files 0600, and no file name tells a handle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
from pydantic import TypeAdapter

from codomyrmex.concurrency import ConcurrencyError, decode
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.models import to_json

_VERSION = 1
_LONGEST = 100  # characters of an escaped text; a file name may have 255 bytes
_ASIDE = ".new-"  # a file that is being written; no handle's name begins with a dot
_ABANDONED = 60.0  # seconds after which its writer must have been killed
_MOST = 1 << 20  # bytes of a file


@dataclass(frozen=True, slots=True)
class KeptHandle:
    """A reservation as its agent keeps it."""

    handle: str = field(repr=False)
    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str
    shared: bool


@dataclass(frozen=True, slots=True)
class _Record:
    version: int
    namespace: str
    agent: str
    kept: KeptHandle


_RECORD = TypeAdapter(_Record)


class HandleStore:
    """The kept handles of one agent in one namespace."""

    def __init__(self, namespace: str, agent: str) -> None:
        self._namespace = namespace
        self._agent = agent
        self.directory = _state_home() / "codomyrmex" / "reservations" / file_name(namespace) / file_name(agent)

    def open(self) -> None:
        """Make the directory. Raises an error that names it, and says what to do, if no file can be written there."""
        try:
            for directory in reversed((self.directory, *self.directory.parents)):
                directory.mkdir(mode=0o700, exist_ok=True)
            os.chmod(self.directory, 0o700)
            self._remove_abandoned()
            descriptor, aside = tempfile.mkstemp(prefix=_ASIDE, dir=self.directory)
            os.close(descriptor)
            os.unlink(aside)
        except OSError as error:
            raise self._unusable(error) from None

    def keep(self, kept: KeptHandle) -> None:
        """Write a reservation's file. The directory must be open."""
        record = _Record(_VERSION, self._namespace, self._agent, kept)
        try:
            descriptor, aside = tempfile.mkstemp(prefix=_ASIDE, dir=self.directory)  # with the mode 0600
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(to_json(record), file)
                os.replace(aside, self._file(kept))
            except BaseException:
                os.unlink(aside)
                raise
        except OSError as error:
            raise self._unusable(error) from None

    def drop(self, kept: KeptHandle) -> None:
        """Remove every file that has this handle, also a copy under another name. A parallel call may do the same."""
        try:
            for path, one in self._read_all(self._files())[0].items():
                if one.handle == kept.handle:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def all(self, *, warn: bool = True) -> list[KeptHandle]:
        """Every kept reservation once, in the order of names and paths. With ``warn``, a line on stderr names each file
        that is damaged or foreign."""
        try:
            kept, strangers = self._read_all(self._files())
        except OSError as error:
            raise self._unusable(error) from None
        for line in strangers if warn else ():
            click.echo(f"warning: {line}", err=True)
        return sorted({*kept.values()}, key=lambda one: (one.names, one.tree, one.paths))

    def _files(self) -> list[Path]:
        try:
            return [path for path in self.directory.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []

    def _read_all(self, paths: list[Path]) -> tuple[dict[Path, KeptHandle], list[str]]:
        kept, strangers = {}, []
        for path in paths:
            try:
                kept[path] = self._read(path)
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and not path.is_symlink():
                    continue  # a parallel call released it
                reason = getattr(error, "strerror", None) or error
                strangers.append(f"{visible(path)} is left out: {visible(reason)}; remove it if nobody needs it")
        return kept, strangers

    def _read(self, path: Path) -> KeptHandle:
        """The reservation in a file. Raises ``OSError`` or ``ValueError`` with the reason why there is none."""
        with open(path, "rb", opener=_without_waiting) as file:
            record = decode.record(_RECORD, file.read(_MOST))
        if record is None or record.version != _VERSION:
            raise ValueError("it is damaged, or of another version of this program")
        if (record.namespace, record.agent) != (self._namespace, self._agent):
            raise ValueError(f"it belongs to the agent {record.agent!r} in the namespace {record.namespace!r}")
        return record.kept

    def _file(self, kept: KeptHandle) -> Path:
        return self.directory / f"{hashlib.sha256(kept.handle.encode()).hexdigest()[:32]}.json"

    def _remove_abandoned(self) -> None:
        for path in self.directory.glob(f"{_ASIDE}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _unusable(self, error: OSError) -> ConcurrencyError:
        reason = error.strerror or error
        return ConcurrencyError(
            f"handles of reservations cannot be kept in {self.directory}: {reason}; "
            "make it writable, or name another directory by XDG_STATE_HOME"
        )


def file_name(text: str) -> str:
    """A name of one path segment for ``text``: different for different texts, readable for plain ones."""
    raw = text.encode(errors="surrogateescape")
    escaped = re.sub(rb"[^A-Za-z0-9_@+=.-]|^\.", lambda found: f"%{found[0][0]:02X}".encode(), raw).decode()
    if len(escaped) <= _LONGEST:
        return escaped
    return f"{escaped[:_LONGEST]}%{hashlib.sha256(raw).hexdigest()[:32]}"


def _state_home() -> Path:
    """``XDG_STATE_HOME`` if it is absolute, as its specification demands; else its default."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".local" / "state"


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe of this name must not stop us
