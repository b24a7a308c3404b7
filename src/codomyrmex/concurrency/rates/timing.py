"""The times and the parts of a slice. Pure.

A slice is an amount that one process got in one dimension. It is counted from its grant until ``per`` and a margin have
passed since the last spend from it, and every spend falls within its life. So whatever was spent in a window of ``per``
belongs to slices that are all counted at the window's end, and together they are within the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LONG = 30.0  # seconds of life from which a slice may be waited with
_SHARES = 8  # the least number of slices in a limit
FEW, MANY = 5, 10  # the most parts of a slice


def life(per: float) -> float:
    """The seconds, from when its lease was asked for, in which a slice may be spent."""
    return max(1.0, per / 10)


def margin(per: float) -> float:
    """The seconds after a spend in which the call must have reached its provider."""
    return min(1.0, per / 20)


def idle(per: float) -> float:
    """The seconds without a spend after which a slice is closed."""
    return min(life(per), max(2.0, life(per) / 10))


def ttl(per: float) -> int:
    """The seconds that the lease of a slice must last: until the last possible spend is out of every window."""
    return math.ceil(life(per) + per + margin(per))


def cap(limit: int, sessions: int) -> int:
    """The most that a slice may have while ``sessions`` processes use the limit, so that each has its turn."""
    return max(1, limit // max(_SHARES, 2 * sessions))


def parts(weight: int, most: int = FEW) -> list[int]:
    """The parts of a slice: halves of what remains, so that a few deletions give back nearly any amount."""
    found: list[int] = []
    while weight and len(found) < most - 1:
        found.append((weight + 1) // 2)
        weight //= 2
    return [*found, weight] if weight else found


def surplus(sizes: Sequence[int], amount: int) -> list[int]:
    """The indexes of parts whose sum is at most ``amount`` and, chosen greedily from the largest, near to it."""
    chosen = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] <= amount:
            amount -= sizes[index]
            chosen.append(index)
    return chosen
