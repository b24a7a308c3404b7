"""The handle of a reservation: a URL-safe text that lets any process renew, write under and release it. Pure.

    cdx1_<base64url of: length (4 bytes) | digest (8 bytes) | payload>

The payload is the lease, the token, the TTL, the namespace and the entry keys. The length tells a handle that was cut,
the digest one that was changed. A handle is a capability: this module keeps it out of every message and every repr.
"""

from __future__ import annotations

import binascii
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b

from codomyrmex.concurrency.errors import InvalidHandle
from codomyrmex.concurrency.keys import Layout, session_of

VERSION = 1
_PREFIX = "cdx"
_FORM = re.compile(r"cdx([1-9][0-9]{0,5})_([A-Za-z0-9_-]*)")
_BEGINNING = re.compile(r"c|cd|cdx|cdx[1-9][0-9]{0,5}")
_HEAD = struct.Struct(">I8s")
_NUMBERS = struct.Struct(">QQI")
_COPY_AGAIN = "copy it whole from the output of reserve"


@dataclass(frozen=True, slots=True, repr=False)
class Handle:
    """The content of a handle: the lease, the token that all entries share, the TTL in seconds, and the entry keys."""

    namespace: str
    lease: int
    token: int
    ttl: int
    keys: tuple[bytes, ...]

    def encode(self) -> str:
        """The handle as text."""
        root = Layout(self.namespace).root
        lines = [self.namespace.encode(), *(key.removeprefix(root) for key in self.keys)]
        payload = _NUMBERS.pack(self.lease, self.token, self.ttl) + b"\n".join(lines)
        packed = _HEAD.pack(len(payload), _digest(payload)) + payload
        return f"{_PREFIX}{VERSION}_{_text(packed)}"

    @classmethod
    def decode(cls, text: str, namespace: str | None = None) -> Handle:
        """The content of ``text``. Raises ``InvalidHandle`` that says what is wrong with it; with ``namespace``, also
        for a handle of another one."""
        if not isinstance(text, str):
            raise InvalidHandle(f"a handle is a str, not {type(text).__name__}")
        if _BEGINNING.fullmatch(text):
            raise _cut()
        form = _FORM.fullmatch(text)
        if not form:
            raise InvalidHandle(f"this text is no handle of a reservation: a handle begins with {_PREFIX}{VERSION}_")
        version = int(form[1])
        if version > VERSION:
            raise InvalidHandle(
                f"this handle is of version {version}, and this release reads up to {VERSION}: upgrade it here"
            )
        found = cls._read(_payload(form[2]))
        if namespace not in (None, found.namespace):
            raise InvalidHandle(
                f"this handle is of the namespace {found.namespace!r}, not of {namespace!r}: open it with a session of "
                "its namespace"
            )
        return found

    @classmethod
    def _read(cls, payload: bytes) -> Handle:
        try:
            lease, token, ttl = _NUMBERS.unpack_from(payload)
            namespace, *keys = payload[_NUMBERS.size :].split(b"\n")
            root = Layout(namespace.decode()).root
        except (struct.error, UnicodeDecodeError):
            raise _damaged() from None
        entries = tuple(root + key for key in keys)
        if not entries or not (lease and token and ttl) or any(session_of(entry) is None for entry in entries):
            raise _damaged()
        return cls(namespace.decode(), lease, token, ttl, entries)

    def __repr__(self) -> str:
        return f"<Handle of {len(self.keys)} entries with token {self.token}>"


def _payload(encoded: str) -> bytes:
    """The payload that ``encoded`` carries."""
    try:
        packed = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        raise _cut() from None  # of these characters, only a number that no encoding has is refused
    if len(packed) < _HEAD.size:
        raise _cut()
    length, digest = _HEAD.unpack_from(packed)
    payload = packed[_HEAD.size :]
    if len(payload) < length:
        raise _cut()
    if len(payload) > length or digest != _digest(payload) or _text(packed) != encoded:
        raise _damaged()
    return payload


def _text(packed: bytes) -> str:
    return urlsafe_b64encode(packed).rstrip(b"=").decode()


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=8).digest()


def _cut() -> InvalidHandle:
    return InvalidHandle(f"this handle is cut: {_COPY_AGAIN}")


def _damaged() -> InvalidHandle:
    return InvalidHandle(f"this handle was changed since it was given out: {_COPY_AGAIN}")
