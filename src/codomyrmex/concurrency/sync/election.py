"""The blocking twin of ``Election``."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.recipes import election as twin
from codomyrmex.concurrency.recipes.acquire import OnDeadlock
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.grant import Grant, OnLoss, at_loss, this_thread
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Term:
    """The time for which a process leads. ``grant`` has the fencing token, the time left to trust it, the event of its
    loss, and fenced writes, as a lock's grant does."""

    def __init__(self, hold: Hold, value: Any) -> None:
        self._twin = twin.Term(hold, value)
        self.grant = Grant(hold, self._twin.grant)
        self.value = value

    @property
    @text_of(twin.Term.token)
    def token(self) -> int:
        return self._twin.token

    @property
    @text_of(twin.Term.key)
    def key(self) -> str:
        return self._twin.key

    @text_of(twin.Term.proclaim)
    def proclaim(self, value: Any) -> None:
        portal().run(self._twin.proclaim(value))
        self.value = value

    def __repr__(self) -> str:
        return repr(self._twin)


class Campaign(BlockingOnly):
    """The result of ``Election.campaign``, for ``with``. It can be used once."""

    def __init__(self, campaign: twin.Campaign) -> None:
        self._twin = campaign
        self._term: Term | None = None

    def __enter__(self) -> Term:
        hold = portal().run(self._twin._acquire(this_thread()), Hold.release)
        self._term = Term(hold, self._twin._value)
        return self._term

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._term
        self._term.grant.__exit__(kind, error, trace)


class Election:
    """``codomyrmex.concurrency.Election`` for code without an event loop.

    The arguments are those of the asyncio class, except ``on_loss``: ``"raise"`` raises ``LockLost`` at the end of the
    block of a term that is lost, and ``"notify"`` only sets ``term.grant.lost``.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "raise",
        metadata: dict[str, Any] | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._twin = twin.Election(name, unwrapped(session), at_loss(on_loss), metadata, deadlock)

    @property
    @text_of(twin.Election.name)
    def name(self) -> str:
        return self._twin.name

    @text_of(twin.Election.campaign)
    def campaign(self, value: Any = None, timeout: float | None = None) -> Campaign:
        return Campaign(self._twin.campaign(value, timeout))

    leader = blocking(twin.Election.leader)
    observe = blocking(twin.Election.observe)

    def __repr__(self) -> str:
        return repr(self._twin)
