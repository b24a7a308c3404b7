"""``blocking``: a method of the blocking twin that only forwards to its asyncio twin.

    class Semaphore:
        def __init__(self, ...) -> None:
            self._twin = twin.Semaphore(...)

        available = blocking(twin.Semaphore.available)

The method takes its signature and its docstring from the asyncio method, so that neither is written twice. Type
checkers see the same parameters, and the result without its coroutine. A method written by hand takes only the
docstring, by ``text_of``.

The docstrings are written for asyncio. ``async`` and ``await`` are removed from the code in them (between double
backquotes). A method whose docstring is true of asyncio only has a docstring of its own here.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from codomyrmex.concurrency.sync.portal import portal

P = ParamSpec("P")
R = TypeVar("R")
Asyncio = TypeVar("Asyncio")
AsyncioOf = TypeVar("AsyncioOf", covariant=True)
Method = TypeVar("Method", bound=Callable[..., Any])


class HasTwin(Protocol[AsyncioOf]):
    """An object whose ``_twin`` is its asyncio twin."""

    @property
    def _twin(self) -> AsyncioOf: ...


@overload
def blocking(
    method: Callable[Concatenate[Asyncio, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[HasTwin[Asyncio], P], R]: ...
@overload
def blocking(
    method: Callable[Concatenate[Asyncio, P], AsyncIterator[R]],
) -> Callable[Concatenate[HasTwin[Asyncio], P], Iterator[R]]: ...
@overload
def blocking(method: Callable[Concatenate[Asyncio, P], R]) -> Callable[Concatenate[HasTwin[Asyncio], P], R]: ...
def blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that calls ``method`` of the object's ``_twin`` with the same arguments.

    A coroutine is run to its end, an async generator becomes an iterator, and a plain method is called as it is.
    """
    if inspect.iscoroutinefunction(method):

        def forward(self: HasTwin[Any], /, *args: Any, **kwargs: Any) -> Any:
            return portal().run(method(self._twin, *args, **kwargs))

    elif inspect.isasyncgenfunction(method):

        def forward(self: HasTwin[Any], /, *args: Any, **kwargs: Any) -> Any:
            return portal().iterate(method(self._twin, *args, **kwargs))

    else:

        def forward(self: HasTwin[Any], /, *args: Any, **kwargs: Any) -> Any:
            return method(self._twin, *args, **kwargs)

    functools.update_wrapper(forward, method)
    if inspect.isasyncgenfunction(method):
        items = typing.get_args(typing.get_type_hints(method)["return"])[0]
        forward.__annotations__ = {**method.__annotations__, "return": Iterator[items]}  # type: ignore[valid-type]
        forward.__signature__ = inspect.signature(method).replace(return_annotation=Iterator[items])  # type: ignore[attr-defined, valid-type]
    return text_of(method)(forward)


def text_of(method: object) -> Callable[[Method], Method]:
    """Give the decorated method the docstring of an asyncio method or property, in blocking words."""

    def worded(own: Method) -> Method:
        """Set the docstring of ``own``, and return ``own``."""
        own.__doc__ = blocking_words(inspect.getdoc(method) or "") or None
        return own

    return worded


def blocking_words(text: str) -> str:
    """``text`` without ``async`` and ``await`` in its code: ``async with x`` becomes ``with x``."""
    return re.sub(r"``[^`]+``", lambda code: re.sub(r"\b(async|await)\s+", "", code.group()), text)
