"""The failure table: from a failed call's code and text to its error, if it was applied, and if a retry may help.

The codes are gRPC's names, the texts etcd's published error strings. Whatever retries a call goes by this table.
"""

from __future__ import annotations

from typing import NamedTuple

from codomyrmex.concurrency.errors import (
    Applied,
    EtcdAuthError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdUnavailable,
)


class Meaning(NamedTuple):
    """A line of the table: the error to raise, and its ``applied`` and ``retryable``."""

    error: type[EtcdError]
    applied: Applied
    retryable: bool


TOKEN_EXPIRED = ("invalid auth token", "auth token is not provided", "auth: revision in header is old")
USERS_CHANGED = "revision of auth store is old"  # between the check of a call and its turn to be applied
COMPACTED = "required revision has been compacted"
LEASE_NOT_FOUND = "requested lease not found"
NOT_SENT = "the request was not sent"  # or the server said that it had not looked at it

# The first line whose text is in the error's details wins; texts before codes. Those on connections, names and TLS are
# the words of grpcio, of Python's ssl module, or of our own transport.
_BY_TEXT: tuple[tuple[str, Meaning], ...] = (
    ("database space exceeded", Meaning(EtcdQuotaExceeded, "unknown", False)),
    *((text, Meaning(EtcdAuthError, "no", True)) for text in TOKEN_EXPIRED),
    (USERS_CHANGED, Meaning(EtcdUnavailable, "no", True)),
    ("authentication failed", Meaning(EtcdAuthError, "no", False)),
    ("permission denied", Meaning(EtcdAuthError, "no", False)),
    ("user name is empty", Meaning(EtcdAuthError, "no", False)),
    ("CERTIFICATE_VERIFY_FAILED", Meaning(EtcdAuthError, "no", False)),
    ("SSL routines", Meaning(EtcdAuthError, "no", False)),
    ("Ssl handshake failed", Meaning(EtcdAuthError, "no", False)),
    ("HTTP status 401", Meaning(EtcdAuthError, "no", False)),
    ("HTTP status 403", Meaning(EtcdAuthError, "no", False)),
    ("HTTP status 4", Meaning(EtcdUnavailable, "no", True)),  # not from etcd, which has not seen the call
    ("grpc: received message larger than max", Meaning(EtcdError, "no", False)),
    (NOT_SENT, Meaning(EtcdUnavailable, "no", True)),
    ("failed to connect to all addresses", Meaning(EtcdUnavailable, "no", True)),
    ("DNS resolution failed", Meaning(EtcdUnavailable, "no", True)),
    ("etcdserver: no leader", Meaning(EtcdUnavailable, "no", True)),
    ("etcdserver: too many requests", Meaning(EtcdUnavailable, "no", True)),
    ("etcdserver: not capable", Meaning(EtcdUnavailable, "no", True)),
    (COMPACTED, Meaning(EtcdError, "no", False)),
    (LEASE_NOT_FOUND, Meaning(EtcdError, "no", False)),
)
_BY_CODE: dict[str, Meaning] = {
    "UNAVAILABLE": Meaning(EtcdUnavailable, "unknown", True),
    "DEADLINE_EXCEEDED": Meaning(EtcdUnavailable, "unknown", True),
    "CANCELLED": Meaning(EtcdUnavailable, "unknown", True),
    "UNKNOWN": Meaning(EtcdUnavailable, "unknown", True),
    "INTERNAL": Meaning(EtcdUnavailable, "unknown", True),
    "UNAUTHENTICATED": Meaning(EtcdAuthError, "no", True),
    "PERMISSION_DENIED": Meaning(EtcdAuthError, "no", False),
    "RESOURCE_EXHAUSTED": Meaning(EtcdError, "unknown", False),
}
_REFUSED = Meaning(EtcdError, "no", False)


def meaning(code: str, details: str) -> Meaning:
    """The table's line for a failed call, by the name of its gRPC code and by etcd's text."""
    return next((found for text, found in _BY_TEXT if text in details), None) or _BY_CODE.get(code, _REFUSED)


def token_expired(details: str) -> bool:
    """True if the call failed only because the auth token is stale: a new token helps."""
    return any(text in details for text in (*TOKEN_EXPIRED, USERS_CHANGED))


def to_error(code: str, details: str, endpoint: str) -> EtcdError:
    """The error to raise for a failed call to ``endpoint``."""
    found = meaning(code, details)
    return found.error(_text(found, code, details, endpoint), applied=found.applied, retryable=found.retryable)


def _text(found: Meaning, code: str, details: str, endpoint: str) -> str:
    reason = details.removeprefix("etcdserver: ") or code.lower().replace("_", " ")
    if found.error is EtcdQuotaExceeded:
        return f"etcd's database is full ({reason}); compact, defragment and disarm the alarm, then try again"
    if found.error is EtcdAuthError:
        hint = "; this etcd wants a user: set CODOMYRMEX_ETCD_USERNAME and CODOMYRMEX_ETCD_PASSWORD"
        asked = hint if "user name is empty" in details else _scheme_hint(details, endpoint)
        if "CERTIFICATE_VERIFY_FAILED" in details and ("issuer" in details or "self-signed" in details):
            asked = "; CODOMYRMEX_ETCD_CA_FILE must name the certificate of its authority"
        return f"etcd at {endpoint} refused access: {reason}; check user, password, role and certificates{asked}"
    if found.error is EtcdUnavailable:
        # A server refuses our certificate after the handshake; grpcio then reports only its own failure.
        tls = any(text in details for text in ("TSI_", "security handshaker", "[SSL:"))
        hint = _scheme_hint(details, endpoint) or "; TLS failed: check ca_file, cert_file and key_file" * tls
        return f"etcd at {endpoint} did not answer: {reason}{hint}"
    hint = "; it has no users to check: unset CODOMYRMEX_ETCD_USERNAME, or run `etcdctl auth enable`"
    return f"etcd at {endpoint} refused the call: {reason}{hint if 'authentication is not enabled' in details else ''}"


# These words are used if a server ends the handshake or answers it in plain text.
_NO_TLS = (
    "Handshake read failed",
    "ssl:default [None]",
    "ssl:default [Connection reset",
    "ended the TLS handshake",
    "WRONG_VERSION_NUMBER",
    "wrong version number",
)


_NO_HTTP2 = ("before it said that it speaks HTTP/2", "it speaks TLS")


def _scheme_hint(details: str, endpoint: str) -> str:
    """A hint on http or https in the endpoint, if a connection was made and then ended."""
    if endpoint.startswith("https://") and any(text in details for text in _NO_TLS):
        return f"; does it speak TLS there? If not, the endpoint is http://{endpoint.removeprefix('https://')}"
    if endpoint.startswith("http://") and any(text in details for text in _NO_HTTP2):
        return f"; does it speak TLS there? Then the endpoint is https://{endpoint.removeprefix('http://')}"
    if any(text in details for text in ("not HTTP/2", "not speak HTTP/2")):
        return "; where only HTTP/1 gets through, use transport=gateway"
    # Only while connecting: the same words are used for a server that dies in the middle of a call.
    if endpoint.startswith("http://") and "failed to connect" in details and "Socket closed" in details:
        return f"; does it speak TLS there? Then the endpoint is https://{endpoint.removeprefix('http://')}"
    return ""


def unavailable(endpoints: tuple[str, ...], seconds: float, last: EtcdError | None) -> EtcdUnavailable:
    """The error after every endpoint was tried within ``seconds``; it names them and the next step."""
    applied: Applied = last.applied if last else "no"
    cause = f" (last: {last})" if last else ""
    return EtcdUnavailable(
        f"no etcd answered within {seconds:g} s at {', '.join(endpoints)}{cause}; "
        "check that etcd runs there, or set CODOMYRMEX_ETCD_ENDPOINTS; "
        "for a local one: codomyrmex concurrency dev",
        applied=applied,
        retryable=True,
    )
