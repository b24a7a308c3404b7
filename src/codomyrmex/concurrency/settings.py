"""The settings of the connection to etcd; the one module that reads them from the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from codomyrmex.concurrency import callsite

EMBEDDED = "embedded"
_PREFIX = "CODOMYRMEX_ETCD_"
_PATH = "the path of a file"
_SECONDS = "a number of seconds, more than 0 and at most 300"
_WANTED = {
    "endpoints": "addresses such as http://127.0.0.1:2379, with commas between them, or the word embedded",
    "namespace": "1 to 128 letters, digits, '.', '_' and '-', the first a letter or a digit",
    "username": "a text",
    "password": "a text",
    "password_file": _PATH,
    "ca_file": _PATH,
    "cert_file": _PATH,
    "key_file": _PATH,
    "dial_timeout": _SECONDS,
    "request_timeout": _SECONDS,
    "session_ttl": "a whole number of seconds from 2 to 86400",
    "transport": "'native', 'grpc' or 'gateway'",
    "allow_plaintext_credentials": "true or false",
}
_told: set[str] = set()  # the variables that a warning has named


class EtcdOptions(TypedDict, total=False):
    """The types of the arguments of ``EtcdSettings`` and of the overrides of ``Session``."""

    endpoints: str | Sequence[str]
    namespace: str
    username: str | None
    password: str | SecretStr | None
    password_file: str | Path | None
    ca_file: str | Path | None
    cert_file: str | Path | None
    key_file: str | Path | None
    dial_timeout: float
    request_timeout: float
    session_ttl: int
    transport: Literal["native", "grpc", "gateway"]
    allow_plaintext_credentials: bool


class EtcdSettings(BaseModel):
    """Connection settings, from arguments or from ``CODOMYRMEX_ETCD_*`` environment variables.

    Times are seconds. ``endpoints`` is a comma-separated list of ``http://`` or ``https://`` addresses, or the
    word ``embedded`` for a private etcd started for this session alone (development only). ``password_file`` and the
    TLS files are read again when they have been replaced. Raises ``ValueError`` that names each wrong setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    namespace: str = Field("codomyrmex", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    dial_timeout: float = Field(5.0, gt=0, le=300)
    request_timeout: float = Field(5.0, gt=0, le=300)
    session_ttl: int = Field(15, ge=2, le=86_400)
    transport: Literal["native", "grpc", "gateway"] = "native"
    allow_plaintext_credentials: bool = False

    def __init__(self, **options: Unpack[EtcdOptions]) -> None:
        try:
            super().__init__(**{**_from_environment(), **options})
        except ValidationError as error:
            raise ValueError(f"invalid etcd settings: {_in_words(error, dict(options))}") from None

    @field_validator("endpoints", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("endpoints")
    @classmethod
    def _check(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        if endpoints == (EMBEDDED,):
            return endpoints
        if not endpoints:
            raise ValueError("no endpoint given; name at least one, such as http://127.0.0.1:2379")
        return tuple(_endpoint(endpoint) for endpoint in endpoints)

    @model_validator(mode="after")
    def _consistent(self) -> EtcdSettings:
        schemes = {urlsplit(endpoint).scheme for endpoint in self.endpoints}
        if len(schemes) > 1:
            raise ValueError("endpoints mix http:// and https://; use one scheme for all of them")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file go together; give both or neither")
        if self.ca_file and "http" in schemes:
            raise ValueError("ca_file is set but the endpoints are http://; use https:// endpoints")
        if self.password and self.password_file:
            raise ValueError("give password or password_file, not both")
        if bool(self.username) != bool(self.password or self.password_file):
            raise ValueError("username and password (or password_file) go together; give both or neither")
        if self.username and not self.allow_plaintext_credentials:
            for endpoint in self.endpoints:
                if urlsplit(endpoint).scheme == "http" and not _is_loopback(endpoint):
                    raise ValueError(
                        f"refusing to send a password over plain http to {endpoint}; "
                        "use https://, or set allow_plaintext_credentials=True if the network is trusted"
                    )
        return self


def _in_words(error: ValidationError, given: dict[str, Any]) -> str:
    """The text for wrong settings: each with its reason, and with its environment variable if it was no argument."""
    told = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            near = _nearest(field, 0.6)
            told.append(f"there is no setting {field!r}" + (f"; did you mean {near!r}?" if near else ""))
            continue
        subject = field if not field or field in given else _PREFIX + field.upper()
        if problem["type"] == "value_error":  # in our own words
            text = str(problem["ctx"]["error"])
            told.append(f"{subject}: {text}" if subject else text)
        else:
            shown = "" if field == "password" else f", not {problem['input']!r}"
            told.append(f"{subject} must be {_WANTED[field]}{shown}")
    return "; ".join(told)


def _from_environment() -> dict[str, str]:
    """The settings of the environment. Warns, once per variable, of those that look like settings but are none."""
    found = {}
    for variable, value in os.environ.items():
        if not variable.upper().startswith(_PREFIX):
            continue
        field = variable.upper().removeprefix(_PREFIX).lower()
        if field in _WANTED:
            found[field] = value
        elif variable not in _told:
            _warn_of(variable, field)
    return found


def _warn_of(variable: str, field: str) -> None:
    """Warn of a variable that looks like a setting but is none."""
    _told.add(variable)
    near = _nearest(field, 0.5)
    hint = f"did you mean {_PREFIX}{near.upper()}?" if near else "the settings are in README.md"
    text = f"the environment variable {variable} is no setting and is ignored; {hint}"
    callsite.warn(callsite.users_line(), text, UserWarning)


def _nearest(field: str, likeness: float) -> str:
    """The setting whose name is most like ``field``; empty if none is like it."""
    from difflib import get_close_matches  # here, for most processes make no mistake

    return next(iter(get_close_matches(field, _WANTED, 1, likeness)), "")


def _endpoint(text: str) -> str:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"endpoint {text!r} has an invalid port: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint {text!r} is not of the form http://host:port or https://host:port")
    if parts.username or parts.password:
        raise ValueError("credentials do not belong in an endpoint; use username= and password=")
    if parts.path.rstrip("/") or parts.query or parts.fragment:
        raise ValueError(f"endpoint {text!r} has a path; give only scheme, host and port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or 2379}"


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    from ipaddress import ip_address  # here, for most processes send no password in the clear

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
