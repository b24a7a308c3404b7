"""The paths that a live reservation of an agent covers, and the reason why another path is not covered. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codomyrmex.concurrency import InvalidName
from codomyrmex.concurrency.cli.agents.outcomes import Holder
from codomyrmex.concurrency.waitqueue.scopes import Scopes, ancestors, normalised, widened

_MANY = 6  # paths of a command to type


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """A path, and if a reservation of the agent covers it.

    ``reserve`` is the path to reserve for it, empty if it is covered: itself, or its directory if its name cannot be
    reserved. ``held_by`` are the other holders that it would wait for. ``shared`` is true if the agent holds
    it as a reader.
    """

    path: str
    covered: bool
    reserve: str
    shared: bool
    held_by: tuple[Holder, ...]


def judge(paths: Iterable[str], agent: str, holders: Sequence[Holder]) -> list[PathVerdict]:
    """The verdict on each path, by the holders in its tree. Only reservations of the agent cover a path, and a shared
    one covers nothing: a reader does not write."""
    mine = [one for one in holders if one.agent == agent and one.expires_in is not None]
    others = [one for one in holders if one not in mine]
    return [_verdict(path, mine, others) for path in dict.fromkeys(paths)]


def to_reserve(missing: Sequence[PathVerdict], holders: Sequence[Holder]) -> tuple[str, ...]:
    """The paths to reserve for those that are not covered. Instead of many paths it is the directory that has them all,
    if that is not the whole tree, and no further holder is in its way."""
    paths = tuple(dict.fromkeys(one.reserve for one in missing))
    if len(paths) <= _MANY:
        return paths
    above = set.intersection(*(set(ancestors(path.rstrip("/"))) for path in paths))
    common = Scopes((f"{max(above, key=len)}/",)) if above - {""} else None
    in_the_way = [one for verdict in missing for one in verdict.held_by]
    if common is None or any(one not in in_the_way and common.overlaps(_scopes(one)) for one in holders):
        return paths
    return common.paths


def _verdict(path: str, mine: Sequence[Holder], others: Sequence[Holder]) -> PathVerdict:
    nearest = _nearest(path)
    covering = [one for one in mine if Scopes(one.paths).covers(nearest)]
    if any(not one.shared for one in covering):
        return PathVerdict(path, True, "", False, ())
    reserve = widened(nearest)
    held_by = tuple(one for one in others if Scopes((reserve,)).overlaps(_scopes(one)))
    return PathVerdict(path, False, reserve, bool(covering), held_by)


def _scopes(one: Holder) -> Scopes:
    return Scopes(one.paths, one.shared)


def _nearest(path: str) -> str:
    """``path`` itself, or the nearest directory above it that can be reserved if its own name cannot."""
    try:
        return normalised(path)
    except InvalidName:
        above = ancestors(path.rstrip("/"))[0]
        return _nearest(f"{above}/" if above else "")
