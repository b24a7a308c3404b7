"""The commands of a page: blocks of shell, each known by the comment `<!-- run: NAME -->` before it.

A block that no cluster can run has the comment `<!-- elsewhere: ... -->`, which says why or where it is run.
"""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>run|elsewhere): (?P<name>.+?) -->\n+)?^(?P<indent> *)```sh\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


def commands(page: Path) -> dict[str, str]:
    """The blocks that are to be run, by their names, in their order."""
    found: dict[str, str] = {}
    for block in _BLOCK.finditer(page.read_text()):
        if block["mark"] != "run":
            continue
        if block["name"] in found:
            raise ValueError(f"{page.name} has two blocks named {block['name']}")
        found[block["name"]] = re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE)
    return found


def unmarked(page: Path) -> list[str]:
    """The blocks of shell that have neither comment."""
    return [block["text"] for block in _BLOCK.finditer(page.read_text()) if not block["mark"]]
