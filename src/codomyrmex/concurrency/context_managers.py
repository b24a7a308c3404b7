"""Base classes that raise a helpful error for ``with`` where ``async with`` is meant, and the other way round.

Type checkers do not see these methods, so they go on to refuse the wrong kind of block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn


class AsyncOnly:
    """The base of classes that are used with ``async with``."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            name = type(self).__name__.lstrip("_")
            raise TypeError(
                f"{name} is used with `async with`, not `with`; without an event loop use codomyrmex.concurrency.sync"
            )

        def __exit__(self, *_: object) -> None:
            """Do nothing. Python requires the method before it calls ``__enter__``, which raises."""


class BlockingOnly:
    """The base of classes that are used with ``with``."""

    __slots__ = ()

    if not TYPE_CHECKING:

        async def __aenter__(self) -> NoReturn:
            raise TypeError(
                f"{type(self).__name__} of codomyrmex.concurrency.sync is used with `with`, not `async with`; in async "
                "functions use the class of codomyrmex.concurrency"
            )

        async def __aexit__(self, *_: object) -> None:
            """Do nothing. Python requires the method before it calls ``__aenter__``, which raises."""
