"""Plain calls to etcd's JSON gateway, so that what judges and drives the library does not run through it."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # etcd is no page to fetch through a proxy


def call(endpoint: str, path: str, body: Mapping[str, object], timeout: float = 5.0) -> dict[str, Any]:
    """The answer to one request; raises ``OSError`` where there is none."""
    with _open(endpoint, path, body, timeout) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def stream(endpoint: str, path: str, body: Mapping[str, object], timeout: float = 5.0) -> Iterator[dict[str, Any]]:
    """The answers of a stream, until it ends; raises ``OSError`` if it falls silent."""
    with _open(endpoint, path, body, timeout) as response:
        for line in response:
            yield json.loads(line)["result"]


def coded(key: bytes) -> str:
    """A key as the gateway's JSON has it."""
    return base64.b64encode(key).decode()


def decoded(text: str) -> bytes:
    """A key or value out of the gateway's JSON."""
    return base64.b64decode(text)


def _open(endpoint: str, path: str, body: Mapping[str, object], timeout: float) -> HTTPResponse:
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode())
    response: HTTPResponse = _opener.open(request, timeout=timeout)
    return response
