"""Handles of reservations: each one reads back, and every change of one is refused with a text that says which."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from codomyrmex.concurrency import InvalidHandle
from codomyrmex.concurrency.keys import LOCK, Layout, check_name
from codomyrmex.concurrency.recipes.handle import Handle


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except ValueError:
        return False
    return True


names = st.text(min_size=1, max_size=30).filter(is_name)
numbers = st.integers(1, 2**63 - 1)


@st.composite
def handles(draw: st.DrawFn) -> Handle:
    namespace = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
    layout = Layout(namespace)
    keys = [
        layout.entry(
            layout.queue(name, LOCK), draw(numbers), draw(st.integers(0, 99)), draw(st.sampled_from([b"", b".r"]))
        )
        for name in draw(st.lists(names, min_size=1, max_size=4))
    ]
    return Handle(namespace, draw(numbers), draw(numbers), draw(st.integers(1, 2**32 - 1)), tuple(keys))


@given(handles())
def test_a_handle_reads_back_and_is_safe_in_urls_and_shells(handle: Handle) -> None:
    text = handle.encode()
    assert Handle.decode(text, handle.namespace) == handle
    assert text.isascii() and text.replace("_", "").replace("-", "").isalnum()


@given(handles(), st.data())
def test_a_cut_handle_is_refused_as_cut(handle: Handle, data: st.DataObject) -> None:
    text = handle.encode()
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(InvalidHandle, match="is cut: copy it whole"):
        Handle.decode(cut)


@given(handles(), st.data())
def test_a_flipped_bit_is_refused(handle: Handle, data: st.DataObject) -> None:
    text = handle.encode()
    at, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 6))
    flipped = text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]
    with pytest.raises(InvalidHandle, match=r"changed|cut|no handle|version"):
        Handle.decode(flipped)


@pytest.mark.parametrize("name", ["a", "ab", "abc"])
def test_each_bit_of_a_handle_counts(name: str) -> None:
    """The last character of a base64 text may have bits that decode to nothing."""
    layout = Layout("n")
    text = Handle("n", 7, 8, 9, (layout.entry(layout.queue(name, LOCK), 1, 0),)).encode()
    for at, char in enumerate(text):
        for bit in range(7):
            with pytest.raises(InvalidHandle):
                Handle.decode(text[:at] + chr(ord(char) ^ 1 << bit) + text[at + 1 :])


@given(handles(), st.text(min_size=1, max_size=5), st.data())
def test_an_insertion_is_refused(handle: Handle, more: str, data: st.DataObject) -> None:
    text = handle.encode()
    at = data.draw(st.integers(0, len(text)))
    inserted = text[:at] + more + text[at:]
    assume(inserted != text)
    with pytest.raises(InvalidHandle):
        Handle.decode(inserted)


@given(st.text())
def test_a_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidHandle):
        Handle.decode(text)


@pytest.mark.parametrize("text", ["hello", "", "cdx1_ab\0", "cdx0_AAAA", " cdx1_AAAA", "cdx1-AAAA", b"cdx1_", None])
def test_a_text_without_the_form_is_no_handle(text: str) -> None:
    with pytest.raises(InvalidHandle, match=r"is no handle of a reservation|is a str"):
        Handle.decode(text)


@given(handles())
def test_the_error_names_the_other_namespace(handle: Handle) -> None:
    with pytest.raises(InvalidHandle, match="is of the namespace") as caught:
        Handle.decode(handle.encode(), handle.namespace + "-2")
    assert repr(handle.namespace) in str(caught.value) and handle.encode() not in str(caught.value)


@given(handles(), st.integers(2, 999_999))
def test_a_newer_version_is_refused_with_its_number(handle: Handle, version: int) -> None:
    newer = handle.encode().replace("cdx1_", f"cdx{version}_", 1)
    with pytest.raises(InvalidHandle, match=f"is of version {version}, .*upgrade"):
        Handle.decode(newer)


@given(handles())
def test_its_repr_does_not_give_it_away(handle: Handle) -> None:
    assert repr(handle) == f"<Handle of {len(handle.keys)} entries with token {handle.token}>"
