"""Logs, once per key, the keys that are skipped because they are not this library's."""

from __future__ import annotations

import logging

log = logging.getLogger("codomyrmex.concurrency")

_MOST = 1000  # keys that are remembered
_told: set[bytes] = set()


def skip(key: bytes, among: str) -> None:
    """Log that a key is skipped: once per key, and once more when there are too many to remember."""
    if key in _told or len(_told) > _MOST:
        return
    _told.add(key)
    if len(_told) > _MOST:
        log.warning("more than %d keys are skipped; no more of them are told of", _MOST)
    else:
        log.warning("skipping %.300r: it lies among %s but is not one", key, among)
