"""Durations and ages as options take them."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 100 * 365 * 86400.0


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.5
    """Seconds, from ``5``, ``5s``, ``250ms``, ``2m`` or ``1h30m``. A plain number is in seconds."""

    name = "duration"
    plain = True  # a number may stand without a unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is not a duration such as 5s, 250ms, 2m or 1h30m", param, ctx)
        if not self.plain and any(not unit and float(number) for number, unit in parts):
            self.fail(f"{value!r} has no unit; say {value}s, {value}m, {value}h or {value}d", param, ctx)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if seconds > _LONGEST:
            self.fail(f"{value[:30]!r} is longer than a hundred years", param, ctx)
        return seconds


class Age(Duration):
    """An age in seconds, which needs a unit: a user who means days must not delete what is 7 seconds old."""

    name = "age"
    plain = False
