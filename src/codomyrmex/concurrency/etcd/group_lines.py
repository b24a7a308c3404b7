"""The lines of requests that share a group: each group's requests go one after another. Pure."""

from __future__ import annotations

from collections import deque

from codomyrmex.concurrency.etcd.ledger_request import Event, LedgerRequest


class GroupLines:
    """One line of requests for each group.

    The head of a line is ready, under way or in doubt, or waits to be the head of its other lines too. A request joins
    all its lines at once, so these waits cannot form a cycle.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[bytes, deque[LedgerRequest] | None] = {}  # the successors of each group's head, if any

    def join(self, request: LedgerRequest) -> bool:
        """Join the line of each of the request's groups; True if it is the head of them all."""
        for group in request.groups:
            if group in self._lines:
                request.predecessors += 1
                line = self._lines[group] = self._lines[group] or deque()
                line.append(request)
            else:
                self._lines[group] = None
        request.change(Event.LINE_UP if request.predecessors else Event.MAKE_READY)
        return not request.predecessors

    def leave(self, request: LedgerRequest) -> list[LedgerRequest]:
        """Leave every line as its head; returns the requests that became the head of all their lines."""
        heads = []
        for group in request.groups:
            line = self._lines.get(group)
            if not line:
                self._lines.pop(group, None)
                continue
            successor = line.popleft()
            successor.predecessors -= 1
            if not successor.predecessors:
                successor.change(Event.MAKE_READY)
                heads.append(successor)
        return heads

    def waiting(self) -> list[LedgerRequest]:
        """The requests that are behind another one. One that waits in several lines is there several times."""
        return [request for line in self._lines.values() for request in line or ()]

    def clear(self) -> None:
        """Forget every line."""
        self._lines.clear()
