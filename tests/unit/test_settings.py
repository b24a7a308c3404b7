"""Settings: what is accepted, and what every refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from codomyrmex.concurrency import EtcdSettings, settings
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


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "SESSION_TTL",
            "soon",
            "ETCD_SESSION_TTL must be a whole number of seconds from 2 to 86400, not 'soon'",
        ),
        (
            "DIAL_TIMEOUT",
            "-1",
            "ETCD_DIAL_TIMEOUT must be a number of seconds, more than 0 and at most 300, not",
        ),
        ("ENDPOINTS", "ftp://x", "CODOMYRMEX_ETCD_ENDPOINTS: endpoint 'ftp://x' is not of the form"),
        ("TRANSPORT", "pigeon", "CODOMYRMEX_ETCD_TRANSPORT must be 'native', 'grpc' or 'gateway', not 'pigeon'"),
        ("ALLOW_PLAINTEXT_CREDENTIALS", "maybe", "must be true or false, not 'maybe'"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name_in_our_words(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"CODOMYRMEX_ETCD_{variable}", value)
    for make in (EtcdSettings, lambda: make_settings(None, {})):
        with pytest.raises(ValueError, match=r"^invalid etcd settings: ") as caught:
            make()
        assert says in str(caught.value)
        assert "pydantic" not in str(caught.value) and "Input should" not in str(caught.value)


def test_a_wrong_argument_is_told_as_one_and_a_misspelt_one_with_its_likeness() -> None:
    with pytest.raises(ValueError, match=r"^invalid etcd settings: session_ttl must be a whole number"):
        make_settings(None, {"session_ttl": "x"})
    with pytest.raises(ValueError, match=r"there is no setting 'sesion_ttl'; did you mean 'session_ttl'\?"):
        make_settings(None, {"sesion_ttl": 5})


def test_a_wrong_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match="password must be a text") as caught:
        make_settings(None, {"username": "u", "password": ["s3cret"]})
    assert "s3cret" not in str(caught.value)


def test_each_setting_says_what_it_must_be() -> None:
    assert set(settings._WANTED) == set(EtcdSettings.model_fields)


def test_a_misspelt_variable_is_warned_of_once_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_told", set())
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINT", "http://a")
    monkeypatch.setenv("CODOMYRMEX_ETCD_QQQQ", "1")
    monkeypatch.setenv("CODOMYRMEX_ETCD_SESSION_TTL", "30")
    with pytest.warns(UserWarning) as told:
        EtcdSettings()
        EtcdSettings()
    texts = sorted(str(warning.message) for warning in told)
    assert len(texts) == 2 and {warning.filename for warning in told} == {__file__}
    assert texts[0].endswith(
        "CODOMYRMEX_ETCD_ENDPOINT is no setting and is ignored; did you mean CODOMYRMEX_ETCD_ENDPOINTS?"
    )
    assert texts[1].endswith("CODOMYRMEX_ETCD_QQQQ is no setting and is ignored; the settings are in README.md")


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
    made = EtcdSettings(username="u", password=SecretStr("s3cret"))
    assert "s3cret" not in repr(made) + str(made) + made.model_dump_json()
