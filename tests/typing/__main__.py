"""mypy --strict and pyright read what users would write: ``make lint``.

They read a program with every primitive, wrong uses that they must refuse, the snippets of the documents, and the
examples.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md",
    "API_SPECIFICATION.md",
    "PAI.md",
    *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")),
)


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        snippets = Path(temporary) / "snippets.py"
        snippets.write_text(as_functions())
        files = [
            *sorted((ROOT / "tests" / "typing").glob("[a-z]*.py")),
            *sorted((ROOT / "examples").glob("*.py")),
            snippets,
        ]
        failed = check("mypy", ["--strict", "--no-warn-unreachable"], files)
        return check("pyright", ["--pythonpath", sys.executable], files) or failed


def as_functions() -> str:
    """The snippets of the documents, each an async function of its own: it may await, and its names are its own."""
    blocks = [
        (document, code)
        for document in DOCUMENTS
        for code in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
        if not re.search(r"^from (celery|fastapi|langchain_core)\b", code, re.MULTILINE)  # not installed here
    ]
    return "\n".join(
        f"async def snippet_{number}() -> None:  # {document}\n{textwrap.indent(code, '    ')}"
        for number, (document, code) in enumerate(blocks, 1)
    )


def check(checker: str, options: Sequence[str], files: Sequence[Path]) -> int:
    command = [sys.executable, "-m", checker]
    if subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, check=False).returncode:
        print(f"{checker} cannot run here, and has checked nothing: `pip install '.[dev]'` brings it where it can")
        return 0
    return subprocess.run([*command, *options, *map(str, files)], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
