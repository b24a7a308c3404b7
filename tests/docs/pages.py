"""The documents and their code blocks, for the tests of this folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "API_SPECIFICATION.md", ROOT / "PAI.md", *sorted(DOCS.rglob("*.md"))]
TESTING = DOCS / "testing.md"  # a suite of its own; see test_testing_page.py


class Block(NamedTuple):
    """One fenced block of a page: its language and its text."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name in the first line of a block that is to be saved as a file: ``# name.py``."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found.group(1) if found and self.language == "python" else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, also those inside a list."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(language, text) for _, language, text in found]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
