"""The judgements of ``status`` that need a history of etcd which a test cannot wait for."""

from __future__ import annotations

from typing import Any

import pytest

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.failures import COMPACTED
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult
from codomyrmex.concurrency.health import _Inspection
from codomyrmex.concurrency.keys import Layout


class History:
    """A transport to an etcd at ``revision``, whose first revision may be ``compacted``."""

    def __init__(self, revision: int, compacted: bool = False) -> None:
        self._revision, self._compacted = revision, compacted

    async def get(self, get: Get) -> GetResult:
        if self._compacted:
            raise EtcdError(COMPACTED)
        return GetResult((), 0, self._revision)


async def _warnings(history: Any) -> list[str]:
    inspection = _Inspection(history, Layout("n"))
    await inspection._check_history()
    return inspection._warnings


async def test_much_history_is_no_fault_of_a_cluster_whose_leader_has_just_started() -> None:
    [warning] = await _warnings(History(20_000))
    assert "20,000 revisions was compacted yet" in warning
    assert "if etcd's leader has run for ten minutes" in warning and "--auto-compaction-mode=periodic" in warning


@pytest.mark.parametrize("history", [History(9_000), History(20_000, compacted=True)])
async def test_little_history_and_a_compacted_one_give_no_warning(history: History) -> None:
    assert await _warnings(history) == []
