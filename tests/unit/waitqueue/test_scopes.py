"""Scopes against brute force: no overlap missed, none invented; every path has one form, in which it is read back."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import InvalidName
from codomyrmex.concurrency.waitqueue import scopes
from codomyrmex.concurrency.waitqueue.scopes import WHOLE_TREE, Occupied, Scopes, normalised, scopes_in

PART = st.sampled_from(["a", "b", "ab", "a.b", "é", " "])
PATH = st.builds(
    lambda parts, end: "/".join(parts) + (end if parts else ""), st.lists(PART, max_size=4), st.sampled_from(["", "/"])
)
SCOPES = st.builds(
    lambda paths, shared: Scopes.of(paths, shared), st.lists(PATH, min_size=1, max_size=5), st.booleans()
)


def parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def brute(one: Scopes, other: Scopes) -> bool:
    """Compare each path with each, part by part."""
    pairs = [(parts(mine), parts(theirs)) for mine in one.paths for theirs in other.paths]
    return not (one.shared and other.shared) and any(a[: len(b)] == b or b[: len(a)] == a for a, b in pairs)


@given(SCOPES, SCOPES)
def test_no_overlap_is_missed_and_none_invented(one: Scopes, other: Scopes) -> None:
    assert one.overlaps(other) == other.overlaps(one) == brute(one, other)


@given(st.lists(SCOPES, max_size=6), SCOPES)
def test_all_entries_together_overlap_as_one_of_them_does(several: list[Scopes], one: Scopes) -> None:
    occupied = Occupied()
    for other in several:
        occupied.add(other)
    assert occupied.overlaps(one) == any(brute(other, one) for other in several)


@given(st.lists(PATH, min_size=1, max_size=5), PATH)
def test_covered_is_what_is_named_or_lies_in_a_named_directory(paths: list[str], path: str) -> None:
    inside = [given for given in paths if given == "" or given.endswith("/")]
    expected = path in paths or any(parts(path)[: len(parts(given))] == parts(given) for given in inside)
    assert Scopes.of(paths).covers(path) == expected


@given(SCOPES)
def test_an_entry_tells_its_scopes(one: Scopes) -> None:
    value = f'{{"host":"h"{one.fields()},"task":""}}'.encode()
    assert scopes_in(value) == one and json.loads(value)["paths"] == list(one.paths)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_path_has_one_form(path: str) -> None:
    try:
        once = normalised(path)
    except InvalidName:
        return
    assert normalised(once) == once == unicodedata.normalize("NFC", once)
    assert not once.startswith("/") and "//" not in once and not {".", ".."} & set(once.split("/"))


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("./a//b", "a/b"),
        ("a/./b/", "a/b/"),
        ("a/.", "a/"),
        (".", ""),
        ("./", ""),
        ("", ""),
        ("a\\b", "a\\b"),
        ("e\u0301", "\u00e9"),
        ("..a/b..", "..a/b.."),
    ],
)
def test_the_form_of_a_path(path: str, form: str) -> None:
    assert normalised(path) == form


@pytest.mark.parametrize(
    ("glob", "directory"),
    [
        ("src/**/*.py", "src/"),
        ("src/parser/*.py", "src/parser/"),
        ("src/par*", "src/"),
        ("*.py", ""),
        ("a/b?/c", "a/"),
        ("app/[id]/page.tsx", "app/"),
        ("a/{b,c}", "a/{b,c}"),
    ],
)
def test_a_glob_is_the_directory_of_its_literal_beginning(glob: str, directory: str) -> None:
    assert Scopes.of([glob]).paths == (directory,)
    assert Scopes.of([directory]).covers(glob)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../a", r"'\.\.'"),
        ("a/../b", r"'\.\.'"),
        ("a/*/..", r"'\.\.'"),
        ("/etc", "relative"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("\ud800", "surrogate"),
        ("x" * 4097, "4096 bytes"),
        ("a/" * 65, "64 parts"),
        (b"a", "must be a str"),
    ],
)
def test_a_path_that_cannot_be_one_is_refused(path: str, why: str) -> None:
    with pytest.raises(InvalidName, match=why):
        Scopes.of([path])
    if isinstance(path, str):
        assert scopes.scopes_of((path,), False) is WHOLE_TREE


def test_too_few_too_many_and_one_text_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one path"):
        Scopes.of([])
    with pytest.raises(ValueError, match="at most 200"):
        Scopes.of([str(n) for n in range(201)])
    with pytest.raises(ValueError, match="65536 bytes"):
        Scopes.of([f"{n}" + "x" * 400 for n in range(200)])
    with pytest.raises(TypeError, match="did you mean"):
        Scopes.of("src/")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"paths":[]}',
        b'{"paths":"a"}',
        b'{"paths":[1]}',
        b'{"paths":["../a"]}',
        b'{"paths":["a//b"]}',
        b'{"paths":["src/*"],"shared":3}',
        json.dumps({"paths": [str(n) for n in range(201)]}).encode(),
        b"[" * 100_000,
    ],
)
def test_a_foreign_value_is_the_whole_tree_exclusively(value: bytes) -> None:
    assert scopes_in(value) == WHOLE_TREE and not scopes_in(value).shared
