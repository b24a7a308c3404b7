"""The results of the agents' commands: plain data, with the JSON form that ``capabilities`` describes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder that is in the way.

    ``since`` is when it was granted, or joined the queue, by its own host's clock. ``expires_in`` is in seconds, and
    None if the holder is no reservation: then it holds for as long as its process wants. ``agent`` is empty if the
    holder has not named itself.
    """

    agent: str
    host: str
    pid: int
    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str | None
    shared: bool
    token: int
    note: str
    since: datetime | None
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class HeldReservation:
    """A reservation that the agent holds now.

    ``renewed`` is true if the agent held it before. ``left`` is the note of a predecessor that expired without a
    release, and ``left_by`` its owner; both are empty if there is none.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str | None
    shared: bool
    token: int
    ttl: int
    expires_in: float
    note: str
    renewed: bool
    left: str
    left_by: str


@dataclass(frozen=True, slots=True)
class ReserveOutcome:
    """The result of ``reserve``.

    ``position`` is the place that the agent had among the waiters, from 1; None if it holds everything, or if it is in
    its own way. ``next`` are commands to type next.
    """

    acquired: bool
    agent: str
    reservations: tuple[HeldReservation, ...]
    held_by: tuple[Holder, ...]
    position: int | None
    reason: str
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeptOutcome:
    """The result of ``renew`` or ``release`` for one reservation.

    ``expires_in`` is in seconds, and 0 unless it was renewed. ``reason`` and ``held_by`` tell how it was lost, and its
    holders now.
    """

    state: Literal["renewed", "released", "lost"]
    agent: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str | None
    token: int
    expires_in: float
    reason: str
    held_by: tuple[Holder, ...]
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuardedPath:
    """A path, and if a live reservation of the agent covers it; else the reason, and the others who hold it."""

    path: str
    covered: bool
    reason: str
    held_by: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class GuardOutcome:
    """The result of ``guard check``. ``covered`` is true if every path is; ``next`` are commands to type next."""

    covered: bool
    agent: str
    tree: str
    paths: tuple[GuardedPath, ...]
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstallOutcome:
    """The result of ``guard install``.

    ``already`` is true if the same hook was there before. ``other_tree`` is the tree of another hook of the guard that
    is there, None if there is none. ``line`` is the line to add to a hook that is not the guard's, and else empty.
    """

    installed: bool
    hook: str
    line: str
    already: bool = False
    other_tree: str | None = None
