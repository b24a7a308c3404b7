"""Every Python file that the documents name is in the tree, and SPEC.md names every module in its own folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name

SOURCE = ROOT / "src" / "codomyrmex" / "concurrency"
SPEC = ROOT / "SPEC.md"
DOCUMENTS = [*PAGES, SPEC, *(ROOT / one for one in ("AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"))]
FOLDERS = ("benchmarks", "deploy", "docs", "examples", "src", "tests")
FILES = [f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]

# Files of the reader, in sentences and commands: an agent edits them, or the reader writes them.
READERS = {"a.py", "app.py", "b.py", "main.py", "tasks.py", "examples/NAME.py"}


def named(text: str) -> set[str]:
    """The paths that end with ``.py`` in a text, without its fenced blocks."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"(?<![\w./*-])[\w./-]*\w\.py\b", prose))


def missing(paths: Iterable[str], files: Iterable[str]) -> set[str]:
    """The paths that are the end of no file's path."""
    files = list(files)
    return {path for path in paths if not any(file.endswith(f"/{path}") for file in files)}


def modules_by_folder(text: str) -> Iterator[str]:
    """The modules in the table of layers and in the tables of its folders, as paths below the package."""
    layers = text.partition("\n## Layers\n")[2].partition("\n### Where the cut")[0]
    for section in re.split(r"^### ", layers, flags=re.MULTILINE):
        heading = re.match(r"`(\w+/)`", section)
        folder = heading.group(1) if heading else ""
        for row in section.splitlines()[1:]:
            inner = folder
            for code in re.findall(r"`([\w/]+(?:/|\.py))`", row):
                if not code.endswith("/"):
                    yield f"{inner}{code}"
                elif folder:
                    inner = f"{folder}{code}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_every_python_file_that_a_document_names_exists(page: Path) -> None:
    saved = {block.file for block in blocks(page)}
    assert missing(named(page.read_text()), FILES) - READERS - saved == set()


def test_the_specification_names_every_module_in_its_folder() -> None:
    modules = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    told = set(modules_by_folder(SPEC.read_text()))
    assert told - modules == set()
    unnamed = {module for module in modules - told if not module.endswith(("__init__.py", "_pb2.py"))}
    assert {module for module in unnamed if not module.startswith("cli/views/")} == set()


@pytest.mark.parametrize("path", ["made_up.py", "waitqueue/made_up.py", "etcd/rules.py", "ules.py"])
def test_the_check_refuses_a_file_that_is_not_there(path: str) -> None:
    assert named(f"See `{path}` for more.") == {path}
    assert missing({path}, FILES) == {path}


def test_the_check_finds_a_module_in_another_folder() -> None:
    text = "\n## Layers\n\n### `waitqueue/`\n\n| `ledger.py`, `rules.py` | rules |\n\n### Where the cut\n"
    assert set(modules_by_folder(text)) == {"waitqueue/ledger.py", "waitqueue/rules.py"}
