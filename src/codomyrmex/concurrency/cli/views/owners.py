"""The owner of an entry in words: host, agent, and for how long it has held and waited."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from codomyrmex.concurrency.cli.views.text import MOST, seconds_since, short, span, visible
from codomyrmex.concurrency.models import LockInfo, Owner, SemaphoreInfo

# As asyncio names a task, and Python the thread of a blocking call.
_UNNAMED = re.compile(r"Task-\d+|MainThread|(Thread|Dummy)-\d+( \(.*\))?|ThreadPoolExecutor-\d+_\d+|asyncio_\d+")
_SHOWN = 3  # owners in a cell
_STUCK = 300.0  # seconds


def held(one: Owner) -> float | None:
    """Seconds since an owner was granted. None if the holder has not recorded its grant and no follower saw it."""
    return None if one.granted_at is None else seconds_since(one.granted_at)


def held_for(one: Owner) -> str:
    """The same in words, ``?`` where it is unknown. A holder that joined a second ago shows ``<1s``."""
    seconds = held(one)
    if seconds is not None:
        return span(seconds)
    return "<1s" if _joined_just_now(one) else "?"


def waited_for(one: Owner) -> str:
    """The time that a holder waited for its grant, in words; ``?`` where it is unknown."""
    return "?" if one.waited is None else span(one.waited)


def longest(info: LockInfo | SemaphoreInfo) -> float | None:
    """Seconds of the longest present hold; None if none is known."""
    return max((seconds for one in info.holders if (seconds := held(one)) is not None), default=None)


def is_stuck(info: LockInfo | SemaphoreInfo) -> bool:
    """True if a waiter has waited for minutes, and a holder has held for as long."""
    waits = [seconds_since(one.since) for one in info.waiters if one.since]
    return bool(waits) and min(max(waits), longest(info) or 0.0) > _STUCK


def agent(one: Owner) -> str:
    """The name of an owner's agent: ``agent`` of its metadata, else that which a person gave its task or thread, else
    ``-``."""
    named = one.metadata.get("agent")
    if isinstance(named, str) and named.strip():
        return short(named, 100)
    return "-" if not one.task or _UNNAMED.fullmatch(one.task) else short(one.task, 100)


def owner(one: Owner) -> str:
    """The host and process of an owner, as plain text; in a table of rich it goes through ``safe``."""
    return f"{visible(short(one.host, 100))}:{one.pid}" if one.host else f"session {one.session}"


def owners(several: Sequence[Owner]) -> str:
    """The first few owners, by agent where they have one. Owners of one name are counted."""
    if not several:
        return "-"
    named = Counter(owner(one) if agent(one) == "-" else agent(one) for one in several)
    words = [name if number == 1 else f"{number} of {name}" for name, number in named.items()]
    more = f" +{len(words) - _SHOWN}" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def note(one: Owner) -> str:
    """The last note of a holder's reports of progress; ``-`` if it has none."""
    return short(one.note, MOST) or "-"


def paths(one: Owner) -> str:
    """The first few paths of a path lock; ``-`` for an owner without paths."""
    if not one.paths:
        return "-"
    more = f" +{len(one.paths) - _SHOWN}" if len(one.paths) > _SHOWN else ""
    return ", ".join(short(path, 200) or "(all)" for path in one.paths[:_SHOWN]) + more


def metadata(one: Owner) -> str:
    """An owner's metadata as JSON; ``-`` if it has none."""
    return short(json.dumps(one.metadata), MOST) if one.metadata else "-"


def _joined_just_now(one: Owner) -> bool:
    # seconds_since would take a moment to come, by a host whose clock is fast, for the present.
    return one.since is not None and 0 <= (datetime.now(UTC) - one.since).total_seconds() < 1
