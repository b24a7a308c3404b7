"""This library's locks and semaphores, as contenders open them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from codomyrmex.concurrency import DistributedLock, Semaphore, Session

NAMESPACE = "bench"
Locks = Sequence[AbstractAsyncContextManager[object]]


@asynccontextmanager
async def _opened(
    endpoint: str, names: Sequence[str], make: Callable[[str, Session], AbstractAsyncContextManager[object]]
) -> AsyncIterator[Locks]:
    """In one session; a name that is there several times gets one for each."""
    async with AsyncExitStack() as stack:

        async def session() -> Session:
            return await stack.enter_async_context(Session(endpoints=endpoint, namespace=NAMESPACE))

        first = await session()
        known: set[str] = set()
        locks = []
        for name in names:
            locks.append(make(name, await session() if name in known else first))
            known.add(name)
        yield locks


def locks(endpoint: str, names: Sequence[str]) -> AbstractAsyncContextManager[Locks]:
    return _opened(endpoint, names, lambda name, session: DistributedLock(name, session))


def semaphores(endpoint: str, names: Sequence[str]) -> AbstractAsyncContextManager[Locks]:
    """Of one permit, to be compared with the lock."""
    return _opened(endpoint, names, lambda name, session: Semaphore(name, max_concurrent=1, session=session))
