"""The names and paths that an agent wants, compared with those that it holds: what is missing, and what conflicts."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency import InvalidName
from codomyrmex.concurrency.cli.agents.handle_store import KeptHandle
from codomyrmex.concurrency.cli.agents.wanted import Wanted, named


def held(*names: str, paths: tuple[str, ...] = (), tree: str = "main", shared: bool = False) -> KeptHandle:
    return KeptHandle("handle", names, paths, tree, shared)


def wanted(*names: str, paths: tuple[str, ...] = (), tree: str = "main", shared: bool = False) -> Wanted:
    return Wanted.of(names, paths, tree, shared)


def test_names_and_paths_take_the_form_of_the_library() -> None:
    one = wanted("b", "a", "b", "e\u0301", paths=("./src//x", "src/*.py", "src/x"))
    assert one.names == ("b", "a", "\u00e9") and one.paths == ("src/x", "src/")
    assert not wanted() and wanted(paths=("",))
    for bad in (("", ()), ("x", ("../y",)), ("x", ("/y",))):
        with pytest.raises(InvalidName):
            wanted(bad[0], paths=bad[1])


@pytest.mark.parametrize(
    ("has", "names", "paths"),
    [
        ([], ("a", "b"), ("src/x", "doc/")),
        ([held("a")], ("b",), ("src/x", "doc/")),
        ([held("b", paths=("src/",)), held("a")], (), ("doc/",)),
        ([held(paths=("",))], ("a", "b"), ()),
        ([held(paths=("src/x", "doc/"), tree="other")], ("a", "b"), ("src/x", "doc/")),
        ([held("a", "b", paths=("",), shared=True)], ("a", "b"), ("src/x", "doc/")),
        ([held(paths=("src/x/y", "doc"))], ("a", "b"), ("src/x", "doc/")),
    ],
)
def test_what_is_held_already_is_not_asked_for(
    has: list[KeptHandle], names: tuple[str, ...], paths: tuple[str, ...]
) -> None:
    rest = wanted("a", "b", paths=("src/x", "doc/")).without(has)
    assert (rest.names, rest.paths) == (names, paths)


def test_a_reader_is_content_with_what_it_holds_either_way() -> None:
    for shared in (False, True):
        assert not wanted("a", paths=("x",), shared=True).without([held("a", paths=("x",), shared=shared)])


def test_what_cannot_be_held_at_the_same_time_conflicts() -> None:
    one = wanted("a", paths=("src/",))
    conflicting = [held("a", "c"), held(paths=("src/x",)), held("a", shared=True), held(paths=("",), shared=True)]
    others = [held("b"), held(paths=("doc/",)), held(paths=("src/",), tree="other")]
    assert [other for other in conflicting + others if one.conflicts_with(other)] == conflicting
    reader = wanted("a", paths=("src/",), shared=True)
    assert [other for other in conflicting if reader.conflicts_with(other)] == conflicting[:2]
    assert reader.touched(conflicting + others) == conflicting


def test_a_reservation_is_found_by_a_name_or_a_path() -> None:
    both, other = held("a", "../x", paths=("src/", "b")), held("b")
    assert named([both, other], "a") == [both] and named([both, other], "b") == [both, other]
    assert named([both, other], "./src//") == [both] and named([both, other], "../x") == [both]
    assert not named([both, other], "src/y")


def test_a_reservation_is_found_by_what_was_typed_for_it() -> None:
    one = held("caf\u00e9", paths=("g/", "caf\u00e9/"))
    for typed in ("caf\u00e9", "cafe\u0301", "g/*.py", "./g/**", "cafe\u0301/"):
        assert named([one], typed) == [one]
    assert not named([one], "*.py") and not named([one], "cafe") and not named([one], "")
