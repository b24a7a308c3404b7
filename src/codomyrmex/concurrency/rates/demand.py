"""The demand of one process in one dimension, from which it foretells the next seconds. Pure."""

from __future__ import annotations


class Demand:
    """The amount that was asked for in the last ``span`` seconds.

    Two buckets of that length tell it: the present one, and as much of the former as the span still covers.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._bucket = -1
        self._present = 0
        self._former = 0

    def add(self, amount: int, now: float) -> None:
        """Something was asked for."""
        self._turn(now)
        self._present += amount

    def over(self, seconds: float, now: float) -> int:
        """The amount that the next ``seconds`` will ask for if they are like the last span."""
        self._turn(now)
        passed = now / self._span - self._bucket
        recent = self._present + self._former * (1 - passed)
        return int(recent * seconds / self._span)

    def _turn(self, now: float) -> None:
        bucket = int(now // self._span)
        if bucket != self._bucket:
            self._former = self._present if bucket == self._bucket + 1 else 0
            self._bucket, self._present = bucket, 0
