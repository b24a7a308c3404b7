"""The native transport's blocking calls, for the keepalive's thread, on connections of their own."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from codomyrmex.concurrency.etcd.transports import failures
from codomyrmex.concurrency.etcd.transports.addresses import Address, addresses_of
from codomyrmex.concurrency.etcd.transports.auth import Tls, Token, http2_context
from codomyrmex.concurrency.etcd.transports.base import BaseLeaseClient
from codomyrmex.concurrency.etcd.transports.endpoints import Endpoints
from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.methods import METHODS
from codomyrmex.concurrency.etcd.transports.native_blocking_link import BlockingLink, seconds_until
from codomyrmex.concurrency.etcd.transports.native_calls import result
from codomyrmex.concurrency.etcd.transports.native_channel import CONNECT_LIMIT
from codomyrmex.concurrency.etcd.transports.native_link import reason_of
from codomyrmex.concurrency.settings import EtcdSettings

_ADDRESS_LIMIT = 1.0  # seconds for one address, if there is another


class NativeLeaseClient(BaseLeaseClient):
    """Blocking calls on connections of their own, so that a blocked event loop cannot delay them."""

    def __init__(self, settings: EtcdSettings, endpoints: Endpoints, token: Token) -> None:
        super().__init__(endpoints, token)
        self._tls = Tls(settings, http2_context)
        self._addresses = {endpoint: addresses_of(endpoint) for endpoint in settings.endpoints}
        self._links: dict[str, BlockingLink] = {}
        self._opening: dict[str, Future[BlockingLink]] = {}  # by threads that end when they have

    def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        path, response = METHODS[method]
        token = self._token.metadata() if method != "authenticate" else ()
        try:
            link = self._link(endpoint, deadline)
        except OSError as error:
            raise failures.to_error("UNAVAILABLE", f"{NOT_SENT}: {error}", endpoint) from None
        return result(link.answer(path, token, request.SerializeToString(), deadline), response, endpoint)

    def _ping(self, endpoints: Sequence[str], timeout: float) -> None:
        for endpoint in endpoints:
            link = self._opened(endpoint)
            if link:
                link.ping(METHODS["ping"][0], timeout)
            elif endpoint not in self._opening:
                self._open_aside(endpoint, timeout)

    def _reload_tls(self) -> None:
        if self._tls.refresh():
            self.close()

    def close(self) -> None:
        """Close all connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        for opening in self._opening.values():
            opening.add_done_callback(_close_opened)
        self._opening.clear()

    def _link(self, endpoint: str, deadline: float) -> BlockingLink:
        """The link for a new call. Raises ``OSError``.

        One that is not open by ``deadline`` goes on opening, for the next call.
        """
        link = self._opened(endpoint)
        if link is None:
            opening = self._opening.get(endpoint) or self._open_aside(endpoint, CONNECT_LIMIT)
            wait((opening,), timeout=seconds_until(deadline))
            if not opening.done():
                raise TimeoutError("no connection in time")
            del self._opening[endpoint]
            link = self._links[endpoint] = opening.result()
        return link

    def _opened(self, endpoint: str) -> BlockingLink | None:
        opening = self._opening.get(endpoint)
        if opening and opening.done():
            del self._opening[endpoint]
            if not opening.exception():
                self._links[endpoint] = opening.result()
        link = self._links.get(endpoint)
        if link and not link.usable:
            self._links.pop(endpoint).close()
            return None
        return link

    def _open_aside(self, endpoint: str, limit: float) -> Future[BlockingLink]:
        """Open a link in a thread of its own, which ends when it has."""
        self._tls.refresh()  # its certificate may have been replaced
        opening: Future[BlockingLink] = Future()
        self._opening[endpoint] = opening

        def run() -> None:
            try:
                opening.set_result(self._open(endpoint, time.monotonic() + limit))
            except Exception as error:
                opening.set_exception(error)

        threading.Thread(target=run, name=f"etcd-connect-{endpoint}", daemon=True).start()
        return opening

    def _open(self, endpoint: str, deadline: float) -> BlockingLink:
        connected = _first_socket(self._look_up(endpoint, deadline), deadline)
        try:
            if self._tls.credentials:
                connected.settimeout(seconds_until(deadline))
                name = self._addresses[endpoint].host
                try:
                    connected = self._tls.credentials.wrap_socket(connected, server_hostname=name)
                except (ssl.SSLEOFError, ConnectionError) as error:
                    raise ConnectionError(f"it ended the TLS handshake ({reason_of(error)})") from None
            link = BlockingLink(endpoint, connected)
            link.greet(deadline)
        except BaseException:
            connected.close()
            raise
        return link

    def _look_up(self, endpoint: str, deadline: float) -> list[Address]:
        addresses = self._addresses[endpoint]
        asked = addresses.ask()
        left = seconds_until(deadline)
        with suppress(TimeoutError):
            asked.exception(min(left, addresses.patience or left))
        return addresses.settle(asked)


def _first_socket(addresses: Sequence[Address], deadline: float) -> socket.socket:
    """Connect to the first address that answers. Raises the ``OSError`` of the last one if none does."""
    failure = OSError("its name has no address")
    for address in addresses:
        left = seconds_until(deadline)
        connecting = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            connecting.settimeout(left if address is addresses[-1] else min(left, _ADDRESS_LIMIT))
            connecting.connect(address.where)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connecting
        except OSError as error:
            connecting.close()
            failure = error
    raise failure


def _close_opened(opening: Future[BlockingLink]) -> None:
    if not opening.exception():
        opening.result().close()
