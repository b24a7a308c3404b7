"""Turns plain operations into protobuf messages, and answers back into plain results. Pure; used by every transport."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def _op(op: Op) -> pb.RequestOp | Mapping[str, Mapping[str, bytes | int]]:
    """An operation as a message or as its fields, of which protobuf makes the message at half the price."""
    if isinstance(op, Put):
        return {"request_put": {"key": op.key, "value": op.value, "lease": op.lease}}
    if isinstance(op, Delete):
        return {"request_delete_range": {"key": op.key, "range_end": op.end}}
    return _read(op)


# Reads of a queue and compares of a fence recur, so their messages are cached. Protobuf copies a message that is put
# into another one, so a cached message never changes.
@lru_cache(maxsize=1024)
def _read(get: Get) -> pb.RequestOp:
    return pb.RequestOp(request_range=range_request(get))


@lru_cache(maxsize=1024)
def _compare(compare: Compare) -> pb.Compare:
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
    return message


def txn_request(compares: Iterable[Compare], then: Iterable[Op], otherwise: Iterable[Op]) -> pb.TxnRequest:
    """The message of a transaction."""
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_op(op) for op in then],
        failure=[_op(op) for op in otherwise],
    )


def _kv(kv: pb.KeyValue) -> KV:
    return KV(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def get_result(response: pb.RangeResponse, revision: int) -> GetResult:
    """The keys of a read's answer. Inside a transaction only the transaction's header has a revision."""
    return GetResult([_kv(kv) for kv in response.kvs], response.count, revision)


def txn_result(response: pb.TxnResponse) -> TxnResult:
    """The results of a transaction, in the order of its operations."""
    revision = response.header.revision
    results: list[OpResult] = []
    for item in response.responses:
        kind = item.WhichOneof("response")
        if kind == "response_range":
            results.append(get_result(item.response_range, revision))
        elif kind == "response_put":
            results.append(_DONE)
        else:
            results.append(Deleted(item.response_delete_range.deleted))
    return TxnResult(response.succeeded, revision, results)


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
