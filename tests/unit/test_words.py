"""The checker of words refuses what the glossary retired, and accepts the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import words


@pytest.mark.parametrize(
    "line",
    [
        "It hands the baton to the next one.",
        "A fresh nonce for each entry.",
        "The queue is crowded.",
        "Its fellows are lost with it.",
        "The session's patrol.",
        "One of who waits.",
        "The longer lease ends later.",
        "The hold overstays.",
    ],
)
def test_a_retired_word_is_refused(line: str) -> None:
    assert list(words.in_text(line))


@pytest.mark.parametrize(
    "line",
    [
        "The release marker lies under /fleet/v1/baton/lock/x.",
        'self.below("baton")',
        "The door of a book is no word of ours.",
        "An announcement.",
        "It takes longer.",
        "The predecessor released the lock.",
    ],
)
def test_other_words_are_accepted(line: str) -> None:
    assert not list(words.in_text(line))


@pytest.mark.parametrize(
    "source",
    [
        '"""What is stored."""',
        'def f() -> int:\n    """Whether it holds."""',
        'class C:\n    """How often."""',
        'def f() -> int:\n    """The same, but later."""',
        "def patrol() -> int: ...",
        "def f(place: int) -> int: ...",
        "self.nonces = 1",
        "class Doors: ...",
    ],
)
def test_a_question_or_a_retired_name_is_refused(source: str) -> None:
    assert list(words.in_code(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        '"""The stored record."""',
        'def f() -> int:\n    """However long it takes."""',
        'def f() -> int:\n    """The same process."""',
        "def replace(placement: int) -> int: ...",
        "determined = 1",
        "def test_a_waiter_behind_another_keeps_its_place() -> None: ...",
    ],
)
def test_plain_sentences_and_names_are_accepted(source: str) -> None:
    assert not list(words.in_code(ast.parse(source)))


def test_a_claim_is_refused_outside_the_dead_letters(tmp_path: Path) -> None:
    lock, letter = tmp_path / "lock.py", tmp_path / "dlq.py"
    for path in (lock, letter):
        path.write_text("claim = 1\n")
    assert list(words.problems(lock)) and not list(words.problems(letter))


def test_the_exit_code_says_if_there_are_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("A release marker.\n")
    assert words.main([str(page)]) == 0
    page.write_text("A baton.\n")
    assert words.main([str(page)]) == 1 and f"{page}:1:" in capsys.readouterr().out
