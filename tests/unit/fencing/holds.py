"""Holds as the library gives them: a grant has a key and a token, a reservation a handle and a token."""

from __future__ import annotations

from dataclasses import dataclass

from codomyrmex.concurrency.keys import LOCK, READER_SUFFIX, SEMAPHORE, Kind, Layout
from codomyrmex.concurrency.recipes.handle import Handle


@dataclass
class Held:
    """A grant."""

    key: str
    token: int


@dataclass
class Kept:
    """A reservation."""

    handle: str
    token: int


def entry(name: str, kind: Kind = LOCK, namespace: str = "fleet", suffix: bytes = b"") -> bytes:
    layout = Layout(namespace)
    return layout.entry(layout.queue(name, kind), 7, 0, suffix)


def held(token: int, name: str = "deploy", kind: Kind = LOCK, namespace: str = "fleet", suffix: bytes = b"") -> Held:
    return Held(entry(name, kind, namespace, suffix).decode(), token)


def reader(token: int) -> Held:
    return held(token, suffix=READER_SUFFIX)


def permit(token: int) -> Held:
    return held(token, kind=SEMAPHORE, suffix=b".1")


def kept(token: int, *entries: bytes) -> Kept:
    return Kept(Handle("fleet", lease=7, token=token, ttl=60, keys=entries).encode(), token)
