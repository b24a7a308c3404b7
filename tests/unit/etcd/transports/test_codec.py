"""The messages of transactions, against messages made field by field."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec
from codomyrmex.concurrency.etcd.transports.protocol import (
    Compare,
    Delete,
    Deleted,
    Done,
    Get,
    Op,
    OpResult,
    Put,
    Target,
)


def test_a_transaction_carries_every_field_of_its_operations() -> None:
    fence = Compare(b"fence", Target.VERSION, 3)
    ops: tuple[Op, ...] = (
        Get(b"q/", b"q0", limit=1, newest_first=True),
        Put(b"q/1", b"value", 7),
        Put(b"bare", b""),
        Delete(b"q/2"),
        Delete(b"r/", b"r0"),
    )
    read = pb.RangeRequest(key=b"q/", range_end=b"q0", limit=1)
    read.sort_order, read.sort_target = pb.RangeRequest.DESCEND, pb.RangeRequest.CREATE
    messages = [
        pb.RequestOp(request_range=read),
        pb.RequestOp(request_put=pb.PutRequest(key=b"q/1", value=b"value", lease=7)),
        pb.RequestOp(request_put=pb.PutRequest(key=b"bare")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"q/2")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"r/", range_end=b"r0")),
    ]
    compare = pb.Compare(key=b"fence", target=pb.Compare.VERSION, version=3)
    expected = pb.TxnRequest(compare=[compare], success=messages, failure=messages[3:])
    assert _whole(codec.txn_request((fence,), ops, ops[3:])) == expected


def _whole(split: pb.SplitTxnRequest) -> pb.TxnRequest:
    return pb.TxnRequest.FromString(split.SerializeToString())


keys = st.binary(min_size=1, max_size=300)
writes = st.builds(Put, keys, st.binary(max_size=300), st.integers(0, 2**63 - 1)) | st.builds(
    Delete, keys, st.binary(max_size=300)
)


@given(st.lists(writes, max_size=5))
def test_the_operations_encoded_by_hand_are_those_of_protobuf(ops: list[Put | Delete]) -> None:
    request = _whole(codec.txn_request((), ops, ()))
    for op, message in zip(ops, request.success, strict=True):
        if isinstance(op, Put):
            put = pb.PutRequest(key=op.key, value=op.value, lease=op.lease)
            assert message == pb.RequestOp(request_put=put)
        else:
            delete = pb.DeleteRangeRequest(key=op.key, range_end=op.end)
            assert message == pb.RequestOp(request_delete_range=delete)


def test_a_value_of_a_megabyte_is_encoded() -> None:
    value = bytes(1 << 20)
    (message,) = _whole(codec.txn_request((), (Put(b"key", value),), ())).success
    assert message.request_put.value == value


kvs = st.builds(
    pb.KeyValue, key=keys, value=st.binary(), create_revision=st.integers(1, 2**60), lease=st.integers(0, 2**60)
)
results = (
    st.builds(lambda kvs, count: pb.RangeResponse(kvs=kvs, count=count), st.lists(kvs, max_size=2), st.integers(0, 9))
    | st.just(pb.PutResponse())
    | st.builds(pb.DeleteRangeResponse, deleted=st.integers(0, 2))
)


@given(st.lists(results, max_size=8), st.integers(1, 2**60), st.booleans())
def test_an_answer_has_the_result_of_each_operation(
    results: list[pb.RangeResponse | pb.PutResponse | pb.DeleteRangeResponse], revision: int, succeeded: bool
) -> None:
    answer = pb.TxnResponse(succeeded=succeeded, header=pb.Header(revision=revision))
    expected: list[OpResult] = []
    for result in results:
        if isinstance(result, pb.RangeResponse):
            answer.responses.add(response_range=result)
            expected.append(codec.get_result(result, revision))
        elif isinstance(result, pb.PutResponse):
            answer.responses.add(response_put=result)
            expected.append(Done())
        else:
            answer.responses.add(response_delete_range=result)
            expected.append(Deleted(result.deleted))
    split = pb.SplitTxnResponse.FromString(answer.SerializeToString())
    assert codec.txn_result(split) == (succeeded, revision, expected)
