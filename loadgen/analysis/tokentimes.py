"""TokenTimes: when each token came, of all exchanges of a journal, cut out of its lines.

They are most of a journal, and decoding them with the rest would be most of the work of reading it. tokentimes.c cuts
them out where there is a C compiler, else Python does.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.clibrary import library
from loadgen.record.journal import Lines

Ints = NDArray[np.int64]
Counts = NDArray[np.uint8] | NDArray[np.int32]

SOURCE = Path(__file__).with_name("tokentimes.c")
_EVENTS, _EVENTS_END = b',"token_times":[', b"],"
_SHORTEST_EVENT, _USUAL_EVENT = len("[1,1],"), 16
"""Bytes; the usual ones have hardly fewer."""
_ZERO = np.uint8(ord("0"))
_FRAME = np.frombuffer(b"[,],", dtype=np.uint8)[:, None]
"""What every `[t,n],` has besides digits."""
_MOST_DIGITS = 18
"""Digits of a time that 64 bits hold, whatever they are."""
_WIDEST_COUNT = len(",999999999],")
"""That 32 bits hold."""


class Events(NamedTuple):
    """Events of some exchanges: how many each has, then time (ns) and tokens of all."""

    of_exchange: Ints
    t_ns: Ints
    tokens: Counts


class TokenTimes:
    """Events of a journal's exchanges, one behind the other in memory that grows as they come."""

    def __init__(self, journal_bytes: int = 0) -> None:
        """With room for what a journal of so many bytes has, as a rule: memory that is not used yet costs nothing."""
        room = journal_bytes // _USUAL_EVENT
        self._t_ns, self._tokens = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.uint8)
        self._number = 0

    @property
    def t_ns(self) -> Ints:
        return self._t_ns[: self._number]

    @property
    def tokens(self) -> Counts:
        """Of a byte each where none has two digits, as nearly always."""
        return self._tokens[: self._number]

    def add(self, events: Events) -> None:
        """Those that follow."""
        begin, end = self._number, self._number + len(events.t_ns)
        self._make_room(len(events.t_ns), np.promote_types(self._tokens.dtype, events.tokens.dtype))
        self._t_ns[begin:end], self._tokens[begin:end], self._number = events.t_ns, events.tokens, end

    def take_back(self, events: int) -> None:
        """The last so many."""
        self._number -= events

    def cut(self, cutter: Cutter, raw: bytes) -> tuple[bytes, Ints] | None:
        """Adds those of some lines: the lines without them, and how many each had that had some. None, and adds none,
        where one is damaged, or not surely as this version writes it."""
        if self._tokens.dtype != np.uint8:
            return None
        self._make_room(len(raw) // _SHORTEST_EVENT + 1, self._tokens.dtype)
        found = cutter(raw, self._t_ns[self._number :], self._tokens[self._number :])
        if found is None:
            return None
        rests, of_exchange = found
        self._number += int(of_exchange.sum())
        return rests, of_exchange

    def _make_room(self, events: int, kind: np.dtype[Any]) -> None:
        wanted, room = self._number + events, len(self._t_ns)
        if wanted <= room and kind == self._tokens.dtype:
            return
        t_ns, tokens, room = self.t_ns, self.tokens, room if wanted <= room else 2 * wanted
        self._t_ns, self._tokens = np.empty(room, dtype=np.int64), np.empty(room, dtype=kind)
        self._t_ns[: self._number], self._tokens[: self._number] = t_ns, tokens


class CutLines(NamedTuple):
    """Some lines of a journal."""

    rests: bytes
    """Without their token times, an end of line after each."""
    of_exchange: Ints
    """How many events each line had that had some."""
    whole: Callable[[], bytes]
    """As they are, an end of line after each."""


def cut_lines(journal: Lines, times: TokenTimes) -> Iterator[CutLines]:
    """The good lines of a journal, some at a time; their events are added to `times`. Where a line has them elsewhere
    than this version writes them, some may be missing, and `whole` has all."""
    functions = _functions()
    cutter = Cutter(functions) if isinstance(functions, ctypes.CDLL) else None
    for raw in journal.raw_blocks():
        found = None if cutter is None else times.cut(cutter, raw)
        if found is None:
            whole = _good(journal, raw)
            rests, texts = _cut(whole)
            events = events_of(texts)
            times.add(events)
            yield CutLines(rests, events.of_exchange, partial(_same, whole))
        else:
            journal.sealed = True
            yield CutLines(*found, partial(_good, journal, raw))


def _good(journal: Lines, raw: bytes) -> bytes:
    return b"\n".join([*journal.good(io.BytesIO(raw).readlines()), b""])


def _same(whole: bytes) -> bytes:
    return whole


class _Cut(ctypes.Structure):
    """`struct cut` of tokentimes.c."""

    _fields_ = (
        *((name, c_int64) for name in ("rest_size", "lines", "events")),
        *((name, c_void_p) for name in ("rest", "of_line", "t_ns", "tokens")),
    )
    rest_size: int
    lines: int


class Cutter:
    """Calls tokentimes.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._cut = functions.tokentimes_cut
        self._cut.restype, self._cut.argtypes = c_int, (c_char_p, c_int64, POINTER(_Cut))
        self._rest, self._of_line = np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)

    def __call__(self, raw: bytes, t_ns: Ints, tokens: NDArray[Any]) -> tuple[bytes, Ints] | None:
        """As `TokenTimes.cut`; times and tokens are written into arrays that have room for as many as there can be."""
        if len(raw) > len(self._rest):
            self._rest = np.empty(len(raw), dtype=np.uint8)
            self._of_line = np.empty(len(raw) // _SHORTEST_EVENT + 1, dtype=np.int64)
        arrays = self._rest, self._of_line, t_ns, tokens
        found = _Cut(0, 0, 0, *(array.ctypes.data for array in arrays))
        if self._cut(raw, len(raw), found):
            return None
        return self._rest[: found.rest_size].tobytes(), self._of_line[: found.lines].copy()


@cache
def _functions() -> ctypes.CDLL | str:
    return library(SOURCE)


def _cut(block: bytes) -> tuple[bytes, list[bytes]]:
    """Records without their token times, and these, `[t,n],[t,n]`, of each exchange. Nothing is cut where a record has
    them elsewhere than this version.

    They are found by what cannot stand inside a text, a quotation mark after a comma, and end before the next one.
    """
    rests: list[bytes] = []
    texts: list[bytes] = []
    place = line = 0
    while (begin := block.find(_EVENTS, line)) >= 0:
        begin += len(_EVENTS)
        end = block.find(b'"', begin) - len(_EVENTS_END)
        if block[end : end + 2] != _EVENTS_END:
            return block, []
        rests.append(block[place:begin])
        texts.append(block[begin:end])
        place, line = end, block.index(b"\n", end)
    rests.append(block[place:])
    return b"".join(rests), texts


def events_of(texts: Sequence[bytes]) -> Events:
    """From the texts `[t,n],[t,n]`.

    Where all t have as many digits, and all n, as nearly always, the events are rows of a table of bytes, and numbers
    are made a column of digits at a time; else event by event.
    """
    joined = b",".join([*filter(None, texts), b""])
    comma, width = joined.find(b","), joined.find(b"]") + 2
    if 0 < comma <= _MOST_DIGITS and width - comma <= _WIDEST_COUNT and len(joined) % width == 0:
        characters = np.frombuffer(joined, dtype=np.uint8).reshape(-1, width).T.copy()
        digits = characters - _ZERO
        times, tokens = digits[1:comma], digits[comma + 1 : -2]
        if (characters[[0, comma, -2, -1]] == _FRAME).all() and times.max() < 10 and tokens.max() < 10:
            of_exchange = [(len(text) + 1) // width for text in texts]
            counts = tokens[0].copy() if len(tokens) == 1 else _numbers(tokens).astype(np.int32)
            return Events(np.array(of_exchange, dtype=np.int64), _numbers(times), counts)
    events = [msgspec.json.decode(b"[%b]" % text, type=list[tuple[int, int]]) for text in texts]
    return Events(
        np.array([len(ours) for ours in events], dtype=np.int64),
        np.array([t_ns for ours in events for t_ns, _ in ours], dtype=np.int64),
        np.array([tokens for ours in events for _, tokens in ours], dtype=np.int32),
    )


def _numbers(digits: NDArray[np.unsignedinteger[Any]]) -> Ints:
    """Numbers from a row for each decimal place: neighbours are joined, to numbers of two places, of four, and so on,
    in the smallest type that holds them."""
    numbers, base = digits, 10
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64, np.uint64):
        if len(numbers) % 2:
            numbers = np.concatenate([np.zeros_like(numbers[:1]), numbers])
        numbers = np.multiply(numbers[::2], base, dtype=kind) + numbers[1::2]
        if len(numbers) == 1:
            break
        base *= base
    return np.asarray(numbers[0], dtype=np.int64)
