"""The promises of the package to its users: its names, the cost of its import, and its shape."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import codomyrmex.concurrency as public

SOURCE = Path(public.__file__)


def test_every_public_name_is_there_and_exported_once() -> None:
    names = [name for names in public._HOME.values() for name in names]
    assert len(names) == len(set(names)) and sorted(names) == public.__all__
    for name in names:
        assert getattr(public, name).__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    imported = {
        alias.name
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("codomyrmex")
        for alias in node.names
    }
    assert imported == set(public.__all__)


def test_importing_the_package_loads_no_protocol() -> None:
    code = (
        "import sys, codomyrmex.concurrency as c\n"
        "c.LockTimeout\n"
        "assert not {'google.protobuf', 'grpc', 'hpack', 'pydantic', 'ssl'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_namespace_is_shared_and_the_package_typed() -> None:
    assert not (SOURCE.parents[1] / "__init__.py").exists()
    assert (SOURCE.parent / "py.typed").exists()
