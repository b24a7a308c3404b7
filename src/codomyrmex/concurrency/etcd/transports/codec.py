"""Turns plain operations into protobuf messages, and answers back into plain results. Pure; used by every transport."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports.protocol import (
    KV,
    Compare,
    Delete,
    Deleted,
    Done,
    Event,
    Get,
    GetResult,
    Op,
    OpResult,
    Put,
    Target,
    TxnResult,
    WatchMessage,
    WatchRequest,
)

_DONE = Done()


def range_request(get: Get) -> pb.RangeRequest:
    """The message of a read."""
    request = pb.RangeRequest(
        key=get.key,
        range_end=get.end,
        limit=get.limit,
        revision=get.revision,
        serializable=get.serializable,
    )
    if get.after:
        request.min_create_revision = get.after + 1
    if get.before:
        request.max_create_revision = get.before - 1
    if get.newest_first or get.oldest_first:
        request.sort_order = pb.RangeRequest.DESCEND if get.newest_first else pb.RangeRequest.ASCEND
        request.sort_target = pb.RangeRequest.CREATE
    return request


def delete_request(delete: Delete) -> pb.DeleteRangeRequest:
    """The message of a deletion."""
    return pb.DeleteRangeRequest(key=delete.key, range_end=delete.end)


# Operations are encoded one by one, and results decoded one by one. Protobuf joins and splits a transaction's bytes in
# C. Each message that Python touches costs far more, so what recurs is looked up here: reads of a queue, compares of a
# fence, and the equal results within one answer, such as those of all puts. A compare of a value is not kept, for
# values are large.


def _field(tag: bytes, data: bytes) -> bytes:
    """A field of bytes, as protobuf encodes it."""
    return tag + _number(len(data)) + data


@lru_cache(maxsize=1024)
def _number(value: int) -> bytes:
    """A number that is not negative, as protobuf encodes it: seven bits to a byte, the lowest first."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))


def _op(op: Op) -> bytes:
    """The ``RequestOp`` of an operation. Puts and deletions differ each time, and are encoded by hand."""
    if isinstance(op, Put):
        put = _field(b"\x0a", op.key) + _field(b"\x12", op.value)
        return _field(b"\x12", b"".join((put, b"\x18", _number(op.lease))) if op.lease else put)
    if isinstance(op, Delete):
        key = _field(b"\x0a", op.key)
        return _field(b"\x1a", key + _field(b"\x12", op.end) if op.end else key)
    return _read(op) if op.after else _known_read(op)


def _read(get: Get) -> bytes:
    return pb.RequestOp(request_range=range_request(get)).SerializeToString()


_known_read = lru_cache(maxsize=1024)(_read)


def _compare(compare: Compare) -> bytes:
    key, target, value, end, less = compare
    message = pb.Compare(key=key, target=target, range_end=end)  # type: ignore[arg-type]
    if less:
        message.result = pb.Compare.LESS
    if isinstance(value, bytes):
        message.value = value
    elif target is Target.VERSION:
        message.version = value
    elif target is Target.CREATE_REVISION:
        message.create_revision = value
    else:
        message.mod_revision = value
    return message.SerializeToString()


_known_compare = lru_cache(maxsize=1024)(_compare)


def txn_request(compares: Iterable[Compare], then: Iterable[Op], otherwise: Iterable[Op]) -> pb.SplitTxnRequest:
    """The message of a transaction."""
    return pb.SplitTxnRequest(
        compare=[
            _compare(compare) if isinstance(compare.value, bytes) else _known_compare(compare) for compare in compares
        ],
        success=[_op(op) for op in then],
        failure=[_op(op) for op in otherwise],
    )


def _kv(kv: pb.KeyValue) -> KV:
    return KV(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def get_result(response: pb.RangeResponse, revision: int) -> GetResult:
    """The keys of a read's answer. Inside a transaction only the transaction's header has a revision."""
    return GetResult([_kv(kv) for kv in response.kvs], response.count, revision)


def _result(data: bytes, revision: int) -> OpResult:
    """The result in a ``ResponseOp``."""
    response = pb.ResponseOp.FromString(data)
    kind = response.WhichOneof("response")
    if kind == "response_range":
        return get_result(response.response_range, revision)
    return _DONE if kind == "response_put" else Deleted(response.response_delete_range.deleted)


def txn_result(response: pb.SplitTxnResponse) -> TxnResult:
    """The results of a transaction, in the order of its operations. Raises ``DecodeError``."""
    revision = response.header.revision
    parts = response.responses
    known = {data: _result(data, revision) for data in set(parts)}
    return TxnResult(response.succeeded, revision, [known[data] for data in parts])


def watch_request(request: WatchRequest) -> pb.WatchRequest:
    """The message that creates a watch."""
    create = pb.WatchCreateRequest(
        key=request.key,
        range_end=request.end,
        start_revision=request.start,
        prev_kv=request.previous,
        fragment=True,
    )
    if request.deletes_only:
        create.filters.append(pb.WatchCreateRequest.NOPUT)
    return pb.WatchRequest(create_request=create)


def _events(events: Sequence[pb.Event]) -> list[Event]:
    return [
        Event(
            event.type == pb.Event.DELETE,
            _kv(event.kv),
            _kv(event.prev_kv) if event.HasField("prev_kv") else None,
        )
        for event in events
    ]


def watch_message(response: pb.WatchResponse) -> WatchMessage:
    """One message of a watch stream."""
    return WatchMessage(
        watch_id=response.watch_id,
        revision=response.header.revision,
        created=response.created,
        canceled=response.canceled,
        compact_revision=response.compact_revision,
        reason=response.cancel_reason,
        events=_events(response.events),
        fragment=response.fragment,
    )
