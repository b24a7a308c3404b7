"""The blocking twin of ``Group``."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.recipes import membership as twin
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.grant import Grant, OnLoss, at_loss, this_thread
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Membership:
    """The membership of this process in a group. ``grant`` has its token and the event of its loss, as a lock's grant
    does."""

    def __init__(self, hold: Hold, capabilities: dict[str, Any]) -> None:
        self._twin = twin.Membership(hold, capabilities)
        self.grant = Grant(hold, self._twin.grant)

    @property
    def capabilities(self) -> dict[str, Any]:
        """The capabilities that others see."""
        return self._twin.capabilities

    update = blocking(twin.Membership.update)

    def __repr__(self) -> str:
        return repr(self._twin)


class Joining(BlockingOnly):
    """The result of ``Group.join``, for ``with``. It can be used once."""

    def __init__(self, joining: twin.Joining) -> None:
        self._twin = joining
        self._membership: Membership | None = None

    def __enter__(self) -> Membership:
        hold = portal().run(self._twin._acquire(this_thread()), Hold.release)
        self._membership = Membership(hold, self._twin._capabilities)
        return self._membership

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._membership
        self._membership.grant.__exit__(kind, error, trace)


class Group:
    """``codomyrmex.concurrency.Group`` for code without an event loop.

    The arguments are those of the asyncio class, except ``on_loss``: ``"notify"`` only sets ``membership.grant.lost``
    when the membership is lost, and ``"raise"`` raises ``LockLost`` at the end of its block too.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "notify",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._twin = twin.Group(name, unwrapped(session), at_loss(on_loss), metadata)

    @property
    @text_of(twin.Group.name)
    def name(self) -> str:
        return self._twin.name

    @text_of(twin.Group.join)
    def join(self, capabilities: dict[str, Any] | None = None) -> Joining:
        return Joining(self._twin.join(capabilities))

    members = blocking(twin.Group.members)
    watch = blocking(twin.Group.watch)

    def __repr__(self) -> str:
        return repr(self._twin)
