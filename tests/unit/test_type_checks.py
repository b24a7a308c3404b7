"""The files that ``make lint`` lets the type checkers read, and its message when a checker is missing."""

from __future__ import annotations

import ast

import pytest

from tests.typing.__main__ import as_functions, check


def test_every_snippet_of_the_documents_is_a_function_for_the_checkers() -> None:
    functions = [node for node in ast.parse(as_functions()).body if isinstance(node, ast.AsyncFunctionDef)]
    assert len(functions) > 20
    assert "EtcdSettings(endpoints=etcd.endpoint, session_ttl=5)" in as_functions()


def test_a_checker_that_cannot_run_is_told_of_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("no_such_checker", [], []) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no_such_checker cannot run here, and has checked nothing")
