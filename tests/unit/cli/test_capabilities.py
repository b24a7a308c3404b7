"""``capabilities`` describes the command line as it is: commands, options, exit codes, and schemas of the outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from codomyrmex.concurrency.cli import running, schemas
from codomyrmex.concurrency.cli.group import concurrency

SOURCE = Path(running.__file__).parent
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"


@pytest.fixture(scope="module")
def told() -> Any:
    result = CliRunner().invoke(concurrency, ["capabilities", "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{path}{word}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{word} ")


def test_it_names_every_command_with_its_arguments_and_options(told: Any) -> None:
    described = {one["name"]: one for one in told["commands"]}
    found = dict(commands(concurrency))
    assert list(described) == list(found) and len(found) > 25
    for name, command in found.items():
        one = described[name]
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert [(a["name"], a["required"], a["many"]) for a in one["arguments"]] == [
            (a.name, a.required, a.nargs < 0) for a in arguments
        ]
        names = [option["names"] for option in one["options"]]
        assert names[:-1] == [[*option.opts, *option.secondary_opts] for option in options] and "--help" in names[-1]
        for shown, option in zip(one["options"], options, strict=False):
            assert (shown["value"] is None, shown["required"], shown["many"]) == (
                *(option.is_flag, option.required),
                option.multiple,
            )
            assert shown["help"] == (option.help or "") and one["summary"]


def test_it_tells_defaults_and_choices(told: Any) -> None:
    (reserve,) = (one for one in told["commands"] if one["name"] == "reserve")
    options = {option["names"][-1]: option for option in reserve["options"]}
    defaults = {name: option["default"] for name, option in options.items()}
    assert (defaults["--for"], defaults["--timeout"], defaults["--tree"]) == ("15m", "30s", "default")
    assert defaults["--note"] is defaults["--shared"] is defaults["--as"] is None
    assert options["--output"]["choices"] == ["table", "wide", "json", "jsonl", "name"]


def test_its_exit_codes_are_those_of_the_program_and_of_the_page(told: Any) -> None:
    used = {value for name, value in vars(running).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert {int(code) for code in told["exit_codes"]} == {0, *used}
    for code, meaning in told["exit_codes"].items():
        assert f"| {code} | {meaning} |" in PAGE.read_text()
    for one in told["commands"]:
        assert set(one["exit_codes"]) <= {0, *used} and one["exit_codes"][:3] == [0, 1, 2]
        without_etcd = one["name"] in ("capabilities", "demo", "dev", "guard install")
        assert (69 in one["exit_codes"]) is not without_etcd
    by_code = {code: [one["name"] for one in told["commands"] if code in one["exit_codes"]] for code in (75, 76, 77)}
    assert by_code == {75: ["reserve", "run"], 76: ["release", "renew", "run"], 77: ["guard check"]}


def test_each_command_that_prints_json_has_a_schema(told: Any) -> None:
    printing = re.compile(r"output\.(show|show_list|print_json)\(|live\.watch")
    sources = {path: path.read_text() for path in SOURCE.rglob("*.py") if path.parent.name != "views"}
    modules = {path.stem for path, text in sources.items() if printing.search(text)}
    assert set(schemas.OUTPUTS) <= {one["name"] for one in told["commands"]}
    words = {word for name in schemas.OUTPUTS for word in name.split()}
    # Of renew and release, of dlq list and show, and of locks --stuck.
    assert modules - words == {"chosen", "entries", "stuck"}
    for one in told["commands"]:
        watches = any("--watch" in option["names"] for option in one["options"])
        assert (one["event"] is not None) == watches, one["name"]
        assert (one["output"] is not None) == (one["name"] in schemas.OUTPUTS)


def test_each_reference_leads_to_a_schema(told: Any) -> None:
    references = set(re.findall(r'"\$ref": "#/schemas/(\w+)"', json.dumps(told)))
    assert references and references <= set(told["schemas"])
    holder = told["schemas"]["Holder"]
    assert set(holder["required"]) == set(holder["properties"])
    assert not any("handle" in schema.get("properties", {}) for schema in told["schemas"].values())


def test_the_text_form_has_a_line_for_each_command() -> None:
    lines = CliRunner().invoke(concurrency, ["capabilities"]).output.splitlines()
    names = CliRunner().invoke(concurrency, ["capabilities", "-o", "name"]).output.splitlines()
    assert names == [name for name, _ in commands(concurrency)] and len(lines) == len(names) + 1
    (check,) = (line for line in lines if line.startswith("guard check"))
    assert check.endswith("0 1 2 69 77")
