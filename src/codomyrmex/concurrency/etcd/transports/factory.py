"""Makes the transport that the settings name, and imports its libraries only then."""

from __future__ import annotations

from collections.abc import Callable
from random import randrange

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import Transport
from codomyrmex.concurrency.settings import EtcdSettings


def transport_for(settings: EtcdSettings) -> Transport:
    """A transport that is not connected yet, with a random endpoint as its first.

    Raises ``EtcdError`` if its extra is not installed.
    """
    return _transport(settings.transport)(settings, randrange)


def _transport(name: str) -> Callable[[EtcdSettings, Callable[[int], int]], Transport]:
    if name == "native":
        from codomyrmex.concurrency.etcd.transports.native import NativeTransport

        return NativeTransport
    try:
        if name == "grpc":
            from codomyrmex.concurrency.etcd.transports.grpc import GrpcTransport

            return GrpcTransport
        from codomyrmex.concurrency.etcd.transports.gateway import GatewayTransport

        return GatewayTransport
    except ImportError as error:
        raise EtcdError(
            f"transport={name!r} needs what is not installed ({error.name}): "
            f"pip install 'codomyrmex-concurrency[{name}]'"
        ) from None
