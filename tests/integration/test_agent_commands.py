"""The command line of agents, as the documents tell it: two agents, each of whose calls is a process of its own."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from tests.integration.command_line import Cli, Result

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]


@pytest.fixture
def agents(cli: Cli, tmp_path: Path) -> Cli:
    cli.environment["XDG_STATE_HOME"] = str(tmp_path)
    cli.environment["CODOMYRMEX_AGENT"] = "one"
    return cli


async def test_an_agent_reserves_in_one_call_and_gives_back_in_another(agents: Cli, tmp_path: Path) -> None:
    first = await agents("reserve", "--path", "src/parser/", "--for", "60s", "--note", "renaming the parser")
    assert first.code == 0, first
    second = await agents("reserve", "--path", "src/parser/a.py", "--timeout", "1s", "--as", "two")
    assert second.code == 75, second
    told = second.out + second.err
    assert "one" in told and "renaming the parser" in told and "src/parser" in told, told
    assert "codomyrmex concurrency" in told, "the message says the next command to type"
    renewed = await agents("renew", "--all", "--note", "half done")
    assert renewed.code == 0, renewed
    listed = await agents("reservations", "-o", "json")
    assert listed.code == 0 and "half done" in json.dumps(json.loads(listed.out)), listed
    foreign = await agents("release", "--all", "--as", "two")
    assert "src/parser" not in foreign.out, foreign
    released = await agents("release", "--all", "--note", "done")
    assert released.code == 0, released
    third = await agents("reserve", "--path", "src/parser/a.py", "--timeout", "1s", "--as", "two", "--for", "10s")
    assert third.code == 0, third
    files = [path for path in (tmp_path / "codomyrmex" / "reservations").rglob("*") if path.is_file()]
    assert files and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert all(stat.S_IMODE(path.parent.stat().st_mode) == 0o700 for path in files)


@pytest.mark.parametrize("command", ["renew", "release"])
async def test_a_lost_reservation_is_told_at_its_next_use(agents: Cli, command: str) -> None:
    assert (await agents("reserve", "x", "--for", "10s", "--note", "about to be lost")).code == 0
    taken = await agents("reserve", "x", "--timeout", "18s", "--as", "two", "--for", "60s")
    assert taken.code == 0 and "about to be lost" in taken.out + taken.err, taken
    lost = await agents(command, "x")
    assert lost.code == 76, lost
    assert "expired" in lost.err + lost.out and "two" in lost.err + lost.out, lost


@pytest.mark.parametrize(
    "arguments",
    [
        ("x", "--for", "9s"),
        ("x", "--for", "25h"),
        ("--path", "../x"),
        ("--path", "/etc/passwd"),
        ("--path", "src/../../x"),
        ("--path", "a\nb"),
        (),
    ],
)
async def test_bad_input_is_a_usage_error(agents: Cli, arguments: tuple[str, ...]) -> None:
    refused = await agents("reserve", *arguments)
    assert refused.code == 2, refused
    assert "Traceback" not in refused.err and len(refused.err) > 20, refused


async def test_parallel_tool_calls_of_one_agent_lose_no_handle(agents: Cli) -> None:
    names = [f"n{number}" for number in range(6)]
    made = await asyncio.gather(*(agents("reserve", name, "--for", "60s") for name in names))
    assert [one.code for one in made] == [0] * 6, made
    both: list[Result] = await asyncio.gather(agents("renew", "--all"), agents("release", "n0"), agents("renew", "n1"))
    assert both[1].code == 0 and both[2].code == 0 and both[0].code in (0, 76), both
    assert (await agents("release", "--all")).code == 0
    listed = await agents("reservations", "-o", "json")
    assert not any(name in listed.out for name in names), listed


async def test_check_covers_the_paths_of_the_own_agent_only(agents: Cli) -> None:
    assert (await agents("reserve", "--path", "src/", "--for", "60s")).code == 0
    assert (await agents("guard", "check", "src/a.py", "src/deep/b.py")).code == 0
    foreign = await agents("guard", "check", "src/a.py", "docs/x.md")
    assert foreign.code == 77 and "docs/x.md" in foreign.out + foreign.err, foreign
    other = {**agents.environment, "CODOMYRMEX_AGENT": "two"}
    agents.environment = other
    refused = await agents("guard", "check", "src/a.py")
    assert refused.code == 77 and "one" in refused.out + refused.err, refused


async def test_capabilities_name_every_command(agents: Cli) -> None:
    told = await agents("capabilities", "-o", "json")
    assert told.code == 0, told
    for command in ("reserve", "renew", "release", "reservations", "guard"):
        assert command in json.dumps(json.loads(told.out))


async def test_odd_names_of_agents_and_notes_stay_within_the_folder_and_off_the_terminal(
    agents: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    agents.environment["XDG_STATE_HOME"] = str(folder)
    for agent in ("../../../out", "a/b", "..", "x\x1b[2Jy", "é", "x" * 300):
        made = await agents("reserve", "x", "--for", "10s", "--as", agent, "--note", "\x1b[2Jnote", "--timeout", "0s")
        assert made.code in (0, 2), (agent, made)
        shown = await agents("reservations")
        blocked = await agents("reserve", "x", "--timeout", "0s", "--as", "other")
        for result in (made, shown, blocked):
            assert "\x1b" not in result.out + result.err and "Traceback" not in result.err, (agent, result)
        await agents("release", "--all", "--as", agent)
    assert {path.name for path in tmp_path.iterdir()} <= {"state"}
    assert all("reservations" in path.parts for path in folder.rglob("*") if path.is_file())
