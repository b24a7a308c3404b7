"""Percentiles in bounded memory: counts in buckets that grow by a tenth, from a microsecond to days. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right

_SMALLEST = 0.001  # ms
_GROWTH = math.log(1.1)
_BUCKETS = 280  # the last begins at about 4 days
_BOUNDS = [_SMALLEST * math.exp(bucket * _GROWTH) for bucket in range(_BUCKETS - 1)]  # where each but the first begins


class Histogram:
    """Counts of durations in ms. A percentile is right to within 5 %."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS

    def add(self, value: float) -> None:
        self._counts[bisect_right(_BOUNDS, value)] += 1

    def percentile(self, share: float) -> float:
        """The value that ``share`` (0 to 1) of the counted ones do not exceed; 0 if there are none."""
        wanted = math.ceil(sum(self._counts) * share)
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return _SMALLEST * math.exp((bucket - 0.5) * _GROWTH)
        return 0.0
