"""etcd's own programs of a version, built from Go modules where Go is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NEWEST = {"3.6": "v3.6.16", "3.7": "v3.7.3"}


def built(program: str, tag: str, folder: Path) -> Path | None:
    """``server``, ``etcdctl`` or ``etcdutl`` of a version, with no need of shared libraries; None if that cannot be."""
    if not shutil.which("go"):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    package = f"go.etcd.io/etcd/{program}/v3"
    for command in (
        ("go", "mod", "init", "built"),
        ("go", "get", f"{package}@{tag}"),
        ("env", "CGO_ENABLED=0", "go", "build", "-o", program, package),
    ):
        if subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=600).returncode:
            return None
    return folder / program
