"""One lock on an embedded etcd: does the generated protocol code work with the protobuf runtime installed here?"""

import asyncio

import google.protobuf

from codomyrmex.concurrency import DistributedLock, Session


async def main() -> None:
    async with Session(endpoints="embedded") as session, DistributedLock("smoke", session) as grant:
        await grant.put("/codomyrmex/smoke", "ok")
        assert await grant.get("/codomyrmex/smoke") == b"ok"
    print(f"protobuf {google.protobuf.__version__}: ok")  # noqa: T201


asyncio.run(main())
