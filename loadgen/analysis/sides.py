"""Sides: the graded answers of a run, gathered cell by cell for the comparison of precisions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import compress
from typing import Any

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData
from loadgen.analysis.trust.answers import Answer, Answers
from loadgen.analysis.trust.pairing import Asked, Lengths
from loadgen.analysis.trust.study import Side
from loadgen.client.exchange import Exchange
from loadgen.workload.grading import GUESSES, Verdict

Key = tuple[str, int]
"""Target and concurrency."""
_SETTINGS = ("temperature", "seed", "api", "stops", "thinking")


class CellAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The graded answers of one cell; none where they are not valid."""

    target: str
    concurrency: int
    answers: dict[str, list[Answer]]
    """By item; equal ones are one, given several times."""
    prompt_sha: dict[str, str]
    """By item."""
    lengths: dict[str, tuple[int, int]] = {}
    """By item, graded or not: answers whose length is known, and their output tokens; none where the load is not valid.
    Answers that were completed after the window count too: items are taken up in order, so that no length is favoured.
    """

    def __reduce__(self) -> tuple[Callable[[bytes], CellAnswers], tuple[bytes]]:
        """From process to process in a tenth of the time that pickle takes for as many small objects."""
        return _unpacked, (msgspec.msgpack.encode(self),)


def _unpacked(packed: bytes) -> CellAnswers:
    return msgspec.msgpack.decode(packed, type=CellAnswers)


def cell_answers(
    data: CellData, verdicts: Sequence[Verdict | None], *, load_valid: bool = True
) -> CellAnswers:
    """Of the exchanges that have a verdict; lengths of all that were measured, if the cell's load is valid."""
    graded = [v is not None for v in verdicts]
    asked, judged = list(compress(data.exchanges, graded)), [v for v in verdicts if v is not None]
    alike = Counter(
        (e.item_id, e.text, e.output_tokens, v.outcome, v.extractor in GUESSES, _stopped(e))
        for e, v in zip(asked, judged, strict=True)
    )
    answers: dict[str, list[Answer]] = defaultdict(list)
    for (item, text, output_tokens, outcome, guessed, stopped), times in alike.items():
        answers[item].append(
            Answer(
                repeat=data.cell.repeat,
                times=times,
                outcome=outcome,
                correct=outcome == "correct",
                guessed=guessed,
                stopped=stopped,
                output_tokens=output_tokens,
                text_sha=blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
            )
        )
    return CellAnswers(
        target=data.cell.target,
        concurrency=data.cell.concurrency,
        answers=dict(answers),
        prompt_sha={exchange.item_id: exchange.prompt_sha for exchange in asked},
        lengths=_lengths(data) if load_valid else {},
    )


def _lengths(data: CellData) -> dict[str, tuple[int, int]]:
    lengths: dict[str, tuple[int, int]] = {}
    for place in np.flatnonzero(data.measured & data.ok & (data.output_tokens >= 0)).tolist():
        item = data.exchanges[place].item_id
        answers, tokens = lengths.get(item, (0, 0))
        lengths[item] = answers + 1, tokens + int(data.output_tokens[place])
    return lengths


def _stopped(exchange: Exchange) -> bool:
    """By a stop string; a number is the token that ends a turn."""
    reason = exchange.stop_reason
    return isinstance(reason, str) and not reason.lstrip("-").isdecimal()


class Sides:
    """Give it every cell's answers."""

    def __init__(self, protocol: dict[str, Any]) -> None:
        """`protocol`: the manifest's."""
        self._max_tokens = protocol["max_tokens"]
        self._sampling = {name: protocol[name] for name in _SETTINGS if name in protocol}
        self._answers: dict[Key, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
        self._asked: dict[Key, dict[str, Asked]] = defaultdict(dict)
        self._lengths: dict[Key, dict[str, tuple[int, int]]] = defaultdict(dict)

    def add(self, cell: CellAnswers) -> None:
        key = cell.target, cell.concurrency
        for item, graded in cell.answers.items():
            self._answers[key][item] += graded
            self._asked[key][item] = Asked(
                prompt_sha=cell.prompt_sha[item], max_tokens=self._max_tokens, sampling=self._sampling
            )
        known = self._lengths[key]
        for item, (answers, tokens) in cell.lengths.items():
            before = known.get(item, (0, 0))
            known[item] = before[0] + answers, before[1] + tokens

    @property
    def answers(self) -> dict[Key, Answers]:
        """Item -> answers, by target and concurrency."""
        return dict(self._answers)

    @property
    def lengths(self) -> dict[Key, Lengths]:
        """Item -> mean output tokens, by target and concurrency, of the cells whose load is valid."""
        return {
            key: {item: tokens / answers for item, (answers, tokens) in known.items() if tokens}
            for key, known in self._lengths.items()
        }

    def all(self) -> list[Side]:
        """One per target and concurrency."""
        return [
            Side(target=target, concurrency=b, answers=answers, asked=self._asked[target, b])
            for (target, b), answers in self._answers.items()
        ]
