"""Key slots: never two alike in one queue at a time, few of them, and nothing kept of idle queues."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.waitqueue.key_slots import KeySlots


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.booleans()), max_size=200))
def test_no_two_entries_of_a_queue_share_a_key_slot(steps: list[tuple[bytes, bool]]) -> None:
    key_slots, used = KeySlots(), {b"a": [], b"b": []}
    for queue, give_back in steps:
        if give_back and used[queue]:
            key_slots.give_back(queue, used[queue].pop(0))
        else:
            slot = key_slots.take(queue)
            assert slot not in used[queue] and slot <= len(used[queue])
            used[queue].append(slot)
    for queue, taken in used.items():
        for slot in taken:
            key_slots.give_back(queue, slot)
    assert not key_slots._queues
