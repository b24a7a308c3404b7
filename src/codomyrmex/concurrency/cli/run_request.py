"""The locks and the permit that ``run`` is to hold, and the rate that it keeps to: acquired one after another, with a
message about the holders in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import click

from codomyrmex.concurrency import EtcdError, Grant, LockManager, LockTimeout, Owner, Semaphore, Session
from codomyrmex.concurrency.cli import rate_request
from codomyrmex.concurrency.cli.rate_request import RateRequest
from codomyrmex.concurrency.cli.views import owners, text
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect

_SAY_AFTER = 1.0  # seconds


class RunRequest(NamedTuple):
    """The locks and the semaphore to hold, with their options, and the rate limiter to spend from."""

    locks: tuple[str, ...]
    shared: bool
    semaphore: str | None
    limit: int | None
    max_hold: float | None
    max_idle: float | None
    lock_delay: float
    metadata: dict[str, str]
    rate: RateRequest | None = None

    def __str__(self) -> str:
        named = [f"the lock {text.visible(name)}" for name in self.locks]
        named += [f"the semaphore {text.visible(self.semaphore)}"] if self.semaphore else []
        named += [f"the rate limiter {text.visible(self.rate.name)}"] if self.rate else []
        return ", ".join(named)


async def _acquire_all(
    session: Session, wanted: RunRequest, patience: float | None, held: AsyncExitStack
) -> list[Grant]:
    """The grants of everything in ``wanted``; ``held`` releases them."""
    grants: list[Grant] = []
    if wanted.locks:
        manager = LockManager(session)
        acquiring = manager.acquire_all(
            wanted.locks,
            patience,
            wanted.shared,
            wanted.metadata,
            on_loss="notify",
            lock_delay=wanted.lock_delay,
            max_hold=wanted.max_hold,
            max_idle=wanted.max_idle,
        )
        for grant in await acquiring:
            held.push_async_callback(_release, manager.release, grant)
            grants.append(grant)
    if wanted.semaphore is not None:
        limit = wanted.limit or (await inspect.semaphore(core_of(session), wanted.semaphore)).limit
        if limit is None:
            raise click.UsageError(
                f"there is no semaphore {text.visible(wanted.semaphore)} yet; give its limit by --max"
            )
        semaphore = Semaphore(
            wanted.semaphore,
            max_concurrent=limit,
            session=session,
            on_loss="notify",
            max_hold=wanted.max_hold,
            max_idle=wanted.max_idle,
            metadata=wanted.metadata,
        )
        permit = await semaphore.acquire(timeout=patience)
        held.push_async_callback(_release, permit.release)
        grants.append(permit.grant)
    if wanted.rate:  # last, since what it spends is not given back
        await rate_request.spend(session, wanted.rate, wanted.metadata, patience)
    return grants


async def _release(release: Callable[..., Awaitable[None]], *grant: Grant) -> None:
    """Release a grant. A failure is only a warning: the command has run, and its exit code counts."""
    try:
        await release(*grant)
    except EtcdError as error:
        click.echo(f"warning: a lock is not released yet, its lease will end it: {error}", err=True)


async def acquire(session: Session, wanted: RunRequest, timeout: float | None, held: AsyncExitStack) -> list[Grant]:
    """The grants of everything in ``wanted``, which ``held`` releases at its end.

    A message names the holders in the way after a second. Raises ``LockTimeout`` after ``timeout`` seconds; 0 is one
    try of each, and None waits for as long as it takes.
    """
    telling = asyncio.create_task(_tell(session, wanted))
    try:
        async with asyncio.timeout(timeout or None):
            return await _acquire_all(session, wanted, 0.0 if timeout == 0 else None, held)
    except TimeoutError:
        within = f" within {timeout:g} s" if timeout else " at once"
        raise LockTimeout(f"{wanted}: not granted{within}{await _in_the_way(session, wanted)}") from None
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(session: Session, wanted: RunRequest) -> None:
    await asyncio.sleep(_SAY_AFTER)
    click.echo(f"waiting for {wanted}{await _in_the_way(session, wanted)}", err=True)


async def _in_the_way(session: Session, wanted: RunRequest) -> str:
    """The end of a message: the present holders of other sessions, and the use of the rate limiter."""
    used = await rate_request.use(session, wanted.rate) if wanted.rate else ""
    return await _held_by(session, wanted) + used


async def _held_by(session: Session, wanted: RunRequest) -> str:
    """The end of a message: the present holders of other sessions, or nothing."""
    queues: list[Sequence[Owner]] = []
    for name in wanted.locks:
        info = await inspect.info(core_of(session), name)
        queues.append(info.holders if info else ())
    if wanted.semaphore is not None:
        queues.append((await inspect.semaphore(core_of(session), wanted.semaphore)).holders)
    ours = f"{session.id:016x}"
    others = {owner.session: owner for holders in queues for owner in holders if owner.session != ours}
    return f", held by {', '.join(map(_holder, others.values()))}" if others else ""


def _holder(one: Owner) -> str:
    named = text.visible(owners.agent(one))
    who = owners.owner(one) + ("" if named == "-" else f" ({named})")
    seconds = owners.held(one)
    told = f"{who} for {text.span(seconds)}" if seconds is not None else f"{who}, since when is not known"
    return f"{told} (note: {text.visible(text.short(one.note, 80))})" if one.note else told
