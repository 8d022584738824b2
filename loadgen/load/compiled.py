"""The compiled part of the client (reader.c).

Without a compiler the client does the same in Python, at 1.3 to 1.9 times the CPU time a token.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from loadgen.clibrary import library

SOURCE = Path(__file__).with_name("reader.c")


class Event(ctypes.Structure):
    """`struct event` of reader.c."""

    _fields_ = (
        *((name, c_int64) for name in ("fd", "writable", "lost", "error", "t_ns", "realtime_ns")),
        *((name, c_void_p) for name in ("data", "begun", "chunks")),
        *((name, c_int64) for name in ("data_size", "begun_size", "count", "wire_size")),
    )
    fd: int
    writable: int
    lost: int
    error: int
    t_ns: int
    realtime_ns: int
    data: int | None
    begun: int | None
    chunks: int | None
    data_size: int
    begun_size: int
    count: int
    wire_size: int


CHUNK_BYTES = 24
"""`struct kept` of reader.c: three integers of 64 bits."""


class AlikeRun(ctypes.Structure):
    """`struct alike` of reader.c, with its memory."""

    _fields_ = (
        *((name, c_int64) for name in ("events", "size", "odd")),
        *((name, c_void_p) for name in ("_texts", "_text_ends", "_last_pieces")),
    )
    events: int
    size: int
    odd: int

    def __init__(self, most_bytes: int, most_pieces: int) -> None:
        """For a body of so many bytes in so many pieces."""
        self.room = most_bytes, most_pieces
        self.text_ends, self.last_pieces = (c_int64 * most_pieces)(), (c_int64 * most_pieces)()
        self._memory = ctypes.create_string_buffer(most_bytes)
        memory = self._memory, self.text_ends, self.last_pieces
        super().__init__(0, 0, 0, *[ctypes.addressof(part) for part in memory])

    @property
    def texts(self) -> bytes:
        return ctypes.string_at(self._memory, self.size)


@cache
def compiled() -> ctypes.CDLL | None:
    """The functions of reader.c; None where it is not wanted, or cannot be built or loaded (`why_not` says why)."""
    found = _compiled()
    return found if isinstance(found, ctypes.CDLL) else None


def why_not() -> str | None:
    """Why there is no compiled part; None if there is one."""
    found = _compiled()
    return None if isinstance(found, ctypes.CDLL) else found


def reader_name() -> str:
    """Who reads: `compiled`, or `Python` and why not the compiled one."""
    why = why_not()
    return "compiled" if why is None else f"Python: {why}"


@cache
def _compiled() -> ctypes.CDLL | str:
    functions = library(SOURCE)
    return functions if isinstance(functions, str) else _declared(functions)


def _declared(functions: ctypes.CDLL) -> ctypes.CDLL:
    reader, events = c_void_p, POINTER(Event)
    alike = (c_char_p, c_void_p, c_int64, c_int64, c_char_p, c_int64, c_char_p, c_void_p, c_int64, POINTER(AlikeRun))
    for name, result, arguments in (
        ("reader_open", reader, ()),
        ("reader_close", None, (reader,)),
        ("reader_fileno", c_int, (reader,)),
        ("reader_add", c_int, (reader, c_int)),
        ("reader_write_wanted", c_int, (reader, c_int, c_int)),
        ("reader_remove", c_int, (reader, c_int)),
        ("reader_keep", events, (reader, c_int, c_size_t, c_size_t)),
        ("reader_release", None, (reader, c_int)),
        ("reader_free", None, (c_void_p, c_void_p)),
        ("reader_has_kept", c_int, (reader, c_int)),
        ("reader_take", events, (reader, c_int)),
        ("reader_events", events, (reader,)),
        ("reader_poll", c_int, (reader, c_size_t)),
        ("reader_alike", c_int64, alike),
    ):
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions
