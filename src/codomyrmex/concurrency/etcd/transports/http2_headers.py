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
_MOST_KNOWN = 32  # blocks of a peer that are remembered


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
        size = min(size, _TABLE_SIZE)
        if size == self._hpack.header_table_size:
            return  # hpack takes a size that is set twice for one that has been announced
        self._hpack.header_table_size = size
        self._known.clear()
        changes = self._hpack.table_size_changes  # the next block announces them
        if len(changes) > 2:
            changes[:-1] = [min(changes)]  # the smallest and the last are enough (RFC 7541, section 4.2)


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
            except (HPACKError, ValueError) as error:
                raise ProtocolError(ErrorCode.COMPRESSION_ERROR, f"its headers cannot be read ({error})") from None
            if not block or min(block) < _REFERENCE or max(block) >= _LONG_REFERENCE:
                self._known.clear()
            elif len(self._known) < _MOST_KNOWN:
                self._known[block] = fields
        return fields
