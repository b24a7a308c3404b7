"""Every Python and shell snippet of the documents runs as written, given an etcd; every name there exists."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import codomyrmex.concurrency as public
from codomyrmex.concurrency import EmbeddedEtcd, sync
from codomyrmex.concurrency.cli.group import concurrency
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.sync.portal import portal
from tests import words
from tests.docs.pages import DOCS, PAGES, ROOT, TESTING, Block, blocks, name

PYTHON = [
    pytest.param(block.text, id=f"{name(page)}-{number}")
    for page in PAGES
    if page != TESTING
    for number, block in enumerate((one for one in blocks(page) if one.language == "python"), 1)
    if block.file is None
]
SHELL = [page for page in PAGES if any(block.language == "sh" for block in blocks(page))]
# These go on until they are ended: they are, as by Ctrl-C.
ENDLESS = re.compile(r"--watch$|concurrency dev$|dlq work ")


@pytest.fixture
def own_sigterm() -> Iterator[None]:
    """A snippet may say what SIGTERM does; not for longer than it runs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("code", PYTHON)
async def test_a_snippet_runs_as_written(
    code: str,
    etcd: EmbeddedEtcd,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    own_sigterm: None,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    monkeypatch.chdir(tmp_path)
    compiled = compile(code, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, {"__name__": "snippet"})
    if inspect.isawaitable(result):
        await result
    await asyncio.to_thread(portal().close_default_session)  # of the blocking twin


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", SHELL, ids=name)
def test_the_commands_of_a_page_run_in_order(page: Path, etcd: EmbeddedEtcd, namespace: str, tmp_path: Path) -> None:
    """In one folder, where the files of the page are; their output is as shown, but for numbers and widths."""
    found = blocks(page)
    for block in found:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CODOMYRMEX_")},
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "PYTHONWARNINGS": "error",
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
        "XDG_STATE_HOME": str(tmp_path / ".state"),
        **{f"GIT_{role}_{of}": "a-reader" for role in ("AUTHOR", "COMMITTER") for of in ("NAME", "EMAIL")},
    }
    for block, after in zip(found, [*found[1:], Block("", "")], strict=True):
        if block.language != "sh":
            continue
        script = "\n".join(as_run(line) for line in block.text.splitlines())
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.text}{done.stdout}{done.stderr}"
        if after.language == "text":
            assert without_numbers(done.stdout) == without_numbers(after.text)


def without_numbers(output: str) -> str:
    """The output without the names, numbers and widths of one run; the host is ``host``."""
    output = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", output)
    return re.sub(r"\d+", "N", re.sub(r"\b(\d+[hms])+\b", "Ns", re.sub(" +", " ", output)))


def as_run(line: str) -> str:
    """The line as the test runs it: an installation and a target of make are only looked up."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["pip", "install"]:
        check_installation(words[2:])
        return ":"
    if words[:1] == ["make"]:
        return f"make -n -C {ROOT} {shlex.join(words[1:])} >/dev/null"
    if ENDLESS.search(line):
        return f"timeout --signal=INT 4 {line} || test $? = 124 || test $? = 130"
    return line


def check_installation(packages: list[str]) -> None:
    """Each package is this project, with extras that it has, or one that its own tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in packages:
        base, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?", package).groups()  # type: ignore[union-attr]
        if base == project["name"]:
            assert set((extras or "").split(",")) - {""} <= project["optional-dependencies"].keys()
        else:
            assert any(need.startswith(base) for need in project["optional-dependencies"]["dev"]), base


def test_the_specification_names_every_public_name() -> None:
    text = (ROOT / "API_SPECIFICATION.md").read_text()
    assert not [name for name in public.__all__ if not re.search(rf"`{name}\b", text)]


def test_the_reference_has_every_public_name_once() -> None:
    text = "".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    shown = re.findall(r"^::: codomyrmex\.concurrency\.([\w.]+)$", text, re.MULTILINE)
    twin = [f"sync.{one}" for one in sync.__all__]
    assert len(shown) == len(set(shown))
    assert {*public.__all__, *twin} <= set(shown)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for one in group.list_commands(context):
        command = group.get_command(context, one)
        assert command
        yield (*path, one), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, one))


def test_the_command_line_page_names_every_command_and_option() -> None:
    text = (DOCS / "reference" / "cli.md").read_text()
    for path, command in commands(concurrency):
        assert f"`{' '.join(path)}" in text or isinstance(command, click.Group), path
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert option in text, (path, option)


def test_the_settings_page_names_every_setting() -> None:
    text = (DOCS / "reference" / "settings.md").read_text()
    assert not [field for field in EtcdSettings.model_fields if f"`{field.upper()}`" not in text]


def test_the_documents_name_only_commands_that_exist() -> None:
    known = {path[0] for path, _ in commands(concurrency)}
    for page in PAGES:
        for command in set(re.findall(r"codomyrmex concurrency ([a-z]+)", page.read_text())):
            assert command in known, (page, command)


def test_the_glossary_says_what_each_retired_word_gave_way_to() -> None:
    rows = re.findall(r"^\| (.+?) \| .+? \| (.*?) ?\|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    retired = " ".join(last for _, last in rows)
    assert not [word for word in words.RETIRED_PARTS if not re.search(rf"\b{word}\b", retired)]
    assert [word for word, _ in rows[2:]] == sorted((word for word, _ in rows[2:]), key=str.casefold)
