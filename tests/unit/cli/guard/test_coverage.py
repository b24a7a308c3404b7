"""The verdict on a path: covered by this agent, or reserved by others, and the path to reserve for it."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency.cli.agents.outcomes import Holder
from codomyrmex.concurrency.cli.guard.coverage import judge, to_reserve


def reserved(*paths: str, by: str = "me", shared: bool = False, expires_in: float | None = 60.0) -> Holder:
    return Holder(by, "host", 1, (), paths, "main", shared, 7, "", None, expires_in)


@pytest.mark.parametrize(
    "path", ["src/a.py", "src/b/c.py", "src", "README.md", "src/a[1].py", "src/bell\a", "src/\udcff"]
)
def test_a_path_in_a_scope_of_the_agent_is_covered(path: str) -> None:
    (verdict,) = judge([path], "me", [reserved("src/", "README.md"), reserved("src/", by="other")])
    assert verdict.covered and verdict.held_by == ()


@pytest.mark.parametrize(
    "mine",
    [
        reserved("src/", by="other"),
        reserved("src/", expires_in=None),
        reserved("src/", shared=True),
        reserved("src", "src/a.py/b"),
        reserved(),
    ],
)
def test_any_other_reservation_covers_nothing(mine: Holder) -> None:
    (verdict,) = judge(["src/a.py"], "me", [mine])
    assert not verdict.covered and verdict.reserve == "src/a.py"
    assert verdict.shared == mine.shared and verdict.held_by == (
        (mine,) if mine.agent == "other" or mine.expires_in is None else ()
    )


def test_the_others_in_the_way_are_those_that_overlap() -> None:
    overlapping = [reserved("src/", by="a"), reserved("src/a.py", by="b", shared=True), reserved("src/a.py/x", by="c")]
    others = [reserved("src/b.py", by="d"), reserved(by="e"), reserved("doc/", by="f", expires_in=None)]
    (verdict,) = judge(["src/a.py", "src/a.py"], "me", [*overlapping, *others])
    assert verdict.held_by == tuple(overlapping)


@pytest.mark.parametrize(
    ("path", "reserve"),
    [("a/b.py", "a/b.py"), ("a/[b].py", "a/"), ("a/b\n.py", "a/"), ("a/\udcff/c", "a/"), ("\t", ""), ("\udcff/\t", "")],
)
def test_a_name_that_cannot_be_reserved_needs_its_directory(path: str, reserve: str) -> None:
    (verdict,) = judge([path], "me", [])
    assert not verdict.covered and (verdict.path, verdict.reserve) == (path, reserve)


def test_many_paths_are_reserved_as_the_directory_that_has_them_all() -> None:
    def proposed(paths: list[str], *holders: Holder) -> tuple[str, ...]:
        return to_reserve(judge(paths, "me", holders), holders)

    many = [f"src/sub/{n}/a.py" for n in range(7)]
    assert proposed(many) == ("src/sub/",) and proposed([*many, "src/b"]) == ("src/",)
    assert proposed(many[:6]) == tuple(many[:6])
    assert proposed([*many, "README.md"]) == (*many, "README.md")
    beside = reserved("src/sub/z", by="other")
    assert proposed(many, beside) == tuple(many)
    assert proposed([*many, "src/sub/z"], beside) == ("src/sub/",)
