"""The key layout, version 1: names to keys and back. Pure; the one place that builds keys.

    /<namespace>/v1/lease/<lease>                  one per session: who it is; its version fences lost answers
    /<namespace>/v1/lock/<name>/<entry>            one per holder or waiter; ordered by create revision
    /<namespace>/v1/semaphore/<name>/<entry>       the same
    /<namespace>/v1/semaphore/<name>/limit-<n>     the semaphore's limit; a key of another name when it changes
    /<namespace>/v1/baton/lock/<name>/<entry>      for a moment: the token with which that entry held, and released
    /<namespace>/v1/audit/<name>                   the last forced release of a lock

An entry is ``<lease>-<nonce>``, the lease id in hex and what tells the entries of one session in one queue apart; then
``.r`` for a reader, ``.<n>`` for n permits of a semaphore: a key alone tells what it claims. A name is percent-encoded,
byte by byte, into one path segment: no name can reach another's keys, and the encoding of a prefix is a prefix of the
encoding. A name is in NFC, however it was given: a composed and a decomposed "é" are one. ``lease/`` sorts just before
``lock/``, so that one watch covers both and can tell an expired holder from one that released.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from codomyrmex.concurrency.decode import number
from codomyrmex.concurrency.errors import InvalidName

MAX_NAME_BYTES = 512
_PLAIN = re.compile(r"[A-Za-z0-9\-._~:@+,=]+")
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:@+,=")


def nfc(text: str) -> str:
    """A name, or the beginning of one, as it is used: composed, so that what looks the same is the same."""
    return unicodedata.normalize("NFC", text)


def forms(text: str) -> tuple[str, ...]:
    """A name, or the beginning of one, as it is used, and then the other forms of it that may lie in etcd: releases
    before this one took names as they were given, and a Mac gives them decomposed."""
    return tuple(dict.fromkeys((nfc(text), unicodedata.normalize("NFD", text), text)))


def check_name(name: str) -> str:
    """Return ``name`` in NFC if it can name a lock; raise ``InvalidName`` that says why not."""
    if not isinstance(name, str):
        raise InvalidName(f"a name must be a str, not {type(name).__name__}")
    if not name:
        raise InvalidName("a name must not be empty")
    name = nfc(name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName("a name must be valid Unicode; this one holds a lone surrogate") from None
    if size > MAX_NAME_BYTES:
        raise InvalidName(f"a name may have {MAX_NAME_BYTES} bytes in UTF-8; this one has {size}")
    if not name.isprintable() and any(unicodedata.category(char) == "Cc" for char in name):
        raise InvalidName(f"a name must not hold control characters: {name[:80]!r}")
    return name


def escape(text: str) -> str:
    """Percent-encode ``text`` into one path segment; injective, and prefixes map to prefixes."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode())


def unescape(segment: str) -> str | None:
    """The text whose ``escape`` is ``segment``, or None if there is none (someone else's key)."""
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError:
        return None
    return text if escape(text) == segment else None


def text_in(segment: bytes) -> str | None:
    """The text that a segment of a key encodes, or None if it is someone else's."""
    return unescape(segment.decode("ascii")) if segment.isascii() else None


def name_in(segment: bytes) -> str | None:
    """The name that a segment of a key encodes, in whatever form, or None if nothing can have that name."""
    name = text_in(segment)
    try:
        if name is not None:
            check_name(name)
    except InvalidName:
        return None
    return name


def prefix_end(prefix: bytes) -> bytes:
    """The end of the key range that holds every key starting with ``prefix``."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"


_LIMIT = b"limit-"
_LIMIT_KEY = re.compile(rb"/[^/]+/v1/semaphore/[^/]+/limit-([0-9]+)")
_IN_SEMAPHORE = re.compile(rb"/[^/]+/v1/semaphore/")
_SESSION = re.compile(rb"/([0-9a-f]{16})-[^/]*$")
_LEASE = re.compile(rb"[0-9a-f]{16}")


def is_reader(entry: bytes) -> bool:
    """Whether an entry's key is that of a reader."""
    return entry.endswith(b".r")


def is_writer(entry: bytes) -> bool:
    """Whether an entry's key is that of this library's exclusive holder or waiter."""
    return entry.count(b".", entry.rfind(b"/")) == 0 and session_of(entry) is not None


def permits_of(entry: bytes) -> int:
    """The permits that an entry's key claims: 1 if it names none, 0 if it names a number that nobody can ask for."""
    claim = entry.rpartition(b"/")[2].partition(b".")[2]
    return number(claim.lstrip(b"0")) or 0 if claim.isdigit() else 1


def is_never_granted(entry: bytes) -> bool:
    """True if an entry's key claims no permits of a semaphore, or more than any limit can have: it never holds, for
    every client that goes by the same rule, and is nobody's place in the queue."""
    return not permits_of(entry) and _IN_SEMAPHORE.match(entry) is not None


def session_of(entry: bytes) -> int | None:
    """The lease id of the session that an entry's key names, whatever lease the key hangs on; None for other keys."""
    named = _SESSION.search(entry)
    return int(named[1], 16) if named else None


def limit_key(queue: bytes, limit: int) -> bytes:
    return queue + _LIMIT + b"%d" % limit


def limit_range(queue: bytes) -> tuple[bytes, bytes]:
    """The range that holds a semaphore's limit."""
    return queue + _LIMIT, prefix_end(queue + _LIMIT)


def limit_of(key: bytes) -> int | None:
    """The limit that a key names, or None for an entry's key and for what cannot be a limit."""
    named = _LIMIT_KEY.fullmatch(key)
    return number(named[1]) or None if named else None


def lowest_limit(unleased: Iterable[bytes]) -> int | None:
    """The limit in force: should several keys name one, the lowest, so that nobody is granted too much."""
    return min((limit for key in unleased if (limit := limit_of(key)) is not None), default=None)


class Kind(NamedTuple):
    """A kind of queue: what it is called, and its part of the keys."""

    what: str
    segment: str


LOCK = Kind("lock", "lock")
SEMAPHORE = Kind("semaphore", "semaphore")


class Layout:
    """The keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        root = f"/{namespace}/v1/"
        self.root = root.encode()
        self.leases = f"{root}lease/".encode()
        self._audit = f"{root}audit/"

    def is_ours(self, key: bytes, end: bytes = b"") -> bool:
        """Whether ``key``, or any key of a range up to ``end``, is one that only this library may write."""
        if not end:
            return key.startswith(self.root)
        return key < prefix_end(self.root) and (end == b"\0" or end > self.root)

    def lease(self, lease_id: int) -> bytes:
        return self.leases + f"{lease_id:016x}".encode()

    def under(self, kind: Kind) -> bytes:
        """The prefix of every queue of a kind."""
        return self.root + kind.segment.encode() + b"/"

    def queue(self, name: str, kind: Kind = LOCK) -> bytes:
        """The prefix, with its trailing slash, of every entry of the lock or semaphore ``name``."""
        return self.under(kind) + escape(name).encode() + b"/"

    def entry(self, queue: bytes, lease_id: int, nonce: int, claim: bytes = b"") -> bytes:
        return queue + b"%016x-%x%b" % (lease_id, nonce, claim)

    def release_marker(self, entry: bytes) -> bytes:
        """Where the entry says that it held and has released; of a queue, what those of its entries begin with."""
        return self.root + b"baton/" + entry.removeprefix(self.root)

    def audit(self, name: str) -> bytes:
        return (self._audit + escape(name)).encode()

    def name_of(self, entry: bytes, kind: Kind = LOCK) -> str | None:
        """The name that an entry's key is for, or None if the key is not one of this kind."""
        rest = entry.removeprefix(self.under(kind))
        segment, slash, _ = rest.partition(b"/")
        if rest is entry or not slash or not segment or len(segment) > 3 * MAX_NAME_BYTES:
            return None
        return text_in(segment)

    def lease_of(self, key: bytes) -> int | None:
        """The lease id that a session key is named after, or None for any other key."""
        named = _LEASE.fullmatch(key, len(self.leases)) if key.startswith(self.leases) else None
        return int(named[0], 16) if named else None
