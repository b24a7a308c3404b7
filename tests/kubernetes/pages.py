"""The commands of a page: fenced blocks of shell, each known by the comment `<!-- run: NAME -->` before it."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^ *<!-- run: ([a-z0-9-]+) -->\n+( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> dict[str, str]:
    """The page's named blocks, in their order."""
    found: dict[str, str] = {}
    for name, indent, text in _BLOCK.findall(page.read_text()):
        if name in found:
            raise ValueError(f"{page.name} has two blocks named {name}")
        found[name] = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
    return found


def unnamed(page: Path) -> list[str]:
    """The page's blocks of shell that no test can run, since they have no name."""
    fences = re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return fences[len(commands(page)) :] if len(fences) != len(commands(page)) else []
