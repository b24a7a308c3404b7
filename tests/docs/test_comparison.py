"""Every row that the library claims in a comparison with its peers is shown by a test that is there.

``docs/comparison.md`` has the rows and names the tests; README.md has the same rows, several to a line.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "comparison.md"
MEASURED = {"handoffs, two processes"}  # a figure of docs/performance.md


def table(page: Path, corner: str) -> list[list[str]]:
    """The cells of the table whose first cell is ``corner``, head included."""
    found = re.search(rf"^\|{corner}\|.*\n(\|.*\n)+", page.read_text(), re.MULTILINE)
    assert found, f"{page.name} has no table with {corner!r} in its corner"
    head, _, *rows = found.group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]


def claimed(page: Path) -> set[str]:
    """The features that the library claims to have. A row may have several, separated by semicolons."""
    cells = [(row[0].split("; "), row[1].split("; ")) for row in table(page, " ")[1:]]
    return {name for names, claims in cells for name, claim in zip(names, claims, strict=True) if claim[:2] != "no"}


def shown() -> dict[str, list[str]]:
    """The tests that the page names for each row."""
    return {row[0]: re.findall(r"`([^`]+)`", row[1]) for row in table(PAGE, " this library ")[1:]}


def exists(test: str) -> bool:
    """True if ``path::name`` is a test function of that file."""
    path, _, name = test.partition("::")
    if not name.startswith("test_") or not (ROOT / path).is_file():
        return False
    functions = ast.parse((ROOT / path).read_text()).body
    return name in {one.name for one in functions if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_claim_is_shown_and_nothing_else() -> None:
    assert set(shown()) == claimed(PAGE)


@pytest.mark.parametrize("row", shown())
def test_the_tests_that_show_it_exist(row: str) -> None:
    assert shown()[row]
    assert not [test for test in shown()[row] if not exists(test)]


def test_the_readme_claims_what_the_page_claims() -> None:
    readme = claimed(ROOT / "README.md")
    assert readme >= MEASURED
    assert readme - MEASURED == claimed(PAGE) - {"no server of its own"}


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_each_row_has_a_cell_for_each_peer(page: Path) -> None:
    head, *rows = table(page, " ")
    assert rows and not [row[0] for row in rows if len(row) != len(head) or not all(row)]


@pytest.mark.parametrize(
    "test",
    [
        "tests/docs/test_comparison.py::test_that_is_not_there",
        "tests/docs/no_such_file.py::test_the_tests_that_show_it_exist",
        "tests/docs/test_comparison.py::exists",
        "tests/docs/test_comparison.py",
    ],
)
def test_the_check_refuses_a_test_that_is_not_there(test: str) -> None:
    assert not exists(test)
