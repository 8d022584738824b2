"""Sweeps against servers of true timing whose streams are those of servers and proxies in the wild."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from unhurried import analysed
from wild_server import DONE, Wild, serving

from loadgen.analysis.run import Run
from loadgen.load.exchange import NOTE_NO_DONE
from loadgen.measure.config import configure
from loadgen.measure.run import run_sweep

TOKENS = Wild.tokens


class CountsPerEvent(Wild):
    """Usage of every event counts that event's tokens only."""

    def chunk(self, text: str | None, so_far: int | None = None, finish: str | None = None, **choice: Any) -> bytes:
        return super().chunk(text, 1, finish, **choice)


class CountsOnceBehind(Wild):
    """Usage comes once, behind the last event, on a choice without text; and no [DONE]."""

    def chunk(self, text: str | None, so_far: int | None = None, finish: str | None = None, **choice: Any) -> bytes:
        return super().chunk(text, None, finish, **choice)

    def total(self, tokens: int) -> bytes:
        return super().chunk("", tokens)

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        async for piece in super().answer(asked):
            if piece != DONE:
                yield piece


class CountsEarly(Wild):
    """An empty event before the model ran says 1 token."""

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        yield self.chunk("", 1)
        async for piece in super().answer(asked):
            yield piece


class ClosesKept(Wild):
    """Ends each connection after 3 answers without a word, when the next request has come."""

    def __init__(self) -> None:
        super().__init__()
        self._answered: dict[Any, int] = {}

    async def respond(self, asked: dict[str, Any], head: str, writer: Any) -> bool:
        self._answered[writer] = self._answered.get(writer, 0) + 1
        return self._answered[writer] > 3 or await super().respond(asked, head, writer)


class Buffered(Wild):
    """Every event comes with the last token."""

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        yield b"".join([piece async for piece in super().answer(asked)])


class BufferedInPieces(Wild):
    """The same, each event as a packet of its own: only the server's histogram tells."""

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        pieces = [piece async for piece in super().answer(asked)]
        await asyncio.sleep(0.2)  # held so long that a busy machine's pace of the pieces is still short beside it
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)
            time.sleep(0.0003)  # noqa: ASYNC251  shorter than a timer of the event loop


class Speculative(Wild):
    """Three tokens an event, 30 ms apart."""

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        count = self.count(asked)
        for k in range(0, count, 3):
            await self.token(k, 3)
            yield self.chunk(" a b c", k + 3, "length" if k + 3 >= count else None)
        yield self.total(count)
        yield DONE


class Aborts(Wild):
    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        async for piece in super().answer(asked):
            yield piece.replace(b'"length"', b'"abort"') if len(self.seen) % 3 == 0 else piece


RIGHT = {
    "counts-per-event": CountsPerEvent(), "counts-once-behind": CountsOnceBehind(),
    "counts-early": CountsEarly(), "closes-kept": ClosesKept(), "speculative": Speculative(),
}  # fmt: skip
BUFFER = {"buffered": Buffered(), "buffered-in-pieces": BufferedInPieces()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    servers = RIGHT | BUFFER | {"aborts": Aborts()}
    with serving(servers) as url:
        config = configure(
            targets=[f"{name}:fp16={url}/{name}" for name in servers],
            concurrency=[2],
            dataset="sample",
            duration=0.8,
            warmup=0.2,
            repeats=1,
            max_tokens=TOKENS,
            power="none",
            metrics_port=None,
            out=tmp_path_factory.mktemp("wild") / "run",
        )
        yield analysed(run_sweep(config))


@pytest.mark.parametrize("name", RIGHT)
def test_first_and_further_tokens_are_where_they_are(run: Run, name: str) -> None:
    """An answer of known times; a busy machine is later, never earlier."""
    cell = run.cells.set_index("target").loc[name]
    assert cell.valid, cell.reasons
    assert cell.latency_valid, cell.latency_reasons
    assert cell.output_tokens_mean == TOKENS
    step_ms = Wild.itl_s * 1e3
    assert Wild.ttft_s * 1e3 <= cell.ttft_ms_p50 < Wild.ttft_s * 1e3 + 0.9 * step_ms
    spans = 9 if name == "speculative" else TOKENS - 1
    assert cell.tpot_ms_p50 == pytest.approx(step_ms * spans / (TOKENS - 1), rel=0.25)


@pytest.mark.parametrize("name", BUFFER)
def test_a_buffered_stream_has_a_batch_and_no_latency(run: Run, name: str) -> None:
    cell = run.cells.set_index("target").loc[name]
    assert cell.valid, cell.reasons
    assert not cell.latency_valid
    assert "something between client and engine buffers the stream" in cell.latency_reasons


def test_an_aborted_answer_is_a_failure(run: Run) -> None:
    cell = run.cells.set_index("target").loc["aborts"]
    assert not cell.valid
    assert "the server ended the answer with finish_reason 'abort'" in cell.reasons


def test_a_request_under_which_a_kept_connection_was_closed_is_sent_again_and_counted(run: Run) -> None:
    cells = run.cells.set_index("target")
    assert cells.retries.drop("closes-kept").sum() == 0
    assert cells.retries["closes-kept"] >= 2
    assert (cells.loc["closes-kept", ["errors", "failures"]] == 0).all()


def test_each_kind_of_note_is_told_once(run: Run) -> None:
    [told] = [warning for warning in run.analysis.warnings if NOTE_NO_DONE in warning]
    assert told.startswith("counts-once-behind: ")
    assert NOTE_NO_DONE in run.cells.set_index("target").answer_notes["counts-once-behind"]
    [again] = [warning for warning in run.analysis.warnings if "were sent again" in warning]
    assert again.startswith("closes-kept: ")
