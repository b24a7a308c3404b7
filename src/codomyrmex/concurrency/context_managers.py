"""``with`` where ``async with`` is meant, and the other way round: an error that says so.

Type checkers are not shown these methods, so that they go on to refuse the wrong kind of block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn


class AsyncOnly:
    """A class whose blocks are ``async with``."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            name = type(self).__name__.lstrip("_")
            raise TypeError(
                f"{name} is used with `async with`, not `with`; without an event loop use codomyrmex.concurrency.sync"
            )

        def __exit__(self, *_: object) -> None:
            """Python asks for it before ``__enter__`` is called."""


class BlockingOnly:
    """A class whose blocks are ``with``."""

    __slots__ = ()

    if not TYPE_CHECKING:

        async def __aenter__(self) -> NoReturn:
            raise TypeError(
                f"{type(self).__name__} of codomyrmex.concurrency.sync is used with `with`, not `async with`; in async "
                "functions use the class of codomyrmex.concurrency"
            )

        async def __aexit__(self, *_: object) -> None:
            """Python asks for it before ``__aenter__`` is called."""
