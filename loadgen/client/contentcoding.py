"""Content codings: bodies that come compressed though nobody asked for it (RFC 9110, section 8.4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from loadgen.bounds import shown_bytes

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_RAW = -zlib.MAX_WBITS
GZIP_MAGIC = b"\x1f\x8b\x08"


def undone(coding: str, reads: Sequence[bytes], most_bytes: int) -> list[bytes]:
    """Of each read the bytes that it completed, so that an event keeps the arrival of its last byte.

    `gzip` and `deflate` are read, the latter with zlib's frame or without (RFC 9110 allows the first, servers send
    both). Raises ValueError, with a sentence, for other codings, for data that is not of that coding, and for more
    than `most_bytes`.
    """
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"the answer is encoded as {coding[:40]!r}, which loadgen did not ask for and does not read")
    bits = window_bits(coding, b"".join(reads))
    decoder = zlib.decompressobj(bits)
    left, decoded = most_bytes, []
    try:
        for read in reads:
            came, rest = b"", read
            while rest and left >= 0:
                if decoder.eof:  # a gzip body may have several members
                    decoder = zlib.decompressobj(bits)
                came += decoder.decompress(rest, left + 1 - len(came))
                rest = decoder.unused_data
            left -= len(came)
            if left < 0:
                raise ValueError(f"the answer is longer than {shown_bytes(most_bytes)}")
            decoded.append(came)
    except zlib.error as error:
        raise ValueError(f"the answer says that it is encoded as {coding}, and cannot be decoded: {error}") from None
    return decoded


def window_bits(coding: str, body: bytes) -> int:
    """How zlib is to be told what stands around a body: nothing, or a frame that it knows itself."""
    return _RAW if coding == "deflate" and not _is_zlib(body) else _GZIP_OR_ZLIB


def _is_zlib(body: bytes) -> bool:
    """RFC 1950, section 2.2: the method is 8, and the first two bytes are a multiple of 31."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
