"""Checks the words of the library and its documents against ``docs/glossary.md``: ``python -m tests.words [FILE...]``.

It refuses three things: a retired word where the glossary has another one, an identifier that is made of a retired
word, and a docstring that begins as a question or with a reference to another one ("The same"). Without arguments it
reads ``src/`` and ``docs/``.
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
    r"batons?(?![/\"'])": "release marker",  # followed by these, it is the segment of a deployed key
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
    r"(the )?longer leases?": "delayed lease",
    r"(_?Book|_?Doors|Batons|Nonces|Overstays)": "the class's name in the glossary",
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
BEGINNINGS = re.compile(r"(what|who|whose|whom|whether|how|why|the same,)(?!\w)", re.IGNORECASE)
_DEAD_LETTERS = {"dlq.py", "errors.py", "keys.py", "retry.py", "work.py", "queues.py"}
_QUOTING = {"words.py", "test_words.py"}  # files that quote the retired words
_ORDINARY = {"ahead", "behind", "place", "places", "terms"}  # plain English in the name of a test, which is a sentence


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, with the problem that each has."""
    if path.name in _QUOTING:
        return
    text = path.read_text()
    yield from in_text(text)
    if path.suffix == ".py":
        if not _of_dead_letters(path):
            yield from claims(text)
        yield from in_code(ast.parse(text))


def in_text(text: str) -> Iterator[tuple[int, str]]:
    """The lines with a retired word."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in RETIRED.items():
            for found in re.finditer(rf"\b({pattern})(?!\w)", line, 0 if "Book" in pattern else re.IGNORECASE):
                yield number, f"{found.group()!r} is retired: use {instead!r}"


def claims(text: str) -> Iterator[tuple[int, str]]:
    """The lines that call an acquisition a claim."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"\b{CLAIM}", line, re.IGNORECASE):
            yield number, f"{CLAIM!r} is a dead-letter worker's: use 'acquire request'"


def in_code(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The lines with a docstring or a defined name that is refused."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and BEGINNINGS.match(docstring):
                first = docstring.splitlines()[0]
                yield getattr(node, "lineno", 1), f"a docstring begins as a question: {first!r}"
        for name in _names(node):
            for part in re.findall(r"[A-Z]?[a-z0-9]+", name):
                instead = RETIRED_PARTS.get(part.lower())
                if instead and not (name.startswith("test_") and part.lower() in _ORDINARY):
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
    """True if a file may speak of dead-letter claims: its subject, or a test, which may speak of all subjects."""
    path = path.resolve()
    below = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return below.parts[0] == "tests" or "dead" in str(below) or path.name in _DEAD_LETTERS


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
