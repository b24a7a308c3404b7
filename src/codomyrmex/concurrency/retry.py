"""The retry policy of the worker pool and the dead letter queue. It reads no clock; its jitter is random."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number and the timing of a failed task's attempts.

    ``max_attempts`` counts the first one. The delay before attempt n+1 is ``initial * multiplier ** (n - 1)`` seconds,
    at most ``maximum``, times a random factor: with a ``jitter`` of 0.2, one of 0.8 to 1.2. So tasks that failed
    together are not retried together (Brooker, "Exponential backoff and jitter", 2015). A task is retried only for
    errors that are among ``retry_on`` and not among ``give_up_on``.

    Raises ``ValueError`` for a policy that never ends or whose delays shrink, and ``TypeError`` if ``retry_on`` or
    ``give_up_on`` holds anything but exception types.
    """

    max_attempts: int = 5
    initial: float = 1.0
    maximum: float = 300.0
    multiplier: float = 2.0
    jitter: float = 0.2
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise ValueError(f"max_attempts must be a whole number of at least 1, not {attempts!r}: retries must end")
        for name in ("initial", "maximum", "multiplier", "jitter"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        if self.maximum < self.initial:
            raise ValueError(f"maximum ({self.maximum:g} s) must not be less than initial ({self.initial:g} s)")
        if self.multiplier < 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier:g}: delays must not shrink")
        if self.jitter > 1:
            raise ValueError(f"jitter is a share of the delay, from 0 to 1, not {self.jitter:g}")
        for name in ("retry_on", "give_up_on"):
            kinds = getattr(self, name)
            kinds = (kinds,) if isinstance(kinds, type) else tuple(kinds)
            for kind in kinds:
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise TypeError(f"{name} takes exception types, not {kind!r}")
            object.__setattr__(self, name, kinds)

    def again(self, error: BaseException, attempts: int) -> bool:
        """True if a task is tried again after ``attempts`` attempts, the last of which raised ``error``."""
        return (
            attempts < self.max_attempts and isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)
        )

    def delay(self, attempts: int) -> float:
        """The seconds to wait after ``attempts`` attempts, jitter included."""
        try:
            grown = min(self.maximum, self.initial * self.multiplier ** (attempts - 1))
        except OverflowError:
            grown = self.maximum
        return grown * random.uniform(1 - self.jitter, 1 + self.jitter)
