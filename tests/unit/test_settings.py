"""Settings: what is accepted, and what every refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from codomyrmex.concurrency import EtcdSettings
from codomyrmex.concurrency.session import make_settings


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a:2379", ("http://a:2379",)),
        ("http://a", ("http://a:2379",)),
        ("https://a:1, https://b:2", ("https://a:1", "https://b:2")),
        ("http://[::1]:2379", ("http://[::1]:2379",)),
        ("http://a:2379/", ("http://a:2379",)),
        ("embedded", ("embedded",)),
    ],
)
def test_endpoints_as_people_write_them(given: str, taken: tuple[str, ...]) -> None:
    assert make_settings(None, {"endpoints": given}).endpoints == taken


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"endpoints": "http://a:b"}, "invalid port"),
        ({"endpoints": "ftp://a"}, "not of the form"),
        ({"endpoints": "http://u:p@a"}, "credentials do not belong"),
        ({"endpoints": "http://a/x"}, "has a path"),
        ({"endpoints": "http://a,https://b"}, "mix"),
        ({"endpoints": ()}, "no endpoint"),
        ({"namespace": "a/b"}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"session_ttl": 1}, "session_ttl"),
        ({"dial_timeout": 0}, "dial_timeout"),
        ({"request_timeout": -1}, "request_timeout"),
        ({"cert_file": Path("c")}, "go together"),
        ({"ca_file": Path("c"), "endpoints": "http://a"}, "https://"),
        ({"username": "u"}, "go together"),
        ({"username": "u", "password": "p", "endpoints": "http://etcd.example"}, "plain http"),
        ({"transport": "carrier-pigeon"}, "transport"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_settings(None, wrong)


def test_a_password_may_go_in_the_clear_to_this_machine_or_if_allowed() -> None:
    make_settings(None, {"username": "u", "password": "p", "endpoints": "http://127.0.0.1:1,http://localhost"})
    make_settings(
        None, {"username": "u", "password": "p", "endpoints": "http://far", "allow_plaintext_credentials": True}
    )


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", "http://a,http://b")
    monkeypatch.setenv("CODOMYRMEX_ETCD_SESSION_TTL", "30")
    assert EtcdSettings().endpoints == ("http://a:2379", "http://b:2379")
    assert make_settings(EtcdSettings(), {"session_ttl": 20}).session_ttl == 20


def test_a_password_is_in_no_text_of_the_settings() -> None:
    settings = EtcdSettings(username="u", password=SecretStr("s3cret"))
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
