"""Scopes: the paths of a tree that one entry asks for. Pure.

    src/parser/     a directory and everything below it
    README.md       this path
    (empty)         the whole tree
    src/**/*.py     a glob: taken as the directory of its literal beginning, ``src/``

Paths are relative to the root of the tree, with ``/`` between their parts, in NFC. A backslash is an ordinary
character. Two scopes overlap if a path of one equals, contains or lies in a path of the other, with or without a
trailing slash: a file may become a directory. Shared scopes do not overlap.

An entry's value has its scopes as ``"paths"`` and ``"shared"``. A value that this library would not have written counts
as the whole tree, exclusively: a foreign entry keeps everyone behind it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.errors import InvalidName
from codomyrmex.concurrency.keys import check_text

MAX_PATHS = 200
MAX_PATH_BYTES = 4096
MAX_PATH_DEPTH = 64
MAX_BYTES = 64 * 1024  # of the paths of one entry, as JSON
_GLOB = re.compile(r"[*?\[]")
_CACHED = 4096  # entries whose decoded scopes are kept


@dataclass(frozen=True, slots=True)
class Scopes:
    """The scopes of one entry: normalised paths, and whether they are shared with other readers.

    ``points`` are the paths without their trailing slashes, ``ancestors`` the directories above them, ``reach`` both.
    """

    paths: tuple[str, ...]
    shared: bool = False
    points: frozenset[str] = field(init=False, repr=False, compare=False)
    ancestors: frozenset[str] = field(init=False, repr=False, compare=False)
    reach: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        points = frozenset(path.rstrip("/") for path in self.paths)
        above = frozenset(directory for point in points for directory in ancestors(point))
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "ancestors", above)
        object.__setattr__(self, "reach", points | above)

    @classmethod
    def of(cls, paths: Iterable[str], shared: bool = False) -> Scopes:
        """The scopes that a user asks for: normalised, globs widened, each path once.

        Raises ``InvalidName`` for a path that cannot be one, ``ValueError`` for no path and for too many.
        """
        if isinstance(paths, str):
            raise TypeError(f"paths are several, not one str; did you mean [{paths!r}]?")
        found = tuple(dict.fromkeys(widened(path) for path in paths))
        if not found:
            raise ValueError('at least one path is needed; "" is the whole tree')
        scopes = cls(found, shared)
        if len(found) > MAX_PATHS:
            raise ValueError(f"at most {MAX_PATHS} paths fit one entry; {len(found)} were given; name a directory")
        if (size := len(scopes.fields().encode())) > MAX_BYTES:
            raise ValueError(f"the paths of one entry may have {MAX_BYTES} bytes; these have {size}; name a directory")
        return scopes

    def overlaps(self, other: Scopes) -> bool:
        """True if the two cannot be held at the same time."""
        if self.points.isdisjoint(other.reach) and self.ancestors.isdisjoint(other.points):
            return False
        return not (self.shared and other.shared)

    def covers(self, path: str) -> bool:
        """True if the scopes contain ``path``, which is taken literally: it is no glob."""
        path = normalised(path)
        if path in self.paths or (path + "/" if path else "") in self.paths:
            return True
        return any((above + "/" if above else "") in self.paths for above in ancestors(path.rstrip("/")))

    def fields(self) -> str:
        """The part of an entry's JSON value that tells the scopes."""
        paths = json.dumps(self.paths, ensure_ascii=False, separators=(",", ":"))
        return f',"paths":{paths}' + (',"shared":true' if self.shared else "")


class Occupied:
    """The scopes of the entries ahead of one entry, all together."""

    def __init__(self) -> None:
        self._exclusive: tuple[set[str], set[str]] = set(), set()
        self._shared: tuple[set[str], set[str]] = set(), set()

    def add(self, scopes: Scopes) -> None:
        """Add the scopes of the next entry."""
        points, reach = self._shared if scopes.shared else self._exclusive
        points |= scopes.points
        reach |= scopes.reach

    def overlaps(self, scopes: Scopes) -> bool:
        """True if ``scopes`` overlap those of an entry that was added."""
        if _meet(*self._exclusive, scopes):
            return True
        return not scopes.shared and _meet(*self._shared, scopes)


def _meet(points: set[str], reach: set[str], scopes: Scopes) -> bool:
    """True if one of ``points``, which have this ``reach``, equals, contains or lies in a path of ``scopes``."""
    return not (scopes.points.isdisjoint(reach) and scopes.ancestors.isdisjoint(points))


def ancestors(point: str) -> list[str]:
    """The directories above a path without a trailing slash; the last is the root of the tree, which has none."""
    found = []
    while point:
        point = point.rpartition("/")[0]
        found.append(point)
    return found


def normalised(path: str) -> str:
    """``path`` in the one form that it has in etcd; raises ``InvalidName`` if it cannot be one."""
    if not isinstance(path, str):
        raise InvalidName(f"a path must be a str, not {type(path).__name__}; a directory's ends with a slash")
    path = check_text(path, "a path", MAX_PATH_BYTES)
    if path.startswith("/"):
        raise InvalidName(f"a path is relative to the root of its tree: {path[:80]!r} begins with a slash")
    parts = path.split("/")
    if ".." in parts:
        raise InvalidName(f"a path must not leave its directory by '..': {path[:80]!r}")
    kept = [part for part in parts if part and part != "."]
    if len(kept) > MAX_PATH_DEPTH:
        raise InvalidName(f"a path may have {MAX_PATH_DEPTH} parts; this one has {len(kept)}")
    directory = kept and parts[-1] in ("", ".")
    return "/".join(kept) + ("/" if directory else "")


def widened(path: str) -> str:
    """``path``, normalised; of a glob, the directory of its literal beginning."""
    path = normalised(path)
    glob = _GLOB.search(path)
    return path[: path.rfind("/", 0, glob.start()) + 1] if glob else path


WHOLE_TREE = Scopes(("",))


@dataclass(frozen=True, slots=True)
class _Record:
    """The part of an entry's value that tells its scopes."""

    paths: tuple[str, ...]
    shared: bool = False


_RECORD = TypeAdapter(_Record)


@lru_cache(maxsize=_CACHED)
def scopes_in(value: bytes) -> Scopes:
    """The scopes that an entry's value tells; the whole tree, exclusively, if it tells none."""
    record = decode.record(_RECORD, value)
    return WHOLE_TREE if record is None else scopes_of(record.paths, record.shared)


def scopes_of(paths: tuple[str, ...], shared: bool) -> Scopes:
    """The scopes of an entry that has these paths in etcd; the whole tree, exclusively, if they cannot be any."""
    try:
        sound = 0 < len(paths) <= MAX_PATHS and all(normalised(path) == path for path in paths)
    except InvalidName:
        sound = False
    return Scopes(paths, shared) if sound else WHOLE_TREE
