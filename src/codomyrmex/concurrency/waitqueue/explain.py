"""The reason, in words, that names were not granted in time: their holders, and the number of earlier waiters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from codomyrmex.concurrency.etcd.transports.protocol import KV, GetResult
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.waitqueue.rules import Granted, Overlap, Predecessor, Rule, View, holders
from codomyrmex.concurrency.waitqueue.view import is_entry, limit_in

_TOLD = 3  # holders, and names
READ = 32  # entries of a queue, the oldest; of a tree all are read, since any of them may overlap


class Wanted(NamedTuple):
    """A name that was waited for.

    ``rule`` is the rule of its grant, ``token`` the token of its entry (0 if it had not joined), ``found`` the oldest
    entries of its queue when the wait ended.
    """

    name: str
    rule: Rule
    token: int
    found: GetResult


def why(wanted: Sequence[Wanted]) -> str:
    """The holders of the names that were not granted, and the number of the waiters before this request."""
    missing = [text for one in wanted if (text := _why(one, named=len(wanted) > 1))]
    if not missing:
        return "it has come free just now" if len(wanted) == 1 else "all of them have come free just now"
    return "; ".join(missing[:_TOLD]) + _and_more(len(missing) - _TOLD, "are missing too")


def _why(wanted: Wanted, *, named: bool) -> str:
    """The reason for one name; empty if it would have been granted. In a tree only overlapping paths count."""
    name, rule, token, found = wanted
    earlier = [kv for kv in _in_order(found) if not token or kv.create_revision < token]
    limit = limit_in(found.kvs)
    queue = [Predecessor(kv.key, kv.create_revision, kv.value) for kv in earlier]
    if isinstance(rule(View(found.revision, queue, len(queue), limit)), Granted):
        return ""
    in_way = [not isinstance(rule, Overlap) or rule.waits_for(entry) for entry in queue]
    held = holders(queue, limit)
    owners = [
        Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        for kv, holds, counts in zip(earlier, held, in_way, strict=True)
        if holds and counts
    ]
    subject = f"{name!r}" if named else "it"
    told = ", and by ".join(describe(owner) for owner in owners[:_TOLD])
    text = f"{subject} is held by {told}" if owners else f"{subject} is held by nobody"
    text += _and_more(len(owners) - _TOLD, "hold it too")
    if not token:
        return text + "; this request had not joined the queue yet"
    waiting = sum(in_way) - len(owners)
    return text + f"; {_standing(waiting, more=found.total > len(found.kvs) and len(earlier) == len(found.kvs))}"


def describe(owner: Owner) -> str:
    """An owner in words for a person. Texts that others have written are shown with escapes."""
    if not owner.host:
        text = f"a client that does not say who it is (lease {owner.session})"
    else:
        agent = owner.metadata.get("agent")
        told = [f"pid {owner.pid} on {owner.host!r}"]
        told += [f"agent {agent[:80]!r}"] if isinstance(agent, str) and agent else []
        text = ", ".join(told)
    if owner.since:
        text += f", who joined the queue at {owner.since:%Y-%m-%d %H:%M:%S %Z} by its own clock"
    if owner.paths:
        paths = ", ".join(repr(path[:80]) if path else "the whole tree" for path in owner.paths[:_TOLD])
        more = len(owner.paths) - _TOLD
        text += f" ({paths} and {more} more)" if more > 0 else f" ({paths})"
    text += f" (note: {owner.note[:80]!r})" if owner.note else ""
    return f"{text} ({owner.permits} permits)" if owner.permits > 1 else text


def _standing(waiting: int, *, more: bool) -> str:
    if more:
        return f"at least {waiting} others waited ahead of this request"
    if not waiting:
        return "this request was the next in the queue"
    return f"{waiting} {'other' if waiting == 1 else 'others'} waited ahead of this request"


def _and_more(number: int, do: str) -> str:
    return f"; {number} more {do}" if number > 0 else ""


def _in_order(found: GetResult) -> list[KV]:
    return sorted((kv for kv in found.kvs if is_entry(kv)), key=lambda kv: (kv.create_revision, kv.key))
