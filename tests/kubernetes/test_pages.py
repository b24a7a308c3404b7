"""The pages' commands are found, each with a comment that says where it is run. This needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes.lab.places import DEPLOY
from tests.kubernetes.pages import commands, unmarked

PAGES = [DEPLOY / "kubernetes.md", *sorted((DEPLOY / "runbooks").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_run_somewhere(page: Path) -> None:
    assert commands(page) and unmarked(page) == []


def test_blocks_are_found_in_lists_and_told_by_their_comment(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "1. First\n\n   <!-- run: first -->\n   ```sh\n   a\n     b\n   ```\n\n"
        "<!-- elsewhere: nowhere -->\n```sh\nc\n```\n\n```sh\nd\n```\n"
    )
    assert commands(page) == {"first": "a\n  b\n"}
    assert unmarked(page) == ["d\n"]


def test_a_name_stands_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run: one -->\n```sh\na\n```\n" * 2)
    with pytest.raises(ValueError, match="two blocks named one"):
        commands(page)
