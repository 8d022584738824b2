"""Alike: events that differ from the one before in their text and their running counts alone, as nearly all of an
answer do. They are told by their bytes, and only the first of them is decoded: a third of the time.

A stream read so is read as one that is decoded event by event: what is not surely alike is left to that.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, groupby, pairwise, repeat
from operator import indexOf, ne
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadgen.load.compiled import AlikeRun, compiled
from loadgen.load.pieces import Ints, Pieces
from loadgen.load.sse import NULL, UNREADABLE, Delta, Event, Usage, decode_event, decode_events, split_events

_FIELD, _END = b"data: ", b"\n\n"
_TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)":\s?"((?:[^"\\]|\\.)+)"')
_COUNT = re.compile(rb'"(?:total|completion)_tokens":\s?([0-9]+)(?![0-9.eE])')
_ODD = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')
_CONTROL = re.compile(rb"[\x00-\x1f]")
_PROBE = b"~", 1_000_003
_decode_text = msgspec.json.Decoder(str).decode
FEWEST = 4
"""Events that are worth the search."""
TRIED = 4
"""Pieces that are tried as the event before a run, from where the search begins."""
MOST_RUNS = 16
"""Runs of an answer; what follows is decoded event by event."""
MOST_TAIL, MOST_COUNTS, MOST_COUNT = 4096, 4, 1 << 60
"""Bytes of an event's tail, its counts, and each of these: what reader.c has room for."""


class Alike(NamedTuple):
    """Some events in a row, each with one choice."""

    text: str
    """The texts of all."""
    is_reasoning: bool
    brought: list[bool]
    """Whether each has a text."""
    usage: Usage | None
    """The last one's; its running count rises by one from event to event."""


class _Shape(NamedTuple):
    """What an event has around its text."""

    head: bytes
    tail: tuple[bytes, ...]
    """Between two parts stands a number."""
    numbers: tuple[int, ...]
    """Counts that rise by one."""
    is_reasoning: bool
    usage: Usage | None

    @property
    def is_small(self) -> bool:
        """For reader.c."""
        of_counts = len(self.numbers) <= MOST_COUNTS and max(self.numbers, default=0) <= MOST_COUNT
        return of_counts and sum(map(len, self.tail)) <= MOST_TAIL

    def tails(self, events: int) -> list[bytes]:
        """The tails of so many events that follow, or more."""
        form = b"%d".join([part.replace(b"%", b"%%") for part in self.tail])
        tails: list[bytes] = []
        while len(tails) < events:
            tails += _tails(form, tuple(number + len(tails) for number in self.numbers))
        return tails

    def alike(self, run: _Run) -> Alike:
        """The entry of some events of this shape that follow it."""
        usage = self.usage
        if usage is not None and usage.completion_tokens is not None:
            usage = msgspec.structs.replace(usage, completion_tokens=usage.completion_tokens + len(run.ends))
        return Alike(run.text, self.is_reasoning, run.brought, usage)


_AT_ONCE = 256


@lru_cache(maxsize=256)
def _tails(tail: bytes, numbers: tuple[int, ...]) -> tuple[bytes, ...]:
    """Requests with as long a prompt have the same."""
    if not numbers:
        return (tail % (),) * _AT_ONCE
    rising = (range(number + 1, number + 1 + _AT_ONCE) for number in numbers)
    return tuple(map(tail.__mod__, zip(*rising, strict=True)))


def alike_events(t_ns: Ints, pieces: Pieces, *, ended: bool = False) -> tuple[list[int], list[bytes | Alike]]:
    """As `sse.split_events`, of a stream in pieces with the arrival of each; alike events in a row are one entry.

    They are found where a piece is an event, or two are.
    """
    times: list[int] = []
    parts: list[bytes | Alike] = []
    done = place = tried = runs = 0
    number = len(pieces.places)
    while place + FEWEST < number and tried < TRIED and runs < MOST_RUNS:
        [piece] = pieces.some(place, place + 1)
        place += 1
        shape = _shape(piece) if piece.startswith(_FIELD) and piece.endswith(_END) else None
        run = _run(pieces, place, shape) if shape is not None else None
        if shape is None or run is None:
            tried += 1
            continue
        if done == place - 1:  # as a rule
            before_ns, before = [t_ns.item(done)], [piece[len(_FIELD) : -len(_END)]]
        else:
            before_ns, before = split_events(t_ns[done:place].tolist(), pieces.some(done, place))
        times += before_ns
        end = int(run.ends[-1]) + 1
        times += (t_ns[place:end] if isinstance(run.ends, range) else t_ns[run.ends]).tolist()
        parts += before
        parts.append(shape.alike(run))
        done = place = end
        tried, runs = 0, runs + 1
    if done < number:
        rest_ns, rest = split_events(t_ns[done:].tolist(), pieces.some(done, number), ended=ended)
        times += rest_ns
        parts += rest
    return times, parts


def decode_parts(parts: Sequence[bytes | Alike]) -> tuple[list[Event | Alike], Exception | None]:
    """As `sse.decode_events`."""
    events: list[Event | Alike] = []
    for is_alike, some in groupby(parts, lambda part: isinstance(part, Alike)):
        if is_alike:
            events += some  # type: ignore[arg-type]
            continue
        decoded, unreadable = decode_events(list(some))  # type: ignore[arg-type]
        events += decoded
        if unreadable is not None:
            return events, unreadable
    return events, None


class _Run(NamedTuple):
    """Events alike in a row."""

    text: str
    brought: list[bool]
    ends: Ints | range
    """The piece that ends each."""


def _run(pieces: Pieces, begin: int, shape: _Shape) -> _Run | None:
    """Those from a piece on, which begins one; None if they are too few."""
    library = compiled()
    texts: str | list[bytes]
    if library is not None and shape.is_small:
        texts, ends = _compiled_texts(library, pieces, begin, shape)
    else:
        texts, ends = _texts(pieces, begin, shape)
    if isinstance(texts, str):
        text, brought = texts, [True] * len(ends)
    else:
        text = _joined(texts)
        brought, ends = list(map(bool, texts)), ends[: len(texts)]
    return _Run(text, brought, ends) if len(ends) >= FEWEST else None


class _Memory(threading.local):
    run = AlikeRun(0, 0)


_memory = _Memory()


def _compiled_texts(
    library: ctypes.CDLL, pieces: Pieces, begin: int, shape: _Shape
) -> tuple[str | list[bytes], Ints | range]:
    """As `_texts`; where no text is empty, and all are plain ASCII, what they say."""
    body, number, found, before = pieces.body, len(pieces.places), _memory.run, _FIELD + shape.head
    if found.room[0] < len(body) or found.room[1] < number:
        found = _memory.run = AlikeRun(2 * len(body), 2 * number)
    tail, sizes_and_numbers = _in_c(shape.tail, shape.numbers)
    places = pieces.places.__array_interface__["data"][0]
    events = library.reader_alike(
        body, places, begin, number, before, len(before), tail, sizes_and_numbers, len(shape.numbers), found
    )
    if not events:
        return [], range(0)
    ends: Ints | range = range(begin, begin + events)
    if found.last_pieces[events - 1] != ends[-1]:
        ends = np.array(found.last_pieces[:events])
    if not found.odd:
        return found.texts.decode("ascii"), ends
    texts = found.texts
    return [texts[a:b] for a, b in pairwise([0, *found.text_ends[:events]])], ends


@lru_cache(maxsize=256)
def _in_c(tail: tuple[bytes, ...], numbers: tuple[int, ...]) -> tuple[bytes, Any]:
    """The tail's bytes; and the sizes of its parts, with the numbers behind them."""
    return b"".join(tail), (ctypes.c_int64 * (len(tail) + len(numbers)))(*map(len, tail), *numbers)


def _texts(pieces: Pieces, begin: int, shape: _Shape) -> tuple[list[bytes], Ints]:
    """The texts of events alike, and the piece that ends each."""
    before, number, place, at_once = _FIELD + shape.head, len(pieces.places), begin, _AT_ONCE
    tails = shape.tails(number - begin + 1)
    texts: list[bytes] = []
    ends: list[int] = []
    while place < number:
        some, following = pieces.some(place, place + at_once), tails[len(texts) : len(texts) + at_once + 1]
        begun = list(map(bytes.removeprefix, some, repeat(before)))
        said = list(map(bytes.removesuffix, begun, following))
        fit = min(_true(map(ne, begun, some)), _true(map(ne, said, begun)))
        ends += range(place, place + fit)
        texts += said[:fit]
        place += fit
        if fit == len(some):
            at_once = min(2 * at_once, _AT_ONCE)
            continue
        at_once = 2 * fit + 1  # where many events are two pieces, few are tried at once
        both, tail = b"".join(pieces.some(place, place + 2)), following[fit]
        text = both.removeprefix(before).removesuffix(tail)
        if len(text) != len(both) - len(before) - len(tail):
            break
        ends.append(place + 1)
        texts.append(text)
        place += 2
    return texts, np.array(ends, dtype=np.int64)


def _true(truths: Iterable[bool]) -> int:
    """How many are true before the first that is not."""
    return indexOf(chain(truths, (False,)), False)


def _joined(texts: list[bytes]) -> str:
    """What the texts say; of one that is none, and of those behind it, nothing: they are removed."""
    joined = b"".join(texts)
    if _ODD.search(joined) is None:
        return joined.decode("ascii")
    read = []
    for text in texts:
        if _ODD.search(text) is None:
            read.append(text.decode("ascii"))
            continue
        try:
            said = None if _CONTROL.search(text) else _decode_text(b'"%b"' % text)
        except UNREADABLE:
            said = None
        if said is None:
            break
        read.append(said)
    del texts[len(read) :]
    return "".join(read)


def _shape(event: bytes) -> _Shape | None:
    """None where the event has no text, several choices, or more than text and counts to say.

    It is one if another text and other counts in these places are the event's text and its completion_tokens.
    """
    data = event[len(_FIELD) : -len(_END)]
    if b"\n" in data or b"\r" in data:
        return None
    for found in _TEXT.finditer(data):
        head, rest = data[: found.start(1)], data[found.end(1) :]
        tail, numbers, place = [], [], 0
        for number in _COUNT.finditer(rest):
            tail.append(rest[place : number.start(1)])
            numbers.append(int(number[1]))
            place = number.end(1)
        tail.append(rest[place:])
        try:
            probe = decode_event(head + _PROBE[0] + (b"%d" % _PROBE[1]).join(tail))
            usage = decode_event(data).usage
        except UNREADABLE:
            return None
        of_text = _place_of_probe(probe)
        if of_text is None:
            continue
        if usage is not None and (probe.usage is None or probe.usage.completion_tokens != _PROBE[1]):
            return None
        tail[-1] += _END
        return _Shape(head, tuple(tail), tuple(numbers), of_text == "reasoning", usage)
    return None


def _place_of_probe(event: Event) -> str | None:
    """Where the probe is all that the event says: `text` or `reasoning`."""
    if event.error is not NULL or event.choices is None or len(event.choices) != 1:
        return None
    [choice] = event.choices
    if choice.finish_reason is not None or choice.stop_reason is not None or choice.error is not NULL:
        return None
    probe, delta = _PROBE[0].decode(), choice.delta
    if delta is None:
        return "text" if choice.text == probe else None
    if delta == Delta(content=probe):
        return "text"
    reasoning = delta.reasoning_content or delta.reasoning
    silent = msgspec.structs.replace(delta, content=None, reasoning=None, reasoning_content=None) == Delta()
    return "reasoning" if reasoning == probe and not delta.content and silent else None
