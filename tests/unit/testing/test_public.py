"""The names of the harness: each is there, documented once, and costs nothing before it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codomyrmex.concurrency import testing

ROOT = Path(__file__).resolve().parents[3]


def test_each_name_is_there_and_has_a_text() -> None:
    for name in testing.__all__:
        found = getattr(testing, name)
        assert found.__name__ == name and found.__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(testing.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname for node in imports for alias in node.names if alias.asname}
    assert names == set(testing.__all__)


def test_a_name_that_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Fleets'"):
        _ = testing.Fleets


def test_the_reference_and_the_specification_have_each_name() -> None:
    reference = (ROOT / "docs" / "reference" / "testing.md").read_text()
    shown = re.findall(r"^::: codomyrmex\.concurrency\.testing\.(\w+)$", reference, re.MULTILINE)
    assert sorted(shown) == testing.__all__
    specification = (ROOT / "API_SPECIFICATION.md").read_text()
    assert not [name for name in testing.__all__ if not re.search(rf"`{name}\b", specification)]


def test_importing_it_loads_no_module_of_the_harness() -> None:
    code = (
        "import sys, codomyrmex.concurrency.testing\n"
        "assert not [name for name in sys.modules if name.startswith('codomyrmex.concurrency.testing.')]\n"
        "assert not {'asyncio', 'pydantic', 'pytest', 'subprocess'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_plugin_takes_less_than_20_ms() -> None:
    """Of the processor, in the best of three processes, so that a busy machine does not count."""
    code = (
        "import pytest, pytest_asyncio, time\n"
        "began = time.process_time()\n"
        "import codomyrmex.concurrency.testing.plugin, codomyrmex.concurrency.testing.async_fixtures\n"
        "print(time.process_time() - began)"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert min(map(float, runs)) < 0.02
