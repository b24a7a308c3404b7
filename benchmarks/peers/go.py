"""etcd's own recipe, ``go.etcd.io/etcd/client/v3/concurrency``, through the small program in ``go/``."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from benchmarks.sample import Sample

Mode = Literal["uncontended", "contended"]
_SOURCE = Path(__file__).parent / "go"
_PROGRAM = _SOURCE / "go-lock"


def build() -> str | None:
    """Builds the program; says why not where it cannot."""
    if shutil.which("go") is None:
        return "go is not installed"
    done = subprocess.run(
        ["go", "build", "-o", _PROGRAM.name, "."], cwd=_SOURCE, capture_output=True, text=True, check=False
    )
    return f"go build failed: {done.stderr.strip()}" if done.returncode else None


async def run(endpoint: str, seconds: float, workers: int, mode: Mode) -> Sample:
    """``uncontended``: one session, a name each; ``contended``: a client and session each, one name."""
    process = await asyncio.create_subprocess_exec(
        _PROGRAM,
        *("-endpoint", endpoint, "-mode", mode, "-workers", str(workers), "-seconds", str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{_PROGRAM.name} ended with exit code {process.returncode}")
    return Sample.model_validate_json(output)
