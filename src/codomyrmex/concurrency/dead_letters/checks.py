"""Checks of the arguments that users give to a dead letter queue. Each raises ``ValueError`` or ``TypeError``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any


def check_positive(name: str, value: float) -> float:
    """``value``, if it is a finite number greater than 0."""
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a number greater than 0, not {value!r}")
    return value


def check_zone(name: str, value: datetime | None) -> None:
    """Refuse a time without a time zone."""
    if value is not None and value.tzinfo is None:
        raise ValueError(f"{name} must have a time zone; try datetime.now(UTC)")


def check_operation(operation: object) -> None:
    """Refuse anything that cannot be the name of a handler's operation."""
    if not isinstance(operation, str) or not operation:
        raise ValueError(f"a handler is registered for an operation's name, not {operation!r}: @dlq.handler('name')")


def check_handler(operation: str, function: Callable[..., Any]) -> None:
    """Refuse a function that is not ``async def handle(entry, attempt)``."""
    if not inspect.iscoroutinefunction(function) or not _takes_two(function):
        raise TypeError(
            f"the handler of {operation!r} must be an async def with two arguments, (entry, attempt), not {function!r}"
        )


def check_concurrency(concurrency: object) -> None:
    """Refuse anything but a whole number of handlers, of at least 1."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")


def check_max_entries(max_entries: int | None) -> None:
    """Refuse a limit below 1."""
    if max_entries is not None and (isinstance(max_entries, bool) or max_entries < 1):
        raise ValueError(f"max_entries must be at least 1, not {max_entries!r}")


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True
