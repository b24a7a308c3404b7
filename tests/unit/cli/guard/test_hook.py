"""The text of the hook, and the tree that is read from it."""

from __future__ import annotations

from codomyrmex.concurrency.cli.guard.hook import hook, tree_of


def test_the_tree_of_a_hook_of_the_guard_is_known_and_no_other_hook_is_one() -> None:
    assert tree_of(hook("/a b/codomyrmex", ["--namespace", "n", "--tree", "it's"])) == "it's"
    assert tree_of(hook("codomyrmex", [])) == "default"
    for other in ("", "#!/bin/sh\nexit 0\n", hook("codomyrmex", []) + "make\n", "program=x\nmake && exit 0\n"):
        assert tree_of(other) is None
