"""Sides: the graded answers of a run, gathered cell by cell for the comparison of precisions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from loadgen.analysis.celldata import CellData
from loadgen.analysis.trust.answers import Answer, Answers
from loadgen.analysis.trust.pairing import Asked
from loadgen.analysis.trust.study import Side
from loadgen.analysis.validity import answers_stand
from loadgen.workload.grading import Verdict

Key = tuple[str, int]
"""Target and concurrency."""
_SETTINGS = ("temperature", "seed", "api", "stops", "thinking")


class Sides:
    """Give it every cell; answers of cells that failed too often are left out, whatever else the cells measured."""

    def __init__(self, protocol: dict[str, Any]) -> None:
        """`protocol`: the manifest's."""
        self._max_tokens = protocol["max_tokens"]
        self._sampling = {name: protocol[name] for name in _SETTINGS if name in protocol}
        self._answers: dict[Key, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
        self._asked: dict[Key, dict[str, Asked]] = defaultdict(dict)

    def add(self, data: CellData, verdicts: Sequence[Verdict | None]) -> None:
        graded = [(e, v) for e, v in zip(data.exchanges, verdicts, strict=True) if v is not None]
        if not answers_stand(len(graded), sum(v.correct is None for _, v in graded)):
            return
        key = data.cell.target, data.cell.concurrency
        for exchange, verdict in graded:
            self._answers[key][exchange.item_id].append(
                Answer(
                    repeat=data.cell.repeat,
                    outcome=verdict.outcome,
                    correct=bool(verdict.correct),
                    output_tokens=exchange.output_tokens,
                    text_sha=blake2b(exchange.text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
                )
            )
            self._asked[key][exchange.item_id] = Asked(
                prompt_sha=exchange.prompt_sha, max_tokens=self._max_tokens, sampling=self._sampling
            )

    @property
    def answers(self) -> dict[Key, Answers]:
        """Item -> answers, by target and concurrency."""
        return dict(self._answers)

    def all(self) -> list[Side]:
        """One per target and concurrency."""
        return [
            Side(target=target, concurrency=b, answers=answers, asked=self._asked[target, b])
            for (target, b), answers in self._answers.items()
        ]
