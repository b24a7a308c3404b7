"""Two written rules, read from the source: keys are built in ``keys.py`` alone, and pure modules are pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "codomyrmex" / "concurrency"
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if not path.name.endswith("_pb2.py")]

# Formats of values in etcd: a release marker's token, a dead letter's claim, the seconds that a holder waited.
VALUES = {b"%d", b"%016x %s", b',"waited":%.3f}'}
LINE_END = b"\n"

IMPURE = {"asyncio", "datetime.now", "os", "random", "secrets", "socket", "threading", "time", "uuid"}
IMPURE_HERE = {"affinity", "clock", "session", "session_core"}  # of this library
PURE = {  # as paths below the package; a module whose docstring says "pure" need not be listed
    "decode.py",
    "keys.py",
    "legible.py",
    "dead_letters/schedule.py",
    "dead_letters/transitions.py",
    "etcd/ledger.py",
    "etcd/transports/codec.py",
    "etcd/transports/failures.py",
    "etcd/watch_state.py",
    "pool/histogram.py",
    "waitqueue/events.py",
    "waitqueue/rules.py",
    "waitqueue/turn.py",
    "waitqueue/view.py",
}


def key_building(source: str) -> Iterator[tuple[int, str]]:
    """The lines that build or take apart a key, with the expression that does."""
    for node in ast.walk(ast.parse(source)):
        if _builds_key(node):
            assert isinstance(node, ast.expr)
            yield node.lineno, ast.unparse(node)


def _builds_key(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bytes) and b"/" in node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        left = node.left
        return isinstance(left, ast.Constant) and isinstance(left.value, bytes) and left.value not in VALUES
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_key_part(node.left) or _is_key_part(node.right)
    if isinstance(node, ast.Call) and _called(node) == "encode":
        return isinstance(node.func, ast.Attribute) and _has_slash(node.func.value)
    if isinstance(node, ast.Call) and _called(node) == "prefix_end":
        return any(isinstance(argument, ast.BinOp) for argument in node.args)
    return _cuts_prefix(node)


def _is_key_part(node: ast.expr) -> bool:
    """True for bytes that are joined to others: a literal, or a text that is encoded in place."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bytes) and node.value != LINE_END
    return isinstance(node, ast.Call) and _called(node) == "encode" and not node.args


def _has_slash(node: ast.expr) -> bool:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    return any(isinstance(text, str) and "/" in text for text in texts)


def _cuts_prefix(node: ast.AST) -> bool:
    """True for ``key[len(prefix) :]``."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and node.slice.upper is None):
        return False
    return isinstance(node.slice.lower, ast.Call) and _called(node.slice.lower) == "len"


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def says_pure(source: str) -> bool:
    """True if a module's docstring calls the module pure."""
    return re.search(r"\bpure\b", ast.get_docstring(ast.parse(source)) or "", re.IGNORECASE) is not None


def impurities(source: str) -> Iterator[tuple[int, str]]:
    """The lines that import, or call, a source of time, chance or the state of the process."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)]
        for name in names:
            if _is_impure(name):
                yield getattr(node, "lineno", 1), name


def _is_impure(name: str) -> bool:
    package, _, rest = name.partition("codomyrmex.concurrency.")
    if rest and not package:
        return rest.partition(".")[0] in IMPURE_HERE
    return name.partition(".")[0] in IMPURE or name in IMPURE or name == "datetime.utcnow"


def _below(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_below)
def test_keys_are_built_in_one_module(path: Path) -> None:
    if _below(path) != "keys.py":
        assert list(key_building(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=_below)
def test_a_pure_module_reads_no_clock_and_no_chance(path: Path) -> None:
    source = path.read_text()
    if _below(path) in PURE or says_pure(source):
        assert list(impurities(source)) == []


@pytest.mark.parametrize(
    "line",
    [
        'core_of(session).layout.root + b"dead/"',
        'queue + b"limit-"',
        'b"%016x-%x" % (lease, slot)',
        'f"{root}/{name}".encode()',
        "under + escape(name).encode()",
        "prefix_end(prefix + segment)",
        'key.partition(b"/")',
        "key[len(prefix) :]",
        'last + b"\\0"',
    ],
)
def test_the_check_refuses_a_key_that_is_built_elsewhere(line: str) -> None:
    assert list(key_building(line))


@pytest.mark.parametrize(
    "line",
    [
        "prefix_end(queue)",
        "layout.queue(name)",
        'b"%d" % token',
        'header + b"\\n" + line',
        "json.dumps(record).encode()",
        'name.partition("/")',
        "row[len(row) - 1 :]",
    ],
)
def test_the_check_accepts_the_rest(line: str) -> None:
    assert not list(key_building(line))


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "import os.path",
        "from random import uniform",
        "import asyncio",
        "from codomyrmex.concurrency import clock",
        "from codomyrmex.concurrency.clock import now",
        "datetime.now(UTC)",
    ],
)
def test_the_check_refuses_an_impure_import(line: str) -> None:
    assert list(impurities(line))


@pytest.mark.parametrize("line", ["import re", "from datetime import datetime", "import math", "clock + 1"])
def test_the_check_accepts_a_pure_import(line: str) -> None:
    assert not list(impurities(line))


def test_the_check_reads_the_docstring() -> None:
    assert says_pure('"""The grant rules. Pure."""') and not says_pure('"""The shell."""')
