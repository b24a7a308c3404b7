"""``HeldBlock``: one acquisition for the time of a block, as elections and groups use it."""

from __future__ import annotations

from types import TracebackType

from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.waitqueue.entry import Requester
from codomyrmex.concurrency.waitqueue.rules import Rule


class HeldBlock(AsyncOnly):
    """The base of a block that holds what ``request`` acquires by ``rule``. It can be used once.

    ``what`` and ``nothing`` are the words for a block that was never entered.
    """

    def __init__(self, request: AcquireRequest, rule: Rule, timeout: float | None, what: str, nothing: str) -> None:
        self._request = request
        self._rule = rule
        self._timeout = timeout
        self._never = what, nothing
        self._line = users_line()
        self._begun = False
        self._hold: Hold | None = None

    async def _enter(self) -> Hold:
        """Acquire, and protect the block."""
        self._hold = await self._acquire()
        self._hold.protect()
        return self._hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold
        await self._hold.leave(kind, error)

    async def _acquire(self, by: Requester | None = None) -> Hold:
        """``by`` is the requester if it is not the current task."""
        self._begun = True
        return await self._request.attempt((self._rule,), self._timeout, by)

    def __del__(self) -> None:
        if not self._begun:
            what, nothing = self._never
            text = f"the {what} of {self._request.describe()} was never entered by `async with`: {nothing}"
            warn(self._line, text, RuntimeWarning)
