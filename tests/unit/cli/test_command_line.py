"""Reading a command line: ages, and the likely name for a misspelt one."""

from __future__ import annotations

import click
import pytest

from codomyrmex.concurrency.cli import root
from codomyrmex.concurrency.cli.command_classes import did_you_mean
from codomyrmex.concurrency.cli.duration_types import Age


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("7d", 604_800), ("1h30m", 5400), ("0", 0)])
def test_an_age_is_read(text: str, seconds: float) -> None:
    assert Age().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "1.5", "1h30"])
def test_an_age_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="has no unit"):
        Age().convert(text, None, None)


@pytest.mark.parametrize(
    ("name", "meant"), [("lokcs", "locks"), ("sem", "semaphores"), ("lock", "locks"), ("x", ""), ("s", ""), ("--", "")]
)
def test_the_likely_name_is_offered_and_no_other(name: str, meant: str) -> None:
    offered = did_you_mean(name, ["locks", "semaphores", "status"])
    assert offered == (f" Did you mean {meant!r}?" if meant else "")


def test_ctrl_c_before_a_command_runs_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(root.main, "get_command", interrupted)
    with pytest.raises(SystemExit) as ended:
        root.main(["concurrency", "rates"], prog_name="codomyrmex")
    assert ended.value.code == 130 and capsys.readouterr().err == ""
