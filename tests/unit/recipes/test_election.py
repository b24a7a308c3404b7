"""Elections and groups without etcd: what they refuse, and warn of; how values are compared and put in their place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codomyrmex.concurrency import Campaign, Election, Group, InvalidName, Joining, Owner, sync
from codomyrmex.concurrency.recipes.election import leaders
from codomyrmex.concurrency.recipes.membership import _between, members
from codomyrmex.concurrency.records import SharedRecord
from codomyrmex.concurrency.waitqueue.shared_values import SharedEntry, is_same, replaced

MOST = 64 * 1024
RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def held(name: str, token: int, value: object = None, slot: int = 0, **shared: Any) -> SharedEntry:
    owner = Owner("host", 1, "session", "task", token, None, key=f"{name}/{slot}")
    return SharedEntry(name, owner, SharedRecord(value, **shared))


WRONG = [
    (object(), TypeError, "must be JSON"),
    ({1, 2}, TypeError, "must be JSON"),
    (b"bytes", TypeError, "must be JSON"),
    (float("nan"), TypeError, "must be JSON"),
    ([float("inf")], TypeError, "must be JSON"),
    (RECURSIVE, TypeError, "must be JSON"),
    ("x" * (MOST - 1), ValueError, f"may have {MOST} bytes as JSON; this has {MOST + 1}"),
    (nested(101), ValueError, "may nest 100 levels"),
    ("\ud800", ValueError, "lone surrogates"),
]


@pytest.mark.parametrize("election", [Election("x"), sync.Election("x")])
@pytest.mark.parametrize(("value", "error", "text"), WRONG)
def test_a_value_that_cannot_be_is_refused_at_the_call(election: Any, value: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"value .*{text}"):
        election.campaign(value)


@pytest.mark.parametrize("group", [Group("x"), sync.Group("x")])
@pytest.mark.parametrize(("value", "error", "text"), WRONG)
def test_capabilities_that_cannot_be_are_refused_at_the_call(group: Any, value: Any, error: Any, text: str) -> None:
    text = text.replace(str(MOST + 1), str(MOST + 1 + len('{"k": }')))
    with pytest.raises(error, match=f"capabilities .*{text}"):
        group.join({"k": value})


@pytest.mark.parametrize("group", [Group("x"), sync.Group("x")])
@pytest.mark.parametrize("capabilities", [[], "gpu", 0, False, [("gpu", 1)]])
def test_capabilities_are_a_dict(group: Any, capabilities: Any) -> None:
    kind = type(capabilities).__name__
    with pytest.raises(TypeError, match=f"capabilities must be a dict, not {kind}"):
        group.join(capabilities)


@pytest.mark.parametrize("kind", [Election, Group, sync.Election, sync.Group])
@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb", "\ud800", None, b"x"])
def test_names_are_those_of_locks(kind: Any, name: Any) -> None:
    with pytest.raises(InvalidName):
        kind(name)


@pytest.mark.parametrize("election", [Election("x"), sync.Election("x")])
@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_a_wrong_timeout_is_refused_at_the_call(election: Any, timeout: Any, error: Any) -> None:
    with pytest.raises(error, match="timeout"):
        election.campaign(1, timeout=timeout)


@pytest.mark.parametrize("kind", [Election, Group])
def test_other_arguments_are_refused_too(kind: Any) -> None:
    with pytest.raises(ValueError, match="on_loss must be 'cancel' or 'notify'"):
        kind("x", on_loss="raise")
    with pytest.raises(TypeError, match="session must be a"):
        kind("x", session=sync.Session())
    with pytest.raises(TypeError, match="metadata must be a dict"):
        kind("x", metadata=["a"])


@pytest.mark.parametrize("kind", [sync.Election, sync.Group])
def test_the_blocking_twin_refuses_what_it_cannot_do(kind: Any) -> None:
    with pytest.raises(ValueError, match="on_loss must be 'raise' or 'notify'"):
        kind("x", on_loss="cancel")


@pytest.mark.filterwarnings("ignore:.*was never entered:RuntimeWarning")
async def test_each_twin_has_its_own_kind_of_block() -> None:
    for block in (Election("x").campaign(), Group("x").join()):
        with pytest.raises(TypeError, match="is used with `async with`, not `with`"), block:  # type: ignore[attr-defined]
            pass
    for other in (sync.Election("x").campaign(), sync.Group("x").join()):
        with pytest.raises(TypeError, match="is used with `with`, not `async with`"):
            async with other:  # type: ignore[attr-defined]
                pass


def test_a_campaign_that_is_never_entered_is_warned_of_at_its_line() -> None:
    with pytest.warns(RuntimeWarning, match="the campaign of the election 'x' was never entered") as warned:
        Election("x").campaign()
    assert warned[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="the joining of the group 'x' was never entered") as warned:
        Group("x").join()
    assert warned[0].filename == __file__
    assert Campaign and Joining


def test_the_largest_and_deepest_values_are_taken() -> None:
    with pytest.warns(RuntimeWarning, match="never entered"):
        Election("x").campaign("x" * (MOST - 2))
    with pytest.warns(RuntimeWarning, match="never entered"):
        Election("x").campaign(nested(100))
    with pytest.warns(RuntimeWarning, match="never entered"):
        Group("x").join({"k": nested(99)})
    with pytest.raises(ValueError, match="may nest 100 levels"):
        Group("x").join({"k": nested(100)})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (0, False, False),
        (1, 1.0, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        (None, {}, False),
        ("é", "é", True),
    ],
)
def test_values_are_compared_as_json(one: object, other: object, same: bool) -> None:
    assert is_same(one, other) is same and is_same(other, one) is same


def test_a_field_takes_the_place_of_the_former_one_and_others_stay() -> None:
    entry = json.dumps({"host": "h", "value": {"a": 1}, "since": 1.25}).encode()
    assert json.loads(replaced(entry, "value", '"b"')) == {"host": "h", "value": "b", "since": 1.25}
    assert json.loads(replaced(b'{"host":"h"}', "value", "null")) == {"host": "h", "value": None}


def test_the_first_entry_of_each_election_leads() -> None:
    found = leaders([held("a", 3, "x"), held("b", 4, "y"), held("a", 5, "z", 1)])
    assert {name: (one.name, one.token, one.value) for name, one in found.items()} == {
        "a": ("a", 3, "x"),
        "b": ("b", 4, "y"),
    }
    assert leaders([]) == {}


def test_the_changes_between_two_states_of_groups() -> None:
    def state(*entries: SharedEntry) -> dict[str, Any]:
        return {one.owner.key: one for one in members(entries)}

    one, two = held("g", 3, capabilities={"n": 1}), held("g", 4, slot=1)
    again = held("g", 7, slot=1)  # another member, with the key of the second
    changed = held("g", 3, capabilities={"n": True})
    other = held("h", 3)
    assert _between({}, {}, 5) == [] and _between(state(one, two), state(one, two), 5) == []
    found = _between(state(one, two), state(changed, again, other), 9)
    told = [(event.kind, event.member.group, event.member.token, event.revision) for event in found]
    assert told == [("left", "g", 4, 9), ("changed", "g", 3, 9), ("joined", "g", 7, 9), ("joined", "h", 3, 9)]
    assert [event.kind for event in _between(state(one, other), {}, 6)] == ["left", "left"]
