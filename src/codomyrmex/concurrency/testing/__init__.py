"""A harness for tests of code that uses the library: processes, a cluster, a faulty network, a checker.

The pytest fixtures are in ``codomyrmex.concurrency.testing.plugin``. The public names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codomyrmex.concurrency.testing.proxy import TcpProxy as TcpProxy

_MODULE = {
    "TcpProxy": "proxy",
}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
