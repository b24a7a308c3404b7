"""One run of a handler: its ``Attempt``, the exceptions it may raise, and the entry that its end leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from codomyrmex.concurrency.dead_letters import record, steps
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.store import Claim, Store
from codomyrmex.concurrency.dead_letters.transitions import MAX_DELAY
from codomyrmex.concurrency.errors import ConcurrencyError, LockLost, text_of
from codomyrmex.concurrency.retry import RetryPolicy


class Retry(Exception):
    """Raised by a handler to be tried again, after ``delay`` seconds if given, else as the policy says."""

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None and not 0 <= delay <= MAX_DELAY:
            raise ValueError(f"delay must be from 0 to {MAX_DELAY:.0f} seconds, not {delay!r}")
        super().__init__("retry asked for" + (f" in {delay:g} s" if delay is not None else ""))
        self.delay = delay


class Park(Exception):
    """Raised by a handler to park the entry: it is not tried again until a person redrives it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason) or "parked by its handler"


class Discard(Exception):
    """Raised by a handler to resolve the entry without success; the record keeps ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason) or "discarded by its handler"


class Attempt:
    """One attempt of a handler. ``number`` counts from 1, and again from 1 after a replay. ``token`` is a fencing
    token: it strictly increases with every attempt of an entry."""

    def __init__(self, claim: Claim, store: Store) -> None:
        self.number = claim.entry.attempt_count
        self.token = claim.token
        self._store = store
        self._lost: ConcurrencyError | None = None

    async def checkpoint(self) -> None:
        """Raise ``LockLost`` if the claim is gone. A long handler calls this so that it stops before it does harm."""
        await asyncio.sleep(0)
        if self._lost is None and not self._store.session.alive:
            self._lost = LockLost("the worker's lease can no longer be trusted")
        if self._lost:
            raise self._lost

    def lose(self) -> None:
        """The claim is gone: ``checkpoint`` raises from here on."""
        self._lost = LockLost("the claim on this dead letter is gone; another worker may have it")


Handler = Callable[[DeadLetter, Attempt], Awaitable[object]]


async def outcome(
    handler: Handler, entry: DeadLetter, attempt: Attempt, policy: RetryPolicy, redact: Callable[[str], str]
) -> DeadLetter:
    """Run the handler; returns the entry as the handler's end leaves it.

    Raises nothing but ``CancelledError``, and ``KeyboardInterrupt``, which is the program's. The handler gets its own
    copy of the entry: if it changes the arguments, the record keeps them.
    """
    try:
        await handler(record.copied(entry), attempt)
    except Retry as error:
        return steps.asked_again(entry, str(error), error.delay, policy, record.now())
    except Park as error:
        return steps.parked(entry, redact(error.reason), record.now())
    except Discard as error:
        return steps.discarded(entry, redact(error.reason), record.now())
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a handler that exits must not end its worker
        text = redact(f"{type(error).__qualname__}: {text_of(error)}")
        return steps.failed(entry, error, text, policy, record.now())
    return steps.succeeded(entry, record.now())
