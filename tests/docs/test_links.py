"""Every relative link of the documents leads to a file that is there; README.md stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import codomyrmex.concurrency as public
from tests.docs.pages import DOCS, PAGES, ROOT, name

_NAMES = (
    "SPEC.md",
    "SECURITY.md",
    "AGENTS.md",
    "CONTRIBUTING.md",
    "deploy/etcd/README.md",
    "deploy/etcd/kubernetes.md",
)
OTHERS = [ROOT / one for one in _NAMES]
RUNBOOKS = sorted((ROOT / "deploy" / "etcd" / "runbooks").glob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS, *RUNBOOKS], ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    relative = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    assert not [link for link in relative if not (page.parent / link).exists()]


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_platform_page_exports_names_that_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:class|dataclass)", (ROOT / "PAI.md").read_text(), re.MULTILINE)
    assert rows and set(rows) <= set(public.__all__)


def test_every_runbook_is_a_page_of_the_site() -> None:
    pages = DOCS / "operations" / "runbooks"
    assert {page.name for page in pages.glob("*.md")} == {runbook.name for runbook in RUNBOOKS}


def test_the_tests_that_the_specification_names_exist() -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"test_\w+\.py", (ROOT / "SPEC.md").read_text()))
    assert named and named <= tests
