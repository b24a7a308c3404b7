"""The wait-for graph as plain data. It has a file of its own, below the errors, because ``Deadlock`` has a cycle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class QueueName:
    """A queue: ``kind`` is ``"lock"``, ``"path"``, ``"semaphore"`` or ``"election"``."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class WaitNode:
    """A requester: with the ``kind`` ``"task"`` a task or a thread of a session, with ``"agent"`` an agent that has
    reservations. ``id`` is stable while it lives. ``label`` is for people, and does not count for equality: it has the
    process and the number of the task in its session."""

    kind: Literal["task", "agent"]
    id: str
    label: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class WaitEdge:
    """``waiter`` waits in ``queue``, with the entry of ``token``, for an entry of ``predecessor``, which ``holds`` or
    waits too.

    ``fails`` is true if the waiter asked to fail rather than wait in a deadlock.
    """

    waiter: WaitNode
    predecessor: WaitNode
    queue: QueueName
    token: int
    holds: bool
    fails: bool


@dataclass(frozen=True, slots=True)
class Waits:
    """The wait-for graph at one revision.

    A waiter has an edge to each holder in its way, and to the waiter just ahead of it. Each of ``cycles`` is a
    deadlock: its edges in order, the last one back to the first.
    """

    revision: int
    edges: tuple[WaitEdge, ...]
    cycles: tuple[tuple[WaitEdge, ...], ...]
