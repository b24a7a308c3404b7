"""Fixtures of the integration tests."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency import EmbeddedEtcd
from tests.integration.command_line import Cli


@pytest.fixture
def cli(etcd: EmbeddedEtcd, namespace: str) -> Cli:
    return Cli(etcd.endpoint, namespace)
