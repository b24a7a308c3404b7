"""Nonces: never two alike in one queue at a time, few of them, and nothing kept of idle queues."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.waitqueue.key_slots import Nonces


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.booleans()), max_size=200))
def test_no_two_entries_of_a_queue_share_a_nonce(steps: list[tuple[bytes, bool]]) -> None:
    nonces, used = Nonces(), {b"a": [], b"b": []}
    for queue, give_back in steps:
        if give_back and used[queue]:
            nonces.give_back(queue, used[queue].pop(0))
        else:
            nonce = nonces.take(queue)
            assert nonce not in used[queue] and nonce <= len(used[queue])
            used[queue].append(nonce)
    for queue, taken in used.items():
        for nonce in taken:
            nonces.give_back(queue, nonce)
    assert not nonces._queues
