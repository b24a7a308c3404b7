"""Checks the words of the library and its documents against ``docs/glossary.md``: ``python -m tests.words [FILE...]``.

It refuses three things: a retired word where the glossary has another one, an identifier that is made of a retired
word, and a docstring that begins with a question word. ``make lint`` runs it over ``src/`` and ``docs/``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"

# In prose: the word, and the one to use. Matched as whole words, without regard to case.
RETIRED = {
    r"batons?": "release marker",
    r"(stale|crowded|outside the|before the) doors?|doors": "admission",
    r"crowded": "full (of admission)",
    r"nonces?": "key slot",
    r"fellows?": "group",
    r"overstay(s|ing|ed)?": "max_hold, the hold limit",
    r"outliv(es?|ing|ed)": "lock_delay",
    r"patrols?|patrolling|look(s|ed|ing)? after": "tick",
    r"somebody|who holds|who waits|those who (hold|wait)": "holder, waiter",
    r"pass(es|ed|ing)? on": "hand off",
    r"own_ahead": "local_predecessor",
}
# In identifiers, whose parts are separated by underscores or capitals.
RETIRED_PARTS = {
    "ahead": "predecessor",
    "baton": "release_marker",
    "batons": "release_markers",
    "behind": "successor",
    "crowded": "full",
    "door": "admission",
    "doors": "admission",
    "fellow": "group",
    "fellows": "group",
    "nonce": "key_slot",
    "nonces": "key_slots",
    "outlive": "lock_delay",
    "outliving": "lock_delay",
    "overstay": "max_hold",
    "overstays": "max_hold",
    "patrol": "tick",
    "patrolling": "tick",
    "place": "queue",
    "places": "queues",
    "terms": "hold_options",
}
CLAIM = "claim"  # a dead-letter worker's; an acquisition is a request
BEGINNINGS = re.compile(r"(what|who|whose|whom|whether|how)\b", re.IGNORECASE)
# The layout of keys in etcd is deployed and keeps its words; so does the text of what was released.
KEPT = {"keys.py": {"baton"}, "SPEC.md": {"baton"}}


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, with the problem that each has."""
    text = path.read_text()
    kept = KEPT.get(path.name, set())
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in RETIRED.items():
            for found in re.finditer(rf"\b({pattern})\b", line, re.IGNORECASE):
                if found.group().lower() not in kept:
                    yield number, f"{found.group()!r} is retired: use {instead!r}"
        if re.search(r"\bclaim", line, re.IGNORECASE) and path.suffix == ".py" and not _of_dead_letters(path):
            yield number, f"{CLAIM!r} is a dead-letter worker's: use 'acquire request'"
    if path.suffix == ".py":
        yield from _in_code(ast.parse(text), kept)


def _in_code(tree: ast.AST, kept: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and BEGINNINGS.match(docstring):
                first = docstring.splitlines()[0]
                yield getattr(node, "lineno", 1), f"a docstring begins as a question: {first!r}"
        for name in _names(node):
            for part in re.findall(r"[A-Z]?[a-z0-9]+", name):
                instead = RETIRED_PARTS.get(part.lower())
                if instead and part.lower() not in kept:
                    yield getattr(node, "lineno", 1), f"the name {name!r} has a retired word: use {instead!r}"


def _names(node: ast.AST) -> Iterator[str]:
    """The names that a node defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.id if isinstance(node, ast.Name) else node.attr


def _of_dead_letters(path: Path) -> bool:
    return "dead" in str(path) or path.name in ("dlq.py", "errors.py", "keys.py", "retry.py", "work.py", "queues.py")


def main(arguments: list[str]) -> int:
    """Print the problems of the files, of all of ``src/`` and ``docs/`` when none is named; 1 if there are any."""
    files = [Path(argument) for argument in arguments]
    if not files:
        sources = (ROOT / "src").rglob("*.py")
        files = [path for path in sorted(sources) if not path.name.endswith("_pb2.py")]
        files += [path for path in sorted((ROOT / "docs").rglob("*.md")) if path != GLOSSARY]
    found = [(path, *problem) for path in files for problem in problems(path)]
    for path, number, problem in found:
        print(f"{path}:{number}: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
