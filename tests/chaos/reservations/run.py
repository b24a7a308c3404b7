"""A whole run, as the judge sees it: etcd's history, the calls, and the leases that etcd had at the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from tests.chaos.documents.history import Event, state_at_end
from tests.chaos.documents.journal import Fact
from tests.chaos.reservations.calls import Call, calls
from tests.chaos.reservations.queues import Entry, Scopes, replay

UNANSWERED = 6.0  # seconds after its beginning in which a call without an answer may still have its effect


@dataclass
class Run:
    """``leases``: the granted seconds of every lease that etcd has when all has ended; None if the run is not over.
    ``lost``: the answers that were lost."""

    namespace: str
    events: list[Event]
    facts: list[Fact]
    leases: dict[int, int] | None = None
    late: float = 4.0  # seconds after its time to live in which an expired entry must be gone
    root: str = field(default="/files/")  # where fenced writes go
    lost: int = 0

    @cached_property
    def calls(self) -> list[Call]:
        return calls(self.facts)

    @cached_property
    def final(self) -> dict[str, Event]:
        return state_at_end(self.events)

    @cached_property
    def requests(self) -> dict[str, Call]:
        """The reserve call of each request."""
        return {call.ask: call for call in self.calls if call.what == "reserve"}

    @cached_property
    def entries(self) -> list[Entry]:
        return replay(self.events, self.namespace, self._scopes)

    def _scopes(self, ask: str) -> Scopes:
        paths: list[str] = self.requests[ask].about["paths"] if ask in self.requests else []
        return tuple(paths)

    @cached_property
    def entries_of(self) -> dict[str, list[Entry]]:
        """The entries of each request."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            if entry.ask:
                found[entry.ask].append(entry)
        return found

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """The calls about each request, and those about a name under ``force:<name>``."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            found[f"force:{call.ask}" if call.what == "force" else call.ask].append(call)
        return found

    def renewals(self, ask: str) -> list[Call]:
        """The calls from which its time to live is counted."""
        return [call for call in self.calls_of[ask] if call.what in ("reserve", "renew")]

    def ending(self, entry: Entry) -> str:
        """The way in which an entry ended: "alive", "released", "forced", "expired", "waiter", or "unknown"."""
        return self._endings[entry.key, entry.token]

    @cached_property
    def _endings(self) -> dict[tuple[str, int], str]:
        return {(entry.key, entry.token): self._ending(entry) for entry in self.entries}

    def _ending(self, entry: Entry) -> str:
        if entry.ended is None:
            return "alive"
        request = self.requests.get(entry.ask or "")
        if request and request.error and not request.uncertain:
            return "waiter"  # it was refused, and was never told of a reservation
        releases = [call for call in self.calls_of[entry.ask or ""] if call.what == "release"]
        own = [call for call in releases if call.began < entry.ended_at]
        group = self.entries_of[entry.ask or ""]
        if any(self._forced(one) and one.ended_at <= entry.ended_at for one in (entry, *group)):
            return "forced"
        if any(call.done for call in own):
            return "released"
        if any(call.uncertain for call in own):
            return "unknown"
        return "expired" if entry.moved_at is not None else "waiter"

    def _forced(self, entry: Entry) -> bool:
        name = entry.queue.partition("/")[2]
        calls = [call for call in self.calls_of[f"force:{name}"] if call.began < entry.ended_at < call.ended + 1.0]
        return any(call.done or call.uncertain for call in calls)

    def last_renewal(self, ask: str) -> tuple[float, float]:
        """When the last renewal that was answered began, and when any that may have counted ended at the latest."""
        own = self.renewals(ask)
        sure = max((call.began for call in own if call.done), default=0.0)
        ends = [call.ended for call in own if call.done]
        ends += [min(call.ended, call.began + UNANSWERED) for call in own if call.uncertain and call.what == "renew"]
        return sure, max(ends, default=0.0)
