"""Copies of users' JSON values. Pure."""

from __future__ import annotations

import sys
from typing import Any

from codomyrmex.concurrency.decode import MAX_DEPTH, is_storable


class NotPlain(Exception):
    """A value is no JSON as it would be read back: one of another type, too deep, or not storable."""


def copy_of(value: Any, depth: int = 1) -> Any:
    """A copy of a value that ``decode.is_plain`` accepts and whose parts have JSON's own types, not subclasses of them.

    Raises ``NotPlain`` for any other value. It is several times as fast as a way through JSON text, or ``deepcopy``.
    """
    kind = type(value)
    if kind is str:
        if not is_storable(value):
            raise NotPlain
        return value
    if kind is int or kind is float:
        if not abs(value) <= sys.float_info.max:  # nor is it NaN
            raise NotPlain
        return value
    if kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise NotPlain
        if kind is list:
            return [copy_of(item, depth + 1) for item in value]
        copy = {}
        for key, item in value.items():
            if type(key) is not str or not is_storable(key):
                raise NotPlain
            copy[key] = copy_of(item, depth + 1)
        return copy
    if value is None or kind is bool:
        return value
    raise NotPlain
