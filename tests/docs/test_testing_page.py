"""The page for users' own tests: its files, written down, are a suite that passes and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
CONFIGURATION = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0] + 'filterwarnings = ["error"]\n'


def run(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    (folder / file).write_text(FILES[file])
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    (folder / "temporary").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CODOMYRMEX_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder, env={**environment, "TMPDIR": str(folder / "temporary")}, capture_output=True, text=True,
        check=False, timeout=50,
    )  # fmt: skip


def test_each_snippet_is_a_file() -> None:
    assert PAGE.count("```python\n") == len(FILES) and next(iter(FILES)) == "test_first.py"
    assert len(FILES["test_first.py"].split("\n\n\n")[1].strip().splitlines()) <= 5, "the first test is a short one"


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_page_is_a_suite_that_passes(file: str, tmp_path: Path) -> None:
    done = run(tmp_path, file)
    tests = len(re.findall(r"^(?:async )?def test_", FILES[file], re.MULTILINE))
    assert done.returncode == 0 and f"{tests} passed" in done.stdout, done.stdout + done.stderr
    assert not list((tmp_path / "temporary").glob("codomyrmex-*")), "an etcd left its folder behind"
