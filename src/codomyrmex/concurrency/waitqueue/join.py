"""Entries join their queues, all in one transaction, and are granted together or not at all.

The session is trusted at the moment of the grant: that is checked last, and nothing is awaited between the two. If
trust ends before, the entries stay in their queues and wait for its return; if it ends after, they are held, and are
lost.

All entries of one acquisition have the same create revision, so any two acquisitions have the same order in every queue
that they share: their waits cannot form a cycle, and no ordering of names is needed to avoid deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable, LockLost
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Get, GetResult, OpResult, Put, Target
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.entry import Entry, warn_if_it_waits_for_itself
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.rules import Overlap, Predecessor, View
from codomyrmex.concurrency.waitqueue.turn import Action, Turn
from codomyrmex.concurrency.waitqueue.view import nearest, whole
from codomyrmex.concurrency.waitqueue.wait import look, wait_until_granted


async def acquire(entries: Sequence[Entry], started: float, *, only_if_free: bool = False) -> list[Grant] | None:
    """Join the queues and wait until each entry is granted; None if ``only_if_free`` and one was not. ``started`` is
    the time on ``clock`` at which the caller began.

    If this ends otherwise, by an error or a cancel, no key stays in etcd.
    """
    if not await join_and_wait(entries, only_if_free=only_if_free):
        return None
    try:
        if entries[0].hold_options.lock_delay:
            await _keep_after_session(entries)
            await _trusted(entries[0].session, _patience(entries, only_if_free))
        for entry in entries:
            entry.raise_if_lost()
    except BaseException:
        withdraw(entries)
        raise
    waited = clock.now() - started
    return [_grant(entry, waited) for entry in entries]


async def join_and_wait(
    entries: Sequence[Entry], *, only_if_free: bool, waits: Callable[[], None] | None = None
) -> bool:
    """Join the queues, and wait until each entry may be granted and the session is trusted; False if ``only_if_free``
    and one was not free. Entries of one queue are granted together, since their rule counts them together. ``waits`` is
    called when an entry begins to wait.

    If this ends otherwise, by an error or a cancel, no key stays in etcd.
    """
    if only_if_free and not await _all_grantable(entries):
        return False
    actions = await _join(entries)
    patience = _patience(entries, only_if_free)
    try:
        waited: set[bytes] = set()
        for entry, action in zip(entries, actions, strict=True):
            if action is Action.GRANT or entry.queue_ref.queue in waited:
                continue
            waited.add(entry.queue_ref.queue)
            if not only_if_free:
                entry.contended = True
                if waits:
                    waits()
                warn_if_it_waits_for_itself(entry.session, entry.queue_ref, entry.rule, entry.by)
                await wait_until_granted(entry, action)
            elif not await _granted_now(entry, patience):  # another client was quicker
                withdraw(entries)
                return False
        session = entries[0].session
        if not session.alive:
            await _trusted(session, patience)
    except BaseException:
        withdraw(entries)
        raise
    return True


def _patience(entries: Sequence[Entry], only_if_free: bool) -> float | None:
    """The seconds for which the session's trust is waited for."""
    return entries[0].session.settings.request_timeout if only_if_free else None


def _grant(entry: Entry, waited: float) -> Grant:
    entry.grant(waited)
    return Grant(entry, waited)


async def _join(entries: Sequence[Entry]) -> list[Action]:
    """The first step of each entry's turn."""
    afters = [_known_up_to(entry) for entry in entries]
    request = _request(entries, afters)
    try:
        reply = await entries[0].session.committer.commit(request)
    except BaseException as error:
        _not_joined(entries, request, error)
        raise
    if reply.succeeded:
        readings = [result for result in reply.results if isinstance(result, GetResult)]
        read = dict(zip(dict.fromkeys(entry.queue_ref.queue for entry in entries), readings, strict=True))
        known = zip(entries, afters, strict=True)
        return [_joined(entry, reply.revision, read[entry.queue_ref.queue], after) for entry, after in known]
    whole_queues = zip(entries, reply.results, strict=True)
    actions = [action for entry, result in whole_queues if (action := _joined_before(entry, result))]
    if len(actions) < len(entries):
        _remove(entries)
        raise LockLost(f"the entry of {entries[0].queue_ref.name!r} in its queue was deleted by another client")
    return actions


def _known_up_to(entry: Entry) -> int:
    """The revision up to which the session knows the entries of the queue; 0 if it does not."""
    return entry.local.trees.after(entry.queue_ref.queue) if isinstance(entry.rule, Overlap) else 0


def _request(entries: Sequence[Entry], afters: Sequence[int]) -> Request:
    """Read each queue once, then join them. The readings come first, so they show the queues ahead."""
    readings: dict[bytes, Get] = {}
    for entry, after in zip(entries, afters, strict=True):
        readings.setdefault(entry.queue_ref.queue, _reading(entry, after))
    return Request(
        list(readings),
        [*readings.values(), *(Put(entry.key, entry.value, entry.lease) for entry in entries)],
        otherwise=[entry.queue_ref.whole for entry in entries],
        again=(Compare(entries[0].key, Target.CREATE_REVISION, 0),),
        undo=lambda: _remove(entries),
        unsent=lambda: _free_key_slots(entries),
        reply=entries[0].session.home.future(),
    )


def _reading(entry: Entry, after: int) -> Get:
    """The reading of the queue; entries created up to the revision ``after`` are known."""
    reading = entry.queue_ref.whole if entry.rule.needs_all else entry.queue_ref.newest
    return reading._replace(after=after) if after else reading


def _not_joined(entries: Sequence[Entry], request: Request, error: BaseException) -> None:
    """Clean up after ``error``, which ended the wait for the answer."""
    reply = request.reply
    if isinstance(error, EtcdError) and error.applied == "no":
        _free_key_slots(entries)
    # Cancelled just as the answer arrived: the committer thinks it was taken.
    if reply.done() and not reply.cancelled() and not reply.exception() and reply.result().succeeded:
        _remove(entries)


def _joined(entry: Entry, revision: int, found: GetResult, after: int) -> Action:
    """The entry's put was applied at ``revision``, behind the entries that were found or are known up to ``after``."""
    if isinstance(entry.rule, Overlap):
        queue_ref, own = entry.queue_ref, Predecessor(entry.key, revision, entry.value)
        view = entry.local.trees.joined(queue_ref.queue, queue_ref.queue_end, own, found, after)
        return entry.joined(revision, view)
    view = whole(found, revision) if entry.rule.needs_all else nearest(found, revision)
    return entry.joined(revision, view)


def _joined_before(entry: Entry, found: OpResult) -> Action | None:
    """The put may have been applied by an earlier attempt, and the whole queue was read; None if it was not."""
    assert isinstance(found, GetResult)
    own = next((kv for kv in found.kvs if kv.key == entry.key), None)
    if own is None:
        return None
    return entry.joined(own.create_revision, whole(found, own.create_revision))


async def _keep_after_session(entries: Sequence[Entry]) -> None:
    """Move the entries to a lease that ends ``lock_delay`` after the session's: a waiter's entry ends with its session,
    but a holder that dies leaves its names closed for a while."""
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
        raise LockLost(f"the entry of {entries[0].queue_ref.name!r} in its queue was deleted by another client")
    for entry in entries:
        entry.lease = lease


async def _trusted(session: SessionCore, patience: float | None) -> None:
    """Wait until ``session`` may be trusted, for at most ``patience`` seconds."""
    try:
        async with asyncio.timeout(patience):
            await session.trusted()
    except TimeoutError:
        raise EtcdUnavailable(
            f"the session's lease was not renewed within {patience:g} s, so nothing can be granted to it",
            retryable=True,
        ) from None


async def _granted_now(entry: Entry, patience: float | None) -> bool:
    """True if an entry that has joined is granted already; etcd has ``patience`` seconds to answer."""
    try:
        async with asyncio.timeout(patience):
            return entry.turn.seen(await look(entry)) is Action.GRANT
    except TimeoutError:
        raise EtcdUnavailable(
            f"etcd did not tell within {patience:g} s whether {entry.queue_ref.name!r} is free", retryable=True
        ) from None


async def _all_grantable(entries: Sequence[Entry]) -> bool:
    """True if all would be granted if they joined now; if not, their key slots are given back."""
    grantable = False
    try:
        first = {entry.queue_ref.queue: entry for entry in reversed(entries)}
        grantable = all([await _grantable(entry) for entry in first.values()])
    finally:
        if not grantable:
            _free_key_slots(entries)
    return grantable


async def _grantable(entry: Entry) -> bool:
    view: View = whole(await entry.session.transport.get(entry.queue_ref.whole))
    return Turn(entry.rule).seen(view) is Action.GRANT


def withdraw(entries: Sequence[Entry]) -> None:
    """Leave every queue."""
    for entry in entries:
        entry.withdraw()


def _remove(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.remove()


def _free_key_slots(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.free_key_slot()
