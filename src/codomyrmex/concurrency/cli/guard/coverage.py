"""The paths that a live reservation of an agent covers, and the reason why another path is not covered. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codomyrmex.concurrency import InvalidName, ReservationInfo
from codomyrmex.concurrency.waitqueue.scopes import Scopes, ancestors, normalised, widened


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """A path, and if a reservation of the agent covers it.

    ``reserve`` is the path to reserve for it, empty if it is covered: itself, or its directory if its name cannot be
    reserved. ``held_by`` are the reservations of others that it would wait for. ``shared`` is true if the agent holds
    it as a reader.
    """

    path: str
    covered: bool
    reserve: str
    shared: bool
    held_by: tuple[ReservationInfo, ...]


def judge(paths: Iterable[str], tree: str, agent: str, reservations: Sequence[ReservationInfo]) -> list[PathVerdict]:
    """The verdict on each path. A shared reservation covers nothing: a reader does not write."""
    here = [one for one in reservations if one.tree == tree and one.paths]
    mine = [one for one in here if one.owner == agent]
    return [_verdict(path, mine, [one for one in here if one.owner != agent]) for path in dict.fromkeys(paths)]


def _verdict(path: str, mine: Sequence[ReservationInfo], others: Sequence[ReservationInfo]) -> PathVerdict:
    nearest = _nearest(path)
    covering = [one for one in mine if Scopes(one.paths).covers(nearest)]
    if any(not one.shared for one in covering):
        return PathVerdict(path, True, "", False, ())
    reserve = widened(nearest)
    held_by = tuple(one for one in others if Scopes((reserve,)).overlaps(Scopes(one.paths, one.shared)))
    return PathVerdict(path, False, reserve, bool(covering), held_by)


def _nearest(path: str) -> str:
    """``path`` itself, or the nearest directory above it that can be reserved if its own name cannot."""
    try:
        return normalised(path)
    except InvalidName:
        above = ancestors(path.rstrip("/"))[0]
        return _nearest(f"{above}/" if above else "")
