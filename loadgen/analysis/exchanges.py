"""Exchanges: a cell's requests and answers in columns, which are gone through several times as fast as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.load.exchange import Exchange

Ints = NDArray[np.int64]


class Line(Exchange, frozen=True, kw_only=True, tag="exchange", gc=False):
    """An Exchange without its token times: `CellData` has those of all in one array."""


class Exchanges(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `Exchange` but its token times, an entry for each request; of numbers -1 where there is none."""

    slot: Ints
    phase: Sequence[str]
    item_id: Sequence[str]
    prompt_sha: Sequence[str]
    t_scheduled_ns: Ints
    t_send_ns: Ints
    t_first_ns: Ints
    t_end_ns: Ints
    stamps: Sequence[str]
    token_source: Sequence[str | None]
    prompt_tokens: Ints
    cached_tokens: Ints
    output_tokens: Ints
    reasoning_tokens: Ints
    finish_reason: Sequence[str | None]
    stop_reason: Sequence[str | int | None]
    http_status: Ints
    status: Sequence[str]
    error: Sequence[str | None]
    retries: Ints
    notes: Sequence[tuple[str, ...]]
    text: Sequence[str]
    reasoning: Sequence[str]

    def __len__(self) -> int:
        return len(self.item_id)


NUMBERS = frozenset((
    "slot", "t_scheduled_ns", "t_send_ns", "t_first_ns", "t_end_ns", "prompt_tokens", "cached_tokens", "output_tokens",
    "reasoning_tokens", "http_status", "retries",
))  # fmt: skip
"""The columns that are arrays."""


_REPEATED = frozenset(("item_id", "prompt_sha", "finish_reason", "text"))
"""Columns whose texts come again and again: each is kept once, and found again in a processor's own memory."""


class Gatherer:
    """Makes `Exchanges` of lines: `add` some while they are at hand, and none of them need be kept."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in Exchanges.__struct_fields__}
        self._once: dict[str, str] = {}

    def add(self, lines: Sequence[Line]) -> None:
        """Those that follow, in their order."""
        columns = zip(*map(msgspec.structs.astuple, lines), strict=True)
        for name, values in zip(Line.__struct_fields__, columns, strict=False):
            if name in NUMBERS:
                self._columns[name].append(whole_numbers(values))
            elif name in _REPEATED:
                self._columns[name] += map(self._once.setdefault, values, values)
            elif name in self._columns:
                self._columns[name] += values

    def exchanges(self) -> Exchanges:
        """All that were added."""
        columns: dict[str, Any] = dict(self._columns)
        for name in NUMBERS:
            columns[name] = np.concatenate([np.empty(0, dtype=np.int64), *columns[name]])
        return Exchanges(**columns)


def whole_numbers(values: Sequence[int | None]) -> Ints:
    """An array, with -1 for None. Raises OverflowError for what 64 bits do not hold."""
    if values[:1] == (None,) and values.count(None) == len(values):
        return np.full(len(values), -1, dtype=np.int64)
    try:
        return np.fromiter(values, np.int64, len(values))
    except TypeError:
        return np.fromiter((-1 if value is None else value for value in values), np.int64, len(values))


def equal_to(text: str, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the texts are it."""
    return np.fromiter(map(text.__eq__, texts), np.bool_, len(texts))
