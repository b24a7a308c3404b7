"""One tool call of an agent: a process that does one thing with a reservation, says so, and ends.

python -m tests.integration.reserver ENDPOINTS NAMESPACE STEP ARGUMENTS, with ARGUMENTS in JSON, and the handle on
standard input for every step but ``reserve``. It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from codomyrmex.concurrency import ConcurrencyError, LockManager, Session


async def step(manager: LockManager, what: str, given: dict[str, Any], handle: str) -> dict[str, Any]:
    if what == "reserve":
        made = await manager.reserve(given.pop("name"), **given)
        return {"handle": made.handle, "token": made.token, "left": str(made.left or ""), "lives": made.expires_in()}
    reservation = manager.reservation(handle)
    if what == "renew":
        await reservation.renew(**given)
        return {"token": reservation.token, "lives": reservation.expires_in()}
    if what == "write":
        await reservation.put(given["key"], given["value"])
    elif what == "release":
        await reservation.release(**given)
    return {"token": reservation.token}


async def main() -> None:
    endpoints, namespace, what, arguments = sys.argv[1:]
    given = json.loads(arguments)
    stay = given.pop("stay", 0)
    handle = "" if what == "reserve" else sys.stdin.read().strip()
    async with Session(endpoints=endpoints, namespace=namespace, session_ttl=5, request_timeout=5.0) as session:
        try:
            answer = await step(LockManager(session), what, given, handle)
        except ConcurrencyError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)
        await asyncio.sleep(stay)


if __name__ == "__main__":
    asyncio.run(main())
