"""Plain HTTP calls to etcd's JSON gateway, with nothing of the library in them."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.request
from typing import Any


def coded(text: str | bytes) -> str:
    """A key or value as the gateway's JSON carries it."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def decoded(text: str) -> bytes:
    """What ``coded`` was given."""
    return base64.b64decode(text)


class Gateway:
    """One etcd's gateway; each call opens a connection of its own."""

    def __init__(self, endpoint: str, tls: ssl.SSLContext | None = None, timeout: float = 10.0) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.tls = tls
        self.timeout = timeout

    def call(self, path: str, **body: object) -> dict[str, Any]:
        """The answer to one request; raises OSError where there is none."""
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=self.timeout, context=self.tls) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def revision(self) -> int:
        """The store's current revision."""
        answer = self.call("kv/range", key=coded("\0"), count_only=True)
        return int(answer["header"]["revision"])

    def put(self, key: str, value: str | bytes = b"", lease: int = 0) -> None:
        self.call("kv/put", key=coded(key), value=coded(value), lease=str(lease))

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", key=coded(key))

    def keys(self, prefix: str) -> dict[str, bytes]:
        """All keys with a prefix, and their values, as one consistent reading."""
        end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
        answer = self.call("kv/range", key=coded(prefix), range_end=coded(end))
        return {decoded(kv["key"]).decode(): decoded(kv.get("value", "")) for kv in answer.get("kvs", ())}

    def free_space(self) -> None:
        """Compact everything, give the space back and disarm the alarm of a full database."""
        self.call("kv/compaction", revision=str(self.revision()), physical=True)
        self.call("maintenance/defragment")
        for alarm in self.call("maintenance/alarm", action="GET").get("alarms", ()):
            self.call("maintenance/alarm", action="DEACTIVATE", **alarm)
