"""The names and paths that an agent wants to reserve, compared with those that it holds already. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from codomyrmex.concurrency import InvalidName
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.waitqueue.scopes import Scopes, widened


class Held(Protocol):
    """A reservation, as far as it is compared here."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def tree(self) -> str | None: ...
    @property
    def shared(self) -> bool: ...


H = TypeVar("H", bound=Held)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Names, and paths of one tree, to reserve together."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str
    shared: bool

    @classmethod
    def of(cls, names: Iterable[str], paths: Sequence[str], tree: str, shared: bool) -> Wanted:
        """The names and paths in the form that the library uses. Raises ``InvalidName`` or ``ValueError``."""
        scopes = Scopes.of(paths).paths if paths else ()
        return cls(tuple(dict.fromkeys(map(checked, names))), scopes, checked(tree), shared)

    def __bool__(self) -> bool:
        return bool(self.names or self.paths)

    def without(self, held: Iterable[Held]) -> Wanted:
        """The part that none of ``held`` holds already. A shared reservation holds nothing exclusively."""
        enough = [one for one in held if self.shared or not one.shared]
        named = {name for one in enough for name in one.names}
        scopes = [Scopes(one.paths) for one in enough if one.tree == self.tree]
        names = tuple(name for name in self.names if name not in named)
        paths = tuple(path for path in self.paths if not any(one.covers(path) for one in scopes))
        return Wanted(names, paths, self.tree, self.shared)

    def conflicts_with(self, one: Held) -> bool:
        """True if the two cannot be held at the same time."""
        if self.shared and one.shared:
            return False
        if not set(self.names).isdisjoint(one.names):
            return True
        return one.tree == self.tree and Scopes(self.paths).overlaps(Scopes(one.paths))

    def touched(self, held: Iterable[H]) -> list[H]:
        """Those of ``held`` that have a name or a path in common with this."""
        alone = Wanted(self.names, self.paths, self.tree, shared=False)
        return [one for one in held if alone.conflicts_with(one)]


def named(held: Iterable[H], name: str) -> list[H]:
    """Those of ``held`` that hold a name, or a path, that was reserved as ``name``."""
    as_name, as_path = _formed(checked, name), _formed(widened, name)
    return [one for one in held if as_name in one.names or as_path in one.paths]


def is_like_a_path(name: str) -> bool:
    """True for a name that was likely meant as a path: ``src/a.py`` or ``a.py``, but not ``file_edit:src/a.py``."""
    return ":" not in name and ("/" in name or re.search(r"\w\.[A-Za-z]\w{0,4}$", name) is not None)


def _formed(form: Callable[[str], str], text: str) -> str | None:
    try:
        return form(text)
    except InvalidName:  # a name may not be a path, nor a path a name
        return None
