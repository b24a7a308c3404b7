"""Entries join their queues, all in one transaction, and are granted together or not at all.

The session is trusted at the moment of the grant: that is looked at last, and nothing is awaited between the two. If
trust ends before, the entries keep their places and wait for its return; if it ends after, they are held, and are lost.

All entries of one acquisition have the same create revision, so any two acquisitions stand in the same order in every
queue that they share: their waits cannot form a cycle, and no ordering of names is needed to avoid deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable, LockLost
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Get, Put, Target
from codomyrmex.concurrency.waitqueue.entry import Entry, warn_of_itself
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.rules import Action


async def acquire(entries: Sequence[Entry], started: float, *, only_if_free: bool = False) -> list[Grant] | None:
    """Join the queues and wait until each entry is granted; None if ``only_if_free`` and one was not. ``started``: when
    on ``clock`` the caller began to want them.

    However this ends otherwise, by an error or a cancel, no key stays behind.
    """
    if only_if_free and not await _all_grantable(entries):
        return None
    actions = await _join(entries)
    patience = entries[0].session.settings.request_timeout if only_if_free else None
    try:
        for entry, action in zip(entries, actions, strict=True):
            if action is Action.GRANT:
                continue
            if not only_if_free:
                entry.contended = True
                warn_of_itself(entry.session, entry.queue_ref, entry.by)
                await entry.wait(action)
            elif not await _granted_now(entry, patience):  # somebody was quicker
                _leave(entries)
                return None
        await _trusted(entries, patience)
        if entries[0].hold_options.lock_delay:
            await _outlive_session(entries)
            await _trusted(entries, patience)
        for entry in entries:
            entry.raise_if_lost()
    except BaseException:
        _leave(entries)
        raise
    waited = clock.now() - started
    return [entry.grant(waited) for entry in entries]


async def _join(entries: Sequence[Entry]) -> list[Action]:
    reply = await _put(entries)
    if reply.succeeded:
        return [entry.joined(reply.revision, reply.results[2 * n]) for n, entry in enumerate(entries)]
    found = zip(entries, reply.results, strict=True)
    actions = [action for entry, result in found if (action := entry.found_joined(reply.revision, result))]
    if len(actions) < len(entries):
        _remove(entries)
        raise LockLost(f"the place of {entries[0].queue_ref.name!r} in its queue was deleted by somebody")
    return actions


async def _put(entries: Sequence[Entry]) -> Reply:
    request = Request(
        [entry.queue_ref.queue for entry in entries],
        [op for entry in entries for op in entry.ask()],
        otherwise=[Get(entry.queue_ref.queue, entry.queue_ref.queue_end) for entry in entries],
        again=(Compare(entries[0].key, Target.CREATE_REVISION, 0),),
        undo=lambda: _remove(entries),
        unsent=lambda: _free_key_slots(entries),
    )
    reply = request.reply
    try:
        return await entries[0].session.committer.commit(request)
    except BaseException as error:
        if isinstance(error, EtcdError) and error.applied == "no":
            _free_key_slots(entries)
        # Cancelled just as the answer arrived: the committer thinks it was taken.
        if reply.done() and not reply.cancelled() and not reply.exception() and reply.result().succeeded:
            _remove(entries)
        raise


async def _outlive_session(entries: Sequence[Entry]) -> None:
    """Those who waited died with their session; those who hold leave their names closed for a while if they die."""
    session = entries[0].session
    lease = await session.delayed_lease(entries[0].hold_options.lock_delay)
    request = Request(
        [entry.key for entry in entries],
        [Put(entry.key, entry.value, lease) for entry in entries],
        compares=[Compare(entry.key, Target.CREATE_REVISION, entry.token) for entry in entries],
        again=(),
        alone=True,
    )
    if not (await session.committer.commit(request)).succeeded:
        raise LockLost(f"the place of {entries[0].queue_ref.name!r} in its queue was deleted by somebody")
    for entry in entries:
        entry.lease = lease


async def _trusted(entries: Sequence[Entry], patience: float | None) -> None:
    """Until the session may be trusted; for at most ``patience`` seconds."""
    session = entries[0].session
    if session.alive:
        return
    try:
        async with asyncio.timeout(patience):
            await session.trusted()
    except TimeoutError:
        raise EtcdUnavailable(
            f"the session's lease was not renewed within {patience:g} s, so nothing can be granted to it",
            retryable=True,
        ) from None


async def _granted_now(entry: Entry, patience: float | None) -> bool:
    """True if it is granted already, having joined; etcd has ``patience`` seconds to tell."""
    try:
        async with asyncio.timeout(patience):
            return await entry.granted_now()
    except TimeoutError:
        raise EtcdUnavailable(
            f"etcd did not tell within {patience:g} s whether {entry.queue_ref.name!r} is free", retryable=True
        ) from None


async def _all_grantable(entries: Sequence[Entry]) -> bool:
    """Whether all would be granted if they joined now; those that are not to join give back what they took."""
    grantable = False
    try:
        grantable = all([await entry.grantable() for entry in entries])
    finally:
        if not grantable:
            _free_key_slots(entries)
    return grantable


def _leave(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.leave()


def _remove(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.remove()


def _free_key_slots(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.free_key_slot()
