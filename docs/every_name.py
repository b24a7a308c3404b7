"""A hook of MkDocs: ``make docs`` fails if a public name, or a public member of one, has no text in the reference.

mkdocstrings leaves out an object without a docstring, so a heading with the object's path means that a text is there.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

MODULES = ("codomyrmex.concurrency", "codomyrmex.concurrency.sync", "codomyrmex.concurrency.testing")


def on_post_build(config: Mapping[str, Any], **_: Any) -> None:
    """Compare the headings of the built pages with the public names."""
    pages = Path(config["site_dir"]).joinpath("reference").rglob("index.html")
    headings = {path for page in pages for path in re.findall(r' id="(codomyrmex\.[\w.]+)"', page.read_text("utf-8"))}
    if absent := [path for module in MODULES for path in public_paths(module) if path not in headings]:
        raise PluginError(f"no text in the reference: {', '.join(absent)}")


def public_paths(module: str) -> Iterator[str]:
    """The public names of a module, and the methods and properties that each public class defines."""
    package = importlib.import_module(module)
    for name in package.__all__:
        yield f"{module}.{name}"
        found = getattr(package, name)
        for member, value in vars(found).items() if inspect.isclass(found) else ():
            if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod)):
                yield f"{module}.{name}.{member}"
