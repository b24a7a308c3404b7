"""Two rules of imports that hold for every module: no circle, and what speaks to etcd is in ``etcd/`` alone.

Imports for type checkers and imports inside functions count too. The layers are import-linter's, in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src"
PACKAGE = "codomyrmex.concurrency"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted(ROOT.rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}
WIRE = {"aiohttp", "etcd3", "google", "grpc", "hpack", "requests"}


def imported(source: str) -> Iterator[str]:
    """The modules and names that a module imports, as dotted paths."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def circle(sources: Mapping[str, str]) -> list[str] | None:
    """A circle among the modules' imports; None if there is none. The package itself only names what it exports."""
    needs: dict[str, set[str]] = {}
    for module, source in sources.items():
        found = set()
        for name in imported(source):
            needed = name if name in sources else name.rpartition(".")[0]
            if needed in sources and needed not in (module, PACKAGE):
                found.add(needed)
        if module != PACKAGE:
            needs[module] = found
    try:
        list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        return list(error.args[1])
    return None


def importing(library: str) -> set[str]:
    """The modules, without the package's name, that import a library or another module."""
    return {
        module.removeprefix(f"{PACKAGE}.")
        for module, source in SOURCES.items()
        if any(f"{name}.".startswith(f"{library}.") for name in imported(source))
    }


def speaks_wire(source: str) -> bool:
    """True if a module imports a library for speaking to etcd."""
    return any(name.partition(".")[0] in WIRE for name in imported(source))


def test_imports_form_no_circle() -> None:
    assert circle(SOURCES) is None


def test_a_circle_is_found() -> None:
    sources = {"p.a": "from p.b import x", "p.b": "def f():\n    from p import c", "p.c": "from p import a", "p": ""}
    assert set(circle(sources) or ()) == {"p.a", "p.b", "p.c"}


@pytest.mark.parametrize("module", SOURCES)
def test_libraries_for_the_wire_stay_below_etcd(module: str) -> None:
    assert not speaks_wire(SOURCES[module]) or module.startswith(f"{PACKAGE}.etcd.")


@pytest.mark.parametrize(
    "line", ["import grpc", "import grpc.aio as aio", "from google.protobuf import message", "import hpack"]
)
def test_an_import_of_the_wire_is_found(line: str) -> None:
    assert speaks_wire(line)


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("grpc", {"grpc"}),
        ("aiohttp", {"gateway", "gateway_messages", "resolver"}),
        ("requests", {"gateway", "gateway_messages"}),
        ("etcd3", {"gateway"}),
        (f"{PACKAGE}.etcd.transports.native", {"factory"}),
        (f"{PACKAGE}.etcd.transports.grpc", {"factory"}),
        (f"{PACKAGE}.etcd.transports.gateway", {"factory"}),
    ],
)
def test_a_transport_and_its_libraries_are_imported_where_it_is_made(library: str, modules: set[str]) -> None:
    assert importing(library) == {f"etcd.transports.{module}" for module in modules}
