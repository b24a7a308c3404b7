"""The transport of the settings: made with its libraries, or an error that names the extra to install."""

from __future__ import annotations

import sys

import pytest

from codomyrmex.concurrency import EtcdError, EtcdSettings
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.native import NativeTransport


def test_the_default_transport_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODOMYRMEX_ETCD_TRANSPORT", raising=False)
    assert isinstance(transport_for(EtcdSettings()), NativeTransport)


@pytest.mark.parametrize(("transport", "library"), [("grpc", "grpc"), ("gateway", "etcd3")])
def test_an_extra_that_is_missing_is_named(transport: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"codomyrmex.concurrency.etcd.transports.{transport}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    text = rf"transport='{transport}' needs .*{library}.*: pip install 'codomyrmex-concurrency\[{transport}\]'"
    with pytest.raises(EtcdError, match=text):
        transport_for(EtcdSettings(transport=transport))  # type: ignore[typeddict-item]
