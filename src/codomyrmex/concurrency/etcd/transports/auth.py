"""The credentials for etcd: the user's token, and TLS from files.

Changed files are read again, because Kubernetes and cert-manager replace the files of a running process.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from codomyrmex.concurrency.errors import EtcdAuthError, EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import failures
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage
from codomyrmex.concurrency.settings import EtcdSettings

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

_SURELY_VALID = 0.5  # seconds; etcd counts a token's life in whole seconds


class Token:
    """The user's auth token, shared by the event loop and the keepalive thread; empty without a user."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self.required = settings.username is not None
        self.value = ""
        self.since = 0.0

    def request(self) -> pb.AuthenticateRequest:
        """The request for a new token; a password file is read each time."""
        return pb.AuthenticateRequest(name=self._settings.username or "", password=self._password())

    def renew(self, value: str) -> None:
        """Store a new token."""
        self.value = value
        self.since = time.monotonic()

    def metadata(self) -> Metadata:
        """The token as gRPC metadata; empty without a token."""
        return (("token", self.value),) if self.value else ()

    def has_expired(self, error: EtcdError) -> bool:
        """True if a call failed only because the token is stale."""
        return self.required and failures.token_expired(str(error))

    def may_have_expired(self, since: float, reason: str) -> bool:
        """True if a watch may have been refused because its token, from the time ``since``, is stale.

        Some releases of etcd, such as 3.5.1, then say "permission denied" too. This text counts only when the token is
        old enough to have expired.
        """
        if not self.required:
            return False
        old = time.monotonic() - since > _SURELY_VALID
        return failures.token_expired(reason) or (old and "permission denied" in reason)

    def check_watch(self, since: float, message: WatchMessage) -> None:
        """Raise ``EtcdUnavailable`` and forget the token if a watch was refused because its token is stale.

        ``since`` is the time at which the watch's stream got its token.
        """
        if message.created and message.canceled and self.may_have_expired(since, message.reason):
            self.value = ""
            raise EtcdUnavailable("the watch stream's auth token expired", retryable=True)

    def _password(self) -> str:
        settings = self._settings
        if settings.password_file is None:
            return settings.password.get_secret_value() if settings.password else ""
        try:
            return settings.password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise EtcdAuthError(f"cannot read the password file {settings.password_file}: {reason}") from None


class Tls(Generic[T]):
    """``credentials`` that ``make`` builds from three files: the CA, our certificate and its key; None for http."""

    def __init__(self, settings: EtcdSettings, make: Callable[[Path | None, Path | None, Path | None], T]) -> None:
        self._files = (settings.ca_file, settings.cert_file, settings.key_file)
        self._make = make
        self._used = settings.endpoints[0].startswith("https://")
        self._seen: list[tuple[int, int] | None] = []
        self.credentials: T | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Read the files if they have changed; True if they had, and new connections are needed.

        Raises ``EtcdError`` if a file cannot be read the first time. Later, the earlier credentials are kept.
        """
        if not self._used:
            return False
        try:
            found = [_stamp(path) for path in self._files]
            if self.credentials is not None and found == self._seen:
                return False
            made = self._make(*self._files)
        except OSError as error:  # ``ssl.SSLError`` is one
            if self.credentials is not None:
                return False
            named = error.filename or ", ".join(str(path) for path in self._files if path)
            raise EtcdError(f"cannot use the TLS file {named}: {error.strerror or error}") from None
        self._seen, self.credentials = found, made
        return True


def ssl_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Credentials for sockets: what the server is checked by, and what it checks us by. Raises ``OSError``."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if cert:
        context.load_cert_chain(cert, key)
    return context


def http2_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Credentials for sockets that speak HTTP/2. Raises ``OSError``."""
    context = ssl_context(ca, cert, key)
    context.set_alpn_protocols(["h2"])
    return context


NO_ALPN = "it did not agree on HTTP/2 by ALPN"


def agreed_on_http2(tls: ssl.SSLObject | ssl.SSLSocket | None) -> bool:
    """True if both sides will speak HTTP/2: without TLS that is taken for granted."""
    return tls is None or tls.selected_alpn_protocol() == "h2"


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_ino
