"""The connection to one endpoint of the native transport: opened at its first call, and again after it is lost."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Iterable

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd.transports.addresses import Address, addresses_of
from codomyrmex.concurrency.etcd.transports.native_link import Link, reason_of

CONNECT_LIMIT = 3.0  # seconds for one attempt, from the lookup of the name to the peer's first words
_STAGGER = 0.25  # seconds until the next address is tried beside one that has not answered


class Channel:
    """Opens links to ``endpoint``, one for all calls.

    ``renew`` lets new calls take a new link. An old one closes when its last call is over, so replacing TLS files harms
    nothing that is under way.
    """

    def __init__(self, endpoint: str, credentials: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._addresses = addresses_of(endpoint)
        self._link: Link | None = None
        self._links: set[Link] = set()
        self._opening: asyncio.Task[Link] | None = None
        self._stage = ""
        self._closed = False

    @property
    def link(self) -> Link | None:
        """The link for a new call, or None if ``open`` must make one."""
        link = self._link
        return link if link and link.usable else None

    async def open(self, limit: float) -> Link:
        """A link for a new call, within ``limit`` seconds. Raises ``OSError``."""
        if self._closed:
            raise self._closed_error()
        opening = self._opening
        if opening is None or opening.done():
            opening = self._opening = asyncio.create_task(self._open())
            opening.add_done_callback(_retrieve)
        await asyncio.wait((opening,), timeout=limit)
        if not opening.done():
            raise TimeoutError(f"no connection within {limit:.2g} s, {self._stage}")
        if opening.cancelled():
            raise self._closed_error()
        return opening.result()

    def _closed_error(self) -> EtcdUnavailable:
        return EtcdUnavailable(f"the connection to etcd at {self._endpoint} was closed", applied="no")

    def renew(self, credentials: ssl.SSLContext | None) -> None:
        """Use other credentials from the next link on, which the next call opens."""
        self._credentials = credentials
        if self._link:
            self._link.retire()

    async def close(self) -> None:
        """Close every link, and end the calls under way on them."""
        self._closed = True
        if self._opening:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        for link in list(self._links):
            await link.close()

    async def _open(self) -> Link:
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                self._stage = "waiting for DNS"
                addresses = await self._addresses.look_up()
                self._stage = "waiting for the network"
                link = await self._greet(await first_socket(addresses))
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no connection within {CONNECT_LIMIT:.2g} s, {self._stage}") from None
        self._link = link
        return link

    async def _greet(self, connected: socket.socket) -> Link:
        link = Link(self._endpoint)
        self._stage = "waiting for its TLS handshake" if self._credentials else "waiting for its first words"
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: link,
                sock=connected,
                ssl=self._credentials,
                server_hostname=self._addresses.host if self._credentials else None,
            )
        except ssl.SSLError:
            raise
        except ConnectionError as error:
            raise ConnectionError(f"it ended the TLS handshake ({reason_of(error)})") from None
        finally:
            if not link.made:
                connected.close()
        self._links.add(link)
        link.closed.add_done_callback(lambda _: self._links.discard(link))
        self._stage = "waiting for its first words"
        try:
            await link.opened()
        except BaseException:
            link.retire()
            raise
        return link


async def first_socket(addresses: Iterable[Address]) -> socket.socket:
    """Connect to whichever address answers first, each tried a little later than the one before.

    Raises the ``OSError`` of the last one if none answers.
    """
    waiting = deque(addresses)
    trying: set[asyncio.Task[socket.socket]] = set()
    failure = OSError("its name has no address")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect(waiting.popleft())))
            done, _ = await asyncio.wait(
                trying, timeout=_STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    trying.discard(task)
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                trying.discard(task)
                failure = error
    finally:
        for task in trying:
            task.cancel()
        for late in await asyncio.gather(*trying, return_exceptions=True):
            if isinstance(late, socket.socket):
                late.close()
    raise failure


async def _connect(address: Address) -> socket.socket:
    connecting = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, address.where)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _retrieve(opening: asyncio.Task[Link]) -> None:
    """Take note of an error, which asyncio would log if no call waits for the link any more."""
    if not opening.cancelled():
        opening.exception()
