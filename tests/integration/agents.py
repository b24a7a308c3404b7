"""Agents at the command line: each call is a process of its own, and each host has a state directory of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codomyrmex.concurrency.cli.schemas import OUTPUTS, output_schema, schemas
from tests.integration.command_line import CLI, Cli, Result
from tests.json_schema import faults


class Agent:
    """The calls of one agent on one host, from the directory ``cwd``."""

    def __init__(self, cli: Cli, name: str, state: Path, cwd: Path | None = None) -> None:
        self.name = name
        self.cwd = cwd
        self.cli = Cli("", "")
        self.cli.environment = {**cli.environment, "XDG_STATE_HOME": str(state), "CODOMYRMEX_AGENT": name}

    async def __call__(self, *args: str, **environment: str) -> Result:
        """The result of one of our commands."""
        return await self.run(*CLI, *args, **environment)

    async def run(self, *argv: str, **environment: str) -> Result:
        """The result of any command, in the agent's environment."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=self.cwd, env={**self.cli.environment, **environment}, stdout=pipe, stderr=pipe
        )
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    async def json(self, *args: str, code: int = 0) -> Any:
        """The JSON that one of our commands prints, which is as ``capabilities`` describes it."""
        result = await self(*args, "-o", "json")
        assert result.code == code, result
        found = json.loads(result.out)
        name = next(" ".join(args[:n]) for n in (2, 1) if " ".join(args[:n]) in OUTPUTS)
        wrong = faults(found, output_schema(name), schemas())
        assert not wrong, wrong
        return found


Agents = Callable[..., Agent]  # by name, and by host
