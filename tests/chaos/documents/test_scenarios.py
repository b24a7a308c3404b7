"""Each kind of fault that was found around the lock engine, provoked on purpose and judged from the documents."""

from __future__ import annotations

import pytest

from tests.chaos.documents.judge import report
from tests.chaos.documents.scenarios import SCENES, run

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("name", sorted(SCENES))
def test_scenario(name: str, request: pytest.FixtureRequest) -> None:
    violations = run(name, request.config.getoption("--etcd-binary"))
    assert not violations, report(violations)
