"""The messages of transactions, against messages made field by field."""

from __future__ import annotations

from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Delete, Get, Op, Put, Target


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
    assert codec.txn_request((fence,), ops, ops[3:]) == expected
