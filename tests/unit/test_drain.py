"""Stragglers: how long they are waited for, and what their rows say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from streams import REQUEST
from wild_server import Wild, serving

import loadgen
from loadgen.load.exchange import STOPPED, Exchange
from loadgen.load.load import FEWEST, LEAST_S, MEDIANS, Drain, straggler
from loadgen.workload.questions import sample_items


def row(seconds: float, **changes: Any) -> Exchange:
    exchange = Exchange(
        slot=0, phase="measured", item_id=REQUEST.item_id, prompt_sha="", t_send_ns=0, t_end_ns=int(seconds * 1e9)
    )
    return msgspec.structs.replace(exchange, **changes)


def drain(*answers_s: float, drain_s: float | None = None) -> Drain:
    made = Drain(drain_s)
    for seconds in answers_s:
        made.add(row(seconds))
    return made


def test_the_limit_is_30_s_or_three_median_answers() -> None:
    assert drain().limit_s == LEAST_S == 30.0
    assert drain(1.0, 2.0, 3.0).limit_s == LEAST_S
    assert drain(20.0, 5.0, 400.0).limit_s == MEDIANS * 20.0
    assert drain(20.0, drain_s=4.0).limit_s == 4.0


def test_a_warm_up_waits_until_there_is_something_to_compare_with() -> None:
    assert not drain(*[1.0] * (FEWEST - 1)).known
    assert drain(*[1.0] * FEWEST).known


def test_failures_are_no_answers() -> None:
    made = drain(1.0)
    made.add(row(500.0, status="timeout", error="x"))
    assert made.limit_s == LEAST_S


def test_the_row_says_how_long_it_was_waited_for() -> None:
    given_up = straggler(row(33.0, status="broken", error=STOPPED), 30.0, "after the window")
    assert given_up.status == "timeout"
    assert given_up.error == "given up after 33.0 s without a complete answer, 30 s after the window (--drain)"
    for other in (row(1.0), row(1.0, status="broken", error="connection lost")):
        assert straggler(other, 30.0, "after the window") is other


class Stuck(Wild):
    """Never answers its `number`-th request, or the first that asks `question`."""

    ttft_s, itl_s = 0.02, 0.002
    number = 0
    question = ""
    stuck: dict[str, Any] | None = None

    def refuse(self, asked: dict[str, Any], head: str) -> None:
        asks = bool(self.question) and self.question in asked["prompt"]
        if self.stuck is None and (asks or len(self.seen) == self.number):
            self.stuck = asked

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        if asked is self.stuck:
            await asyncio.sleep(3600)
        async for piece in super().answer(asked):
            yield piece


@pytest.mark.slow
def test_a_straggler_costs_its_row_and_not_the_sweep(tmp_path: Path) -> None:
    """One hangs in the warm-up (a slot's first request, after the four that come before the first cell), one in the
    window (each slot's third measured item at the latest); the client is two processes."""
    servers = {"warmup": Stuck(number=6), "window": Stuck(question=sample_items()[9].question)}
    with serving(servers) as url:
        run = loadgen.sweep(
            targets={f"{name}:fp16": f"{url}/{name}" for name in servers}, concurrency=[4], dataset="sample",
            duration=1.0, warmup=0.2, repeats=1, power="none", metrics_port=None, drain=1.0, workers=2,
            out=tmp_path / "run",
        )  # fmt: skip
    cells = run.cells.set_index("target")
    for name, phase in (("warmup", "warmup"), ("window", "measured")):
        late = run.requests[(run.requests.target == name) & (run.requests.status != "ok")]
        assert list(late.status) == ["timeout"]
        assert list(late.phase) == [phase]
        assert "without a complete answer" in late.error.iloc[0]
        assert cells.loc[name].failures == 1
    assert cells.loc["warmup"].errors == 0
    assert cells.loc["window"].errors == 1
    assert "1 of " in cells.loc["window"].reasons
    assert "(--drain)" in cells.loc["window"].reasons
