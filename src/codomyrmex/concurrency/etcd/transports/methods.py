"""The calls of etcd's gRPC service that the library makes: the path of each, and the message that answers it."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports.auth import Metadata

METHODS: dict[str, tuple[str, Any]] = {
    "range": ("/etcdserverpb.KV/Range", pb.RangeResponse),
    "delete": ("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeResponse),
    "txn": ("/etcdserverpb.KV/Txn", pb.SplitTxnResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse),
    "renew": ("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse),
    "time_to_live": ("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse),
    "members": ("/etcdserverpb.Cluster/MemberList", pb.MemberListResponse),
    "alarms": ("/etcdserverpb.Maintenance/Alarm", pb.AlarmResponse),
    "status": ("/etcdserverpb.Maintenance/Status", pb.StatusResponse),
    "authenticate": ("/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse),
    "ping": ("/grpc.health.v1.Health/Check", Empty),  # needs no user, and the member answers by itself
}
WATCH = "/etcdserverpb.Watch/Watch"
REQUIRE_LEADER: Metadata = (("hasleader", "true"),)

STATUS_NAMES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)  # by gRPC's number


def status_name(number: int) -> str:
    """The name of a gRPC status; of one that gRPC does not have, UNKNOWN."""
    return STATUS_NAMES[number] if 0 <= number < len(STATUS_NAMES) else "UNKNOWN"
