"""Fenced transactions: they commit only while entries have the create revision with which they were granted."""

from __future__ import annotations

from collections.abc import Sequence

from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import (
    Compare,
    Delete,
    Get,
    GetResult,
    Op,
    OpResult,
    Target,
    TxnResult,
)
from codomyrmex.concurrency.session_core import SessionCore


def still_there(keys: Sequence[bytes], token: int) -> list[Compare]:
    """The compares that hold while every one of ``keys`` is the entry that was granted with ``token``."""
    return [Compare(key, Target.CREATE_REVISION, token) for key in keys]


def gone(results: Sequence[OpResult], token: int) -> bool:
    """True if a reading of the keys, one result for each, lacks the entry with ``token`` under one of them."""
    return not all(isinstance(one, GetResult) and any(kv.create_revision == token for kv in one.kvs) for one in results)


async def run_fenced(
    session: SessionCore, keys: Sequence[bytes], token: int, ops: Sequence[Op], compares: Sequence[Compare] = ()
) -> TxnResult | None:
    """Run ``ops`` if the entries with ``token`` are still under all of ``keys``, and ``compares`` hold; None if an
    entry is gone. The caller has called ``check_keys``."""
    request = Request(
        keys,
        ops,
        compares=(*still_there(keys, token), *compares),
        otherwise=[Get(key) for key in keys],
        alone=True,
    )
    reply = await session.committer.commit(request)
    if reply.succeeded:
        return TxnResult(True, reply.revision, reply.results)
    return None if gone(reply.results, token) else TxnResult(False, reply.revision, ())


def check_keys(session: SessionCore, ops: Sequence[Op]) -> None:
    """Raise ``ValueError`` if one of ``ops`` writes a key of the library."""
    layout = session.layout
    for op in ops:
        end = op.end if isinstance(op, Delete) else b""
        if not isinstance(op, Get) and layout.is_ours(op.key, end):
            raise ValueError(f"{op.key!r} is among the library's own keys; write outside {layout.root!r}")


def in_bytes(text: str | bytes) -> bytes:
    """A key or a value as bytes; a ``str`` in UTF-8."""
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"keys and values are str or bytes, not {type(text).__name__}")
    return text
