"""The messages of etcd's HTTP/JSON gateway: paths, JSON bodies, and the errors that answers stand for."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import requests
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.methods import METHODS, status_name
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage

_PATHS = {
    "range": "/kv/range",
    "delete": "/kv/deleterange",
    "txn": "/kv/txn",
    "grant": "/lease/grant",
    "revoke": "/lease/revoke",
    "renew": "/lease/keepalive",
    "time_to_live": "/lease/timetolive",
    "members": "/cluster/member/list",
    "alarms": "/maintenance/alarm",
    "status": "/maintenance/status",
    "authenticate": "/auth/authenticate",
}


_LONGEST = 500  # characters of an error's text, which may repeat what a server sent


def body(message: Any) -> io.BytesIO:
    """A message in JSON, as a file: aiohttp sends files of any size piece by piece."""
    if isinstance(message, pb.SplitTxnRequest):
        message = pb.TxnRequest.FromString(message.SerializeToString())
    return io.BytesIO(json.dumps(MessageToDict(message, preserving_proto_field_name=True)).encode())


def answer(method: str, code: int, text: str, endpoint: str) -> Any:
    """The message in an answer; raises the ``EtcdError`` that it may stand for."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise _no_gateway(code, endpoint)
    raise_if_error(told, endpoint)
    try:
        response = METHODS[method][1]
        whole = pb.TxnResponse if response is pb.SplitTxnResponse else response
        return response.FromString(
            ParseDict(told.get("result", told), whole(), ignore_unknown_fields=True).SerializeToString()
        )
    except ParseError:
        raise _no_gateway(code, endpoint) from None


def _no_gateway(code: int, endpoint: str) -> EtcdError:
    if code == 404:
        return EtcdError(
            f"etcd at {endpoint} has no gateway: it was started with --enable-grpc-gateway=false; "
            "start it without, or use transport=native"
        )
    text = f"{endpoint} answered {code} with what is not etcd's JSON; is a proxy in between?"
    return EtcdUnavailable(text, applied="unknown", retryable=True)


def raise_if_error(told: dict[str, Any], endpoint: str) -> None:
    """Raise the ``EtcdError`` that an answer's JSON stands for."""
    problem = told.get("error")
    if problem:
        # One answer: {"error": text, "code": n}. In a stream: {"error": {"message": text, "grpc_code": n}}.
        inner: dict[str, Any] = problem if isinstance(problem, dict) else {"message": problem, **told}
        number = int(inner.get("grpc_code", inner.get("code", 2)))
        raise failures.to_error(status_name(number), str(inner.get("message", "")), endpoint)


def failure(error: BaseException, endpoint: str) -> EtcdError:
    """The error for a request that got no answer."""
    if isinstance(error, TimeoutError | requests.Timeout):
        return failures.to_error("DEADLINE_EXCEEDED", "no answer in time", endpoint)
    text = str(error)
    if isinstance(error, aiohttp.ClientSSLError | requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" not in text:
        text = f"Ssl handshake failed: {text}"
    elif isinstance(error, aiohttp.ClientConnectorError) or "Failed to establish a new connection" in text:
        text = f"failed to connect to all addresses: {text}"
    return failures.to_error("UNAVAILABLE", text[:_LONGEST] or type(error).__name__, endpoint)


def path(method: str) -> str:
    """The path of a method of etcd."""
    return _PATHS[method]


def watch_message(told: dict[str, Any], number: int, endpoint: str) -> WatchMessage:
    """One message of watch ``number``; raises the ``EtcdError`` that it may stand for."""
    raise_if_error(told, endpoint)
    message = codec.watch_message(ParseDict(told["result"], pb.WatchResponse(), ignore_unknown_fields=True))
    if not (message.created and message.canceled):  # a refused watch keeps the id that says so
        message.watch_id = number
    return message
