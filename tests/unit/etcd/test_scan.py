"""Pages and names of any keys are those that a single reading of all of them has."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd.scan import keys_under, names_under, pages
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, GetResult
from codomyrmex.concurrency.keys import escape

T = TypeVar("T")

PREFIX = b"/fleet/v1/lock/"
names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=4).map(
    lambda text: unicodedata.normalize("NFC", text)
)


class Store:
    """A store that gets another key, of revision 100 and later, with each reading."""

    def __init__(self, keys: set[bytes]) -> None:
        self._keys = dict.fromkeys(keys, 1)
        self._revision = 100
        self.gets = 0

    async def get(self, get: Get) -> GetResult:
        self.gets += 1
        at = get.revision or self._revision
        found = sorted(key for key, made in self._keys.items() if get.key <= key < get.end and made <= at)
        result = GetResult([KV(key, b"", 1, 1, 1, 1) for key in found[: get.limit]], len(found), self._revision)
        self._revision += 1
        self._keys[PREFIX + b"~%d" % self._revision] = self._revision
        return result


def listed(items: AsyncIterator[T]) -> list[T]:
    async def run() -> list[T]:
        return [item async for item in items]

    return asyncio.run(run())


@given(st.sets(st.binary(max_size=3), max_size=12), st.integers(1, 5))
def test_pages_together_are_one_reading_at_one_revision(rests: set[bytes], size: int) -> None:
    keys = {PREFIX + rest for rest in rests}
    around = {b"/fleet/v1/lock", b"/fleet/v1/lock0"}
    assert [kv.key for kv in listed(keys_under(Store(keys | around), PREFIX, size=size))] == sorted(keys)


@pytest.mark.parametrize(("count", "expected"), [(0, [0]), (1, [1]), (2, [2, 0]), (3, [2, 1])])
def test_the_last_page_is_not_full(count: int, expected: list[int]) -> None:
    store = Store({PREFIX + b"%d" % number for number in range(count)})
    assert [len(page.kvs) for page in listed(pages(store, PREFIX, size=2))] == expected


def test_pages_at_a_given_revision_leave_out_what_is_newer() -> None:
    store = Store({PREFIX + b"a"})
    listed(pages(store, PREFIX))
    assert [kv.key for page in listed(pages(store, PREFIX, revision=100)) for kv in page.kvs] == [PREFIX + b"a"]


class Still(Store):
    """A store that does not change."""

    async def get(self, get: Get) -> GetResult:
        return await super().get(get._replace(revision=100))


@given(st.sets(names, max_size=6), st.integers(1, 3))
def test_each_name_is_told_once_by_one_small_read(wanted: set[str], entries: int) -> None:
    wanted = {name for name in wanted if name.isprintable()}
    keys = {PREFIX + f"{escape(name)}/{number}".encode() for name in wanted for number in range(entries)}
    store = Still(keys | {PREFIX + b"%zz/1", PREFIX + b"/1"})
    assert sorted(listed(names_under(store, PREFIX))) == sorted(wanted)
    assert store.gets == len(wanted) + 3


def test_names_are_found_in_the_form_that_an_earlier_release_wrote() -> None:
    composed, decomposed = "\u00e9t\u00e9", unicodedata.normalize("NFD", "\u00e9t\u00e9")
    store = Still({PREFIX + f"{escape(name)}/1".encode() for name in (composed, decomposed, "e", "x")})
    assert listed(names_under(store, PREFIX, "\u00e9")) == [composed, decomposed]
