"""Header blocks of HTTP/2. ``hpack`` compresses them; a block that only refers to the table is remembered.

Calls repeat the same headers. Once these are in the table, their block is one byte for each field, and it means the
same until another block changes the table. So most blocks are looked up here and not computed.
"""

from __future__ import annotations

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from codomyrmex.concurrency.etcd.transports.http2_frames import ErrorCode, ProtocolError

Fields = tuple[tuple[str, str], ...]

_REFERENCE, _LONG_REFERENCE = 0x80, 0xFF  # the first byte of a reference, and of one that takes several bytes
_TABLE_SIZE = 4_096  # bytes of a table that a peer gets at most


class HeaderEncoder:
    """Makes the blocks of requests."""

    def __init__(self) -> None:
        self._hpack = Encoder()
        self._known: dict[Fields, bytes] = {}

    def encode(self, fields: Fields) -> bytes:
        """The block of ``fields``. It must be sent before the next one."""
        block = self._known.get(fields)
        if block is None:
            block = self._hpack.encode(fields)
            if len(block) == len(fields):
                self._known[fields] = block
            else:
                self._known.clear()
        return block

    def resize(self, size: int) -> None:
        """Obey the peer's limit for the table, in bytes."""
        self._hpack.header_table_size = min(size, _TABLE_SIZE)
        self._known.clear()


class HeaderDecoder:
    """Reads the blocks of answers."""

    def __init__(self, max_size: int) -> None:
        self._hpack = Decoder(max_size)
        self._known: dict[bytes, Fields] = {}

    def decode(self, block: bytes) -> Fields:
        """The fields of ``block``. Raises ``ProtocolError``."""
        fields = self._known.get(block)
        if fields is None:
            try:
                fields = tuple((str(name), str(value)) for name, value in self._hpack.decode(block))
            except HPACKError as error:
                raise ProtocolError(ErrorCode.COMPRESSION_ERROR, f"its headers cannot be read ({error})") from None
            if block and min(block) >= _REFERENCE and max(block) < _LONG_REFERENCE:
                self._known[block] = fields
            else:
                self._known.clear()
        return fields
