"""Groups: entries that are lost together and released together."""

from __future__ import annotations

import asyncio

from codomyrmex.concurrency.errors import ConcurrencyError, LockLost
from codomyrmex.concurrency.waitqueue.group import Group


class Recorded:
    """An entry of a group that records its calls, and passes a loss on as an entry does."""

    def __init__(self, calls: list[str], name: str, held: bool = True) -> None:
        self.calls = calls
        self.name = name
        self.held = held
        self.group: Group | None = None

    def lose_with_group(self, reason: ConcurrencyError) -> None:
        self.calls.append(f"{self.name} lost: {reason}")
        assert self.group
        self.group.lose(self, reason)

    def begin_release(self) -> asyncio.Future[bool] | None:
        if not self.held:
            return None
        self.calls.append(f"{self.name} begins")
        return asyncio.get_running_loop().create_future()

    async def confirmed(self, removal: asyncio.Future[bool]) -> None:
        self.calls.append(f"{self.name} waits")


def test_the_first_loss_takes_every_other_entry_along_once() -> None:
    calls: list[str] = []
    a, b, c = (Recorded(calls, name) for name in "abc")
    group = Group([a, b, c])
    group.lose(b, LockLost("deleted"))
    assert calls == ["a lost: deleted", "c lost: deleted"]
    assert group.first_lost is b and a.group is b.group is c.group is group
    group.lose(c, LockLost("later"))
    assert group.first_lost is b and len(calls) == 2


async def test_every_removal_begins_before_anything_is_awaited() -> None:
    calls: list[str] = []
    group = Group([Recorded(calls, "a"), Recorded(calls, "b", held=False), Recorded(calls, "c")])
    await group.release()
    assert calls == ["a begins", "c begins", "a waits", "c waits"]
