"""The code of the how-to pages for FastAPI, Celery and LangChain runs, where these are installed (`frameworks`)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codomyrmex.concurrency import EmbeddedEtcd
from codomyrmex.concurrency.sync.portal import portal
from tests.docs.pages import DOCS, blocks

pytestmark = pytest.mark.filterwarnings("default")  # the frameworks' own


def code_of(page: str, file: str) -> str:
    (code,) = [block.text for block in blocks(DOCS / "how-to" / page) if block.file == file]
    return code


@pytest.fixture(autouse=True)
def fleet(etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    monkeypatch.chdir(tmp_path)


async def test_the_lifespan_gives_each_request_the_manager() -> None:
    pytest.importorskip("fastapi")
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(code_of("web-services.md", "app.py"), "app.py", "exec"), names)
    async with names["lifespan"](names["app"]) as state:
        request = SimpleNamespace(state=SimpleNamespace(**state))
        first, second = [(await names["rebuild"](request))["token"] for _ in range(2)]
    assert first < second


async def test_a_celery_task_holds_its_lock() -> None:
    pytest.importorskip("celery")
    names: dict[str, Any] = {"__name__": "tasks"}
    exec(compile(code_of("blocking-code.md", "tasks.py"), "tasks.py", "exec"), names)
    results = [await asyncio.to_thread(names["edit"].apply, ("a.py",)) for _ in range(2)]
    first, second = [result.get() for result in results]
    assert first < second
    await asyncio.to_thread(portal().close_default_session)


async def test_a_chat_model_waits_for_the_fleets_limit() -> None:
    pytest.importorskip("langchain_core")
    names: dict[str, Any] = {"__name__": "chat"}
    exec(compile(code_of("share-a-rate-limit.md", "chat.py"), "chat.py", "exec"), names)
    assert (await names["model"].ainvoke("a question")).content == "yes"
    (use,) = (await asyncio.to_thread(names["limiter"].info)).uses
    assert use.used
    await asyncio.to_thread(portal().close_default_session)
