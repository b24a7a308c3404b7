"""Compares the past that etcd's history tells with the log that was kept while it happened."""

from __future__ import annotations

from collections.abc import Iterable

from codomyrmex.concurrency import History
from tests.chaos.checker import Change


def differences(history: History, log: Iterable[Change], said: Iterable[int]) -> list[str]:
    """The differences between a history and the log of its queue, in words. ``said`` are the tokens with which members
    said that they held. What ended before the history begins is left out."""
    logged: dict[int, int] = {}  # the revision at which each entry ended, by token; 0 while it lives
    tokens: dict[bytes, int] = {}
    for change in log:
        if change.kind == "joined":
            tokens[change.key] = change.token
            logged[change.token] = 0
        elif change.kind == "left":
            logged[tokens[change.key]] = change.revision
    logged = {token: ended for token, ended in logged.items() if not ended or ended > history.begins_at}
    told = {hold.token: hold.ended_revision or 0 for hold in history.holds}
    waited = {owner.token for owner in history.waits}
    found = [f"it tells that {token} ended at {ended}" for token, ended in told.items() if logged.get(token) != ended]
    found += [f"it does not tell of {token}" for token in logged.keys() - told.keys() - waited if logged[token]]
    return found + [f"it does not tell that {token} held" for token in set(said) & logged.keys() - told.keys()]
