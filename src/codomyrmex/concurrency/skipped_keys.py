"""Says of keys that are passed over, since they are not this library's, that they are: once of each."""

from __future__ import annotations

import logging

log = logging.getLogger("codomyrmex.concurrency")

_MOST = 1000  # keys that are remembered
_told: set[bytes] = set()


def skip(key: bytes, among: str) -> None:
    """Say once per key that it is skipped, and once that there are more than can be remembered."""
    if key in _told or len(_told) > _MOST:
        return
    _told.add(key)
    if len(_told) > _MOST:
        log.warning("more than %d keys are skipped; no more of them are told of", _MOST)
    else:
        log.warning("skipping %.300r: it lies among %s but is not one", key, among)
