"""The records that values in etcd hold, decoded from them and encoded again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode


class _Encoded:
    """A record of plain fields, which this library writes as a whole."""

    __slots__ = ()

    def encode(self) -> bytes:
        """Its value in etcd, as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """The value of an entry in etcd. Unknown fields, of later versions, are ignored.

    ``since`` is when the entry joined its queue, by its own host's clock. ``waited`` is in seconds, and None until the
    holder has recorded it. ``progress`` is the number of the holder's reports of progress, and ``note`` its last note.
    ``ttl`` is that of a reservation that holds, in seconds. ``paths`` are those of a path lock.
    """

    host: str
    pid: int
    since: datetime
    task: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    waited: float | None = None
    progress: int = 0
    note: str = ""
    ttl: int | None = None
    paths: tuple[str, ...] = ()

    def granted_at(self) -> datetime | None:
        """The time of the grant, by the holder's own clock; None if the holder has not recorded it."""
        if self.waited is None:
            return None
        longest = 100 * 365 * 86400.0
        return self.since + timedelta(seconds=self.waited) if self.waited < longest else None

    @classmethod
    def decode(cls, value: bytes) -> OwnerRecord | None:
        """The record in a value, or None if the value is foreign."""
        return decode.record(_OWNER, value)


_OWNER = TypeAdapter(OwnerRecord)


@dataclass(frozen=True, slots=True)
class LeftNote(_Encoded):
    """The note that a reservation leaves to the next holder if it expires. ``owner`` is the agent's name, or empty.

    ``keys`` is the number of keys that hang on its lease: one for each entry of the reservation.
    """

    note: str
    owner: str
    host: str
    pid: int
    token: int
    paths: tuple[str, ...] = ()
    keys: int = 0

    @property
    def by(self) -> str:
        """Its author in words: the agent's name, else the process."""
        return self.owner or f"pid {self.pid} on {self.host}"

    @classmethod
    def decode(cls, value: bytes) -> LeftNote | None:
        """The note in a value, or None if the value is foreign."""
        return decode.record(_LEFT, value)


_LEFT = TypeAdapter(LeftNote)


@dataclass(frozen=True, slots=True)
class LeaseRecord(_Encoded):
    """The value of the key that hangs on the lease of a session or of a reservation."""

    host: str
    pid: int
    reservation: bool = False

    @classmethod
    def decode(cls, value: bytes) -> LeaseRecord | None:
        """The record in a value, or None if the value is foreign."""
        return decode.record(_LEASE, value)


_LEASE = TypeAdapter(LeaseRecord)


@dataclass(frozen=True, slots=True)
class LimitRecord(_Encoded):
    """The value of a rate limiter's limit in one dimension. ``per`` is its period in seconds, and ``dimensions`` names
    all dimensions of the limiter."""

    per: float
    dimensions: tuple[str, ...]

    @classmethod
    def decode(cls, value: bytes) -> LimitRecord | None:
        """The record in a value, or None if the value is foreign."""
        return decode.record(_LIMIT, value)


_LIMIT = TypeAdapter(LimitRecord)


@dataclass(frozen=True, slots=True)
class PauseRecord(_Encoded):
    """The value of a pause of a rate limiter: the process that asked for it, and the seconds for which it did."""

    host: str
    pid: int
    seconds: float
    agent: str = ""

    @classmethod
    def decode(cls, value: bytes) -> PauseRecord | None:
        """The record in a value, or None if the value is foreign."""
        return decode.record(_PAUSE, value)


_PAUSE = TypeAdapter(PauseRecord)


@dataclass(frozen=True, slots=True)
class RequesterRecord:
    """The fields of an entry that tell its requester.

    ``requester`` is a number of the task or thread that asked, within its session; 0 if it is not known. ``fails``
    marks a waiter that fails rather than wait in a deadlock, and ``reserves`` one that waits for a reservation.
    """

    requester: int = 0
    fails: bool = False
    reserves: bool = False

    @classmethod
    def decode(cls, value: bytes) -> RequesterRecord:
        """The fields in an entry's value; those of a foreign one are empty."""
        return decode.record(_REQUESTER, value) or cls()


_REQUESTER = TypeAdapter(RequesterRecord)


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """The fields of an entry that its owner shares with everybody: the value of a candidate, or the capabilities of a
    member."""

    value: Any = None
    capabilities: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, value: bytes) -> SharedRecord:
        """The fields in an entry's value; those of a foreign one are empty."""
        return decode.record(_SHARED, value) or cls()


_SHARED = TypeAdapter(SharedRecord)
