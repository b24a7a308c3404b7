"""The error for a target that cannot be fenced."""

from codomyrmex.concurrency.errors import ConcurrencyError


class FencingUnavailable(ConcurrencyError):
    """The target of a write cannot keep a token; the text says what to do. Nothing was written."""
