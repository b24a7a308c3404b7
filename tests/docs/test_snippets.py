"""Every Python snippet of the documents runs as written, given an etcd; every command named there exists."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import codomyrmex.concurrency as public
from codomyrmex.concurrency import EmbeddedEtcd
from codomyrmex.concurrency.sync.portal import portal

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = [
    pytest.param(code, id=f"{name}-{number}")
    for name in ("README.md", "API_SPECIFICATION.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL), 1)
]


@pytest.fixture
def own_sigterm() -> Iterator[None]:
    """A snippet may say what SIGTERM does; not for longer than it runs."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("code", SNIPPETS)
async def test_a_snippet_runs_as_written(
    code: str, etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch, own_sigterm: None
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    compiled = compile(code, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, {"__name__": "snippet"})
    if inspect.isawaitable(result):
        await result
    await asyncio.to_thread(portal().close_default_session)  # of the blocking twin


def test_the_specification_names_every_public_name() -> None:
    text = (ROOT / "API_SPECIFICATION.md").read_text()
    missing = [name for name in public.__all__ if not re.search(rf"`{name}\b", text)]
    assert not missing


def test_the_readme_names_only_commands_that_exist() -> None:
    for command in set(re.findall(r"codomyrmex concurrency ([a-z]+)", (ROOT / "README.md").read_text())):
        run = [sys.executable, "-m", "codomyrmex.concurrency.cli.root", "concurrency", command, "--help"]
        assert subprocess.run(run, capture_output=True, check=False).returncode == 0, command
