"""The page for users' own tests: its files, written down, are a suite that passes and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
CONFIGURATION = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0] + 'filterwarnings = ["error"]\n'


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    for name, code in FILES.items():
        (folder / name).write_text(code)
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    (folder / "temporary").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CODOMYRMEX_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder, env={**environment, "TMPDIR": str(folder / "temporary")}, capture_output=True, text=True,
        check=False, timeout=50,
    )  # fmt: skip


def test_the_page_is_a_suite_that_passes(tmp_path: Path) -> None:
    assert FILES.keys() == {"conftest.py", "test_edits.py"}
    done = run(tmp_path)
    tests = len(re.findall(r"^(?:async )?def test_", FILES["test_edits.py"], re.MULTILINE))
    assert done.returncode == 0 and f"{tests} passed" in done.stdout, done.stdout + done.stderr
    assert not list((tmp_path / "temporary").glob("codomyrmex-etcd-*")), "the embedded etcd left its folder behind"
