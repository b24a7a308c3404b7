"""The metadata and the note of an entry: checked, and encoded as parts of the entry's JSON value."""

from __future__ import annotations

import json
import os
from typing import Any

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.waitqueue.progress import check_note

AGENT = "CODOMYRMEX_AGENT"
MAX_METADATA = 64 * 1024
MAX_OWNER = 512
_DEEP = f"may nest {decode.MAX_DEPTH} levels, of numbers that are finite and texts without lone surrogates"


def with_agent(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """``metadata`` with the ``agent`` that the environment names, unless it has an ``agent`` of its own."""
    agent = os.environ.get(AGENT)
    if not agent or not isinstance(metadata, dict | None):
        return metadata
    return {"agent": decode.storable(agent), **(metadata or {})}


def check_owner(owner: str) -> str:
    """Return ``owner`` if it can name an agent; raise ``TypeError`` or ``ValueError`` that says why not."""
    if not isinstance(owner, str):
        raise TypeError(f"owner must be a str, not {type(owner).__name__}")
    if not owner or not decode.is_plain(owner) or len(owner.encode()) > MAX_OWNER:
        raise ValueError(f"owner must be a text of 1 to {MAX_OWNER} bytes in UTF-8 without lone surrogates")
    return owner


def encode_metadata(metadata: dict[str, Any] | None) -> str:
    """The part of an entry's JSON value that holds ``metadata``; empty for None.

    Raises ``TypeError`` if ``metadata`` is not a dict or cannot be JSON, ``ValueError`` if it is too large or nests too
    deep.
    """
    if metadata is None:
        return ""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    text = encode_value("metadata", metadata)
    return f',"metadata":{text}'


def encode_value(what: str, value: object) -> str:
    """A value of the user as JSON, which an error calls ``what``.

    Raises ``TypeError`` if it cannot be JSON, ``ValueError`` if it is too large or nests too deep.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{what} {_DEEP}") from None
    if len(text) > MAX_METADATA:
        raise ValueError(f"{what} may have {MAX_METADATA} bytes as JSON; this has {len(text)}")
    if not decode.is_plain(json.loads(text)):
        raise ValueError(f"{what} {_DEEP}")
    return text


def encode_note(note: str) -> str:
    """The part of an entry's JSON value that holds ``note``; empty for none. Raises as ``check_note`` does."""
    return f',"note":{json.dumps(check_note(note))}' if note != "" else ""
