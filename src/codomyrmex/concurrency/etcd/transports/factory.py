"""Makes the transport that the settings name, and imports its libraries only then."""

from __future__ import annotations

from random import randrange

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import Transport
from codomyrmex.concurrency.settings import EtcdSettings


def transport_for(settings: EtcdSettings) -> Transport:
    """A transport that is not connected yet, with a random endpoint as its first.

    Raises ``EtcdError`` if its extra is not installed.
    """
    if settings.transport == "native":
        from codomyrmex.concurrency.etcd.transports.native import NativeTransport

        return NativeTransport(settings, randrange)
    if settings.transport == "grpc":
        from codomyrmex.concurrency.etcd.transports.grpc import GrpcTransport

        return GrpcTransport(settings, randrange)
    try:
        from codomyrmex.concurrency.etcd.transports.gateway import GatewayTransport
    except ImportError as error:
        raise EtcdError(
            f"transport='gateway' needs what is not installed ({error.name}): "
            "pip install 'codomyrmex-concurrency[gateway]'"
        ) from None
    return GatewayTransport(settings, randrange)
