"""The key layout, version 1: names to keys and back. Pure; every key is built and parsed here and nowhere else.

    /<namespace>/v1/lease/<lease>                  one per session: its host and pid; its version fences lost answers;
                                                   and one per reservation, on the lease of its own
    /<namespace>/v1/lock/<name>/<entry>            one per holder or waiter; ordered by create revision
    /<namespace>/v1/semaphore/<name>/<entry>       the same
    /<namespace>/v1/semaphore/<name>/limit-<n>     the semaphore's limit; a new limit has a new key
    /<namespace>/v1/rate/<name>%2F<dimension>/<entry>      one per part of a slice that is counted or waited for
    /<namespace>/v1/rate/<name>%2F<dimension>/limit-<n>    the limit of one dimension of a rate limiter; its value has
                                                   the period and the names of all dimensions
    /<namespace>/v1/pause/<name>/<lease>           leased: nobody spends from this rate limiter
    /<namespace>/v1/election/<name>/<entry>        one per leader or candidate, whose value it has
    /<namespace>/v1/group/<name>/<entry>.r         one per member of a group, whose capabilities it has
    /<namespace>/v1/path/<tree>/<entry>            one per holder or waiter of paths, which its value tells
    /<namespace>/v1/baton/lock/<name>/<entry>      a short-lived release marker: the token of a holder that released
    /<namespace>/v1/left/<kind>/<name>/<entry>     leased: the note that a reservation leaves if it expires
    /<namespace>/v1/audit/<name>                   the last forced release of a lock
    /<namespace>/v1/audit/path/<tree>              the last forced release in a tree
    /<namespace>/v1/audit/election/<name>          the last term that was ended by force
    /<namespace>/v1/dead/<queue>/entry/<id>        a dead letter
    /<namespace>/v1/dead/<queue>/claim/<id>        leased: a worker runs this dead letter now
    /<namespace>/v1/dead/<queue>/worker/<lease>-<id>   leased: a worker that is there
    /<namespace>/v1/dead/<queue>/dedup/<hash>      the id of the dead letter that stands for equal failures
    /<namespace>/v1/pool/<name>/<lease>-<instance> leased: a pool's latest figures

An entry is ``<lease>-<slot>``: the session's lease id in hex, then the key slot, a number that tells the entries of one
session in one queue apart. A reader's entry ends with ``.r``, an entry for n permits with ``.<n>``. So a key alone
tells what its entry asks for.

A name is percent-encoded, byte by byte, into one path segment: no name can reach another's keys, and the encoding of a
prefix is a prefix of the encoding. Names are in NFC, so a composed and a decomposed "é" are one name. ``lease/`` sorts
before ``lock/`` and ``path/``: one watch covers them, and tells a holder that expired from one that released.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from codomyrmex.concurrency.decode import number
from codomyrmex.concurrency.errors import InvalidName

MAX_NAME_BYTES = 512
_PLAIN = re.compile(r"[A-Za-z0-9\-._~:@+,=]+")
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:@+,=")


def nfc(text: str) -> str:
    """A name, or the beginning of one, in NFC: names that look the same are the same."""
    return unicodedata.normalize("NFC", text)


def forms(text: str) -> tuple[str, ...]:
    """A name, or the beginning of one, in NFC, followed by its other forms that may lie in etcd.

    Earlier releases stored names as they were given, and macOS gives them decomposed.
    """
    return tuple(dict.fromkeys((nfc(text), unicodedata.normalize("NFD", text), text)))


def check_name(name: str) -> str:
    """Return ``name`` in NFC if it can name a lock; raise ``InvalidName`` that says why not."""
    if not isinstance(name, str):
        raise InvalidName(f"a name must be a str, not {type(name).__name__}")
    if not name:
        raise InvalidName("a name must not be empty")
    return check_text(name, "a name", MAX_NAME_BYTES)


def check_text(text: str, what: str, most: int) -> str:
    """Return ``text`` in NFC if it is valid Unicode of ``most`` bytes without control characters.

    Else raise ``InvalidName``, in which the text is called ``what``.
    """
    text = nfc(text)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{what} must be valid Unicode; this one holds a lone surrogate") from None
    if size > most:
        raise InvalidName(f"{what} may have {most} bytes in UTF-8; this one has {size}")
    if not text.isprintable() and any(unicodedata.category(char) == "Cc" for char in text):
        raise InvalidName(f"{what} must not hold control characters: {text[:80]!r}")
    return text


def escape(text: str) -> str:
    """Percent-encode ``text`` into one path segment; injective, and prefixes map to prefixes."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode())


def unescape(segment: str) -> str | None:
    """The text whose ``escape`` is ``segment``; None if there is none, and the key is not this library's."""
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError:
        return None
    return text if escape(text) == segment else None


def text_in(segment: bytes) -> str | None:
    """The text that a segment of a key encodes; None if the key is not this library's."""
    return unescape(segment.decode("ascii")) if segment.isascii() else None


def name_in(segment: bytes) -> str | None:
    """The name that a segment of a key encodes, in the form it has there; None if it is no valid name."""
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


def next_key(key: bytes) -> bytes:
    """The smallest key after ``key``: the start of the next page of a range."""
    return key + b"\0"


def starting_with(prefix: bytes, beginning: str) -> bytes:
    """The prefix of the keys under ``prefix`` whose name starts with ``beginning``."""
    return prefix + escape(beginning).encode()


def segment_after(prefix: bytes, key: bytes) -> bytes:
    """The path segment of ``key`` that follows ``prefix``: an encoded name."""
    return key[len(prefix) :].partition(b"/")[0]


def past_segment(prefix: bytes, segment: bytes) -> bytes:
    """The first key under ``prefix`` after all keys of ``segment``: the next name's keys start there."""
    return prefix_end(prefix + segment + b"/")


_LIMIT = b"limit-"
_LIMIT_KEY = re.compile(rb"/[^/]+/v1/(?:semaphore|rate)/[^/]+/limit-([0-9]+)")
_OF_PERMITS = re.compile(rb"/[^/]+/v1/(?:semaphore|rate)/")
_IN_TREE = re.compile(rb"/[^/]+/v1/path/")
_SESSION = re.compile(rb"/([0-9a-f]{16})-[^/]*$")
_LEASE = re.compile(rb"[0-9a-f]{16}")
READER_SUFFIX = b".r"  # the end of a reader's entry key


def permits_suffix(permits: int) -> bytes:
    """The end of the key of an entry that asks for ``permits`` of a semaphore."""
    return b".%d" % permits


def is_reader(entry: bytes) -> bool:
    """True if an entry's key is that of a reader."""
    return entry.endswith(READER_SUFFIX)


def is_writer(entry: bytes) -> bool:
    """True if an entry's key is that of an exclusive holder or waiter of this library."""
    return entry.count(b".", entry.rfind(b"/")) == 0 and session_of(entry) is not None


@lru_cache(maxsize=16_384)  # a rule asks for each entry ahead after every deletion in the queue
def permits_of(entry: bytes) -> int:
    """The permits that an entry's key asks for: 1 if it names no number, 0 if it names an impossible one."""
    suffix = entry.rpartition(b"/")[2].partition(b".")[2]
    return number(suffix.lstrip(b"0")) or 0 if suffix.isdigit() else 1


def is_never_granted(entry: bytes) -> bool:
    """True if an entry's key asks for no permits of a semaphore, or for more than any limit can have.

    Every client follows this rule, so such an entry never holds and takes no place in the queue.
    """
    return not permits_of(entry) and _OF_PERMITS.match(entry) is not None


def is_in_tree(entry: bytes) -> bool:
    """True if an entry's key is that of a holder or waiter of paths."""
    return _IN_TREE.match(entry) is not None


def queue_of(entry: bytes) -> bytes:
    """The prefix, with its trailing slash, of the queue that an entry's key lies in."""
    return entry[: entry.rfind(b"/") + 1]


def session_of(entry: bytes) -> int | None:
    """The lease id of the session that an entry's key names, whatever lease the key hangs on; None for other keys."""
    named = _SESSION.search(entry)
    return int(named[1], 16) if named else None


def limit_key(queue: bytes, limit: int) -> bytes:
    """The key that gives the semaphore with the prefix ``queue`` the limit ``limit``."""
    return queue + _LIMIT + b"%d" % limit


def limit_range(queue: bytes) -> tuple[bytes, bytes]:
    """The first key and the end of the range that holds a semaphore's limit."""
    return queue + _LIMIT, prefix_end(queue + _LIMIT)


def limit_of(key: bytes) -> int | None:
    """The limit that a key names; None for an entry's key and for an impossible limit."""
    named = _LIMIT_KEY.fullmatch(key)
    return number(named[1]) or None if named else None


def lowest_limit(unleased: Iterable[bytes]) -> int | None:
    """The limit in force. If several keys name one, the lowest counts, so that too much is never granted."""
    return min((limit for key in unleased if (limit := limit_of(key)) is not None), default=None)


class Kind(NamedTuple):
    """A kind of queue: its name in messages, and its segment in keys."""

    what: str
    segment: str


LOCK = Kind("lock", "lock")
SEMAPHORE = Kind("semaphore", "semaphore")
PATH = Kind("path lock", "path")  # its queues are trees
ELECTION = Kind("election", "election")  # its holder is the leader
GROUP = Kind("group", "group")  # its holders are the members
RATE = Kind("rate limit", "rate")  # its queues are dimensions


_LISTED_KEY = re.compile(rb"/[^/]+/v1/(lock|path|election|group)/([^/]+)/[^/]*")
_LISTED = {kind.segment.encode(): kind for kind in (LOCK, PATH, ELECTION, GROUP)}


def kind_and_name(key: bytes) -> tuple[Kind, str] | None:
    """The kind and the name of the queue with this prefix, or with this entry, if it is of locks, paths, elections or
    groups; None for others."""
    found = _LISTED_KEY.fullmatch(key)
    name = text_in(found[2]) if found else None
    return (_LISTED[found[1]], name) if found and name is not None else None


class Layout:
    """The keys of one namespace.

    ``root`` is the prefix of them all, ``leases`` that of the sessions, ``dead_letters`` that of the dead letter
    queues, ``pools`` that of the pools' reports, and ``all_pauses`` that of the pauses of rate limiters.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.root = f"/{namespace}/v1/".encode()
        self.leases = self.below("lease")
        self.dead_letters = self.below("dead")
        self.pools = self.below("pool")
        self._audits = self.below("audit")
        self._release_markers = self.below("baton")
        self._left = self.below("left")
        self.all_pauses = self.below("pause")

    def below(self, segment: str) -> bytes:
        """The prefix of the keys below one segment under the root, such as ``lock`` or ``dead``."""
        return self.root + segment.encode() + b"/"

    def is_ours(self, key: bytes, end: bytes = b"") -> bool:
        """True if ``key``, or any key of a range up to ``end``, is one that only this library may write."""
        if not end:
            return key.startswith(self.root)
        return key < prefix_end(self.root) and (end == b"\0" or end > self.root)

    def lease(self, lease_id: int) -> bytes:
        """The key of the session with this lease."""
        return self.leases + b"%016x" % lease_id

    def under(self, kind: Kind) -> bytes:
        """The prefix of every queue of a kind."""
        return self.below(kind.segment)

    def queue(self, name: str, kind: Kind = LOCK) -> bytes:
        """The prefix, with its trailing slash, of every entry of the lock or semaphore ``name``."""
        return self.under(kind) + escape(name).encode() + b"/"

    def entry(self, queue: bytes, lease_id: int, slot: int, suffix: bytes = b"") -> bytes:
        """The key of a session's entry in a queue. ``suffix`` is the grant rule's: a reader's or that of n permits."""
        return queue + b"%016x-%x%b" % (lease_id, slot, suffix)

    def release_marker(self, entry: bytes) -> bytes:
        """The key of an entry's release marker; for a queue, the prefix of its entries' markers."""
        return self._release_markers + entry.removeprefix(self.root)

    def left(self, entry: bytes) -> bytes:
        """The key of the note that an entry leaves if it expires; for a queue, the prefix of its entries' notes."""
        return self._left + entry.removeprefix(self.root)

    def rate(self, name: str, dimension: str) -> bytes:
        """The prefix, with its trailing slash, of every entry in one dimension of a rate limiter."""
        return self.queue(f"{name}/{dimension}", RATE)

    def rate_and_dimension(self, key: bytes) -> tuple[str, str] | None:
        """The rate limiter and the dimension of an entry or a limit; None for other keys."""
        name, slash, dimension = (self.name_of(key, RATE) or "").rpartition("/")
        return (name, dimension) if slash and name else None

    def rate_prefix(self, name: str) -> bytes:
        """The prefix of every key of a rate limiter, and of those of limiters whose names begin with ``name`` and a
        slash."""
        return starting_with(self.under(RATE), f"{name}/")

    def pauses(self, name: str) -> bytes:
        """The prefix, with its trailing slash, of the pauses of a rate limiter."""
        return starting_with(self.all_pauses, name) + b"/"

    def paused_limiter(self, key: bytes) -> str | None:
        """The rate limiter that a pause's key closes; None for other keys."""
        return text_in(segment_after(self.all_pauses, key)) if key.startswith(self.all_pauses) else None

    def pause(self, name: str, lease_id: int) -> bytes:
        """The key of the pause of a rate limiter that hangs on this lease."""
        return self.pauses(name) + b"%016x" % lease_id

    def audit(self, name: str, kind: Kind = LOCK) -> bytes:
        """The key of the record of the last forced release of a lock, of a tree's entry or of a term."""
        return self._audits + (b"" if kind is LOCK else kind.segment.encode() + b"/") + escape(name).encode()

    def name_of(self, entry: bytes, kind: Kind = LOCK) -> str | None:
        """The name of the queue that an entry's key lies in; None if the key is not one of this kind."""
        rest = entry.removeprefix(self.under(kind))
        segment, slash, _ = rest.partition(b"/")
        if rest is entry or not slash or not segment or len(segment) > 3 * MAX_NAME_BYTES:
            return None
        return text_in(segment)

    def lease_of(self, key: bytes) -> int | None:
        """The lease id that a session's key names; None for any other key."""
        named = _LEASE.fullmatch(key, len(self.leases)) if key.startswith(self.leases) else None
        return int(named[0], 16) if named else None

    def dead_letter_queue(self, name: str) -> DeadLetterKeys:
        """The keys of one dead letter queue."""
        return DeadLetterKeys(starting_with(self.dead_letters, name) + b"/")

    def pool_report(self, name: str, lease_id: int, instance: str) -> bytes:
        """The key of the figures that one pool of a session reports."""
        return starting_with(self.pools, name) + f"/{lease_id:016x}-{instance}".encode()


class DeadLetterKeys:
    """The keys of one dead letter queue: the prefixes of its entries, claims and workers, and single keys."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.entries = prefix + b"entry/"
        self.claims = prefix + b"claim/"
        self.workers = prefix + b"worker/"
        self._dedup = prefix + b"dedup/"

    def entry(self, entry_id: str) -> bytes:
        """The key of a dead letter."""
        return starting_with(self.entries, entry_id)

    def claim(self, entry_id: str) -> bytes:
        """The key of a worker's claim to a dead letter."""
        return starting_with(self.claims, entry_id)

    def worker(self, lease_id: int, worker_id: str) -> bytes:
        """The key of a worker that runs on the session with this lease."""
        return self.workers + f"{lease_id:016x}-{worker_id}".encode()

    def dedup(self, digest: str) -> bytes:
        """The key that failures with this dedup hash share."""
        return self._dedup + digest.encode()

    def id_in(self, key: bytes) -> str:
        """The id of the dead letter whose entry or claim has this key."""
        prefix = self.claims if key.startswith(self.claims) else self.entries
        return key[len(prefix) :].decode(errors="replace")
