"""Whether tokens came one after another: what buffers a stream makes its latencies invalid, what merely batches not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from made_run import answer, cell, ended, write_cell

from loadgen.analysis.celldata import CellData, read_cell, tpot_s
from loadgen.analysis.client import ClientFigures, Streaming, streaming_of, streaming_reasons

Events = Sequence[tuple[float, int]]
BUFFERS = "something between client and engine buffers the stream"
STEPS = [10.0 * k for k in range(1, 13)]
"""Answers of 12 tokens, the first after 10 ms, one each 10 ms."""


@pytest.fixture(autouse=True, params=[2, 1 << 15])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that are gone through at a time; the figures do not depend on it."""
    monkeypatch.setattr("loadgen.analysis.celldata._AT_ONCE", request.param)


def data_of(tmp_path: Path, *answers: Events) -> CellData:
    asked = [answer(200 * k, [(200 * k + t, n) for t, n in events]) for k, events in enumerate(answers)]
    data = read_cell(write_cell(tmp_path, cell(), asked, [], ended(window=(0, 100_000))))
    assert data is not None
    return data


def reasons(tmp_path: Path, *answers: Events, **client: float) -> list[str]:
    data = data_of(tmp_path, *answers)
    return streaming_reasons(streaming_of(data, data.window), ClientFigures(**client))


STREAMED = [(t, 1) for t in STEPS]
AT_ONCE = [(120.0, 1)] * 12
FIRST_THEN_ALL = [(10.0, 1), *[(120.0, 1)] * 11]
BY_EIGHT_KILOBYTES = [(40.0 * (1 + k // 32), 1) for k in range(96)]
THREE_AN_EVENT = [(t, 3) for t in STEPS]
THREE_EVENTS_A_STEP = [(t, 1) for t in STEPS for _ in range(3)]
TWO_MERGED = [(10.0, 1), (30.0, 1), *[(t, 1) for t in STEPS[2:]]]
ONE_EVENT = [(120.0, 12)]
ONE_TOKEN = [(10.0, 1)]


@pytest.mark.parametrize("events", [AT_ONCE, FIRST_THEN_ALL, BY_EIGHT_KILOBYTES])
def test_a_buffered_stream_is_named(tmp_path: Path, events: Events) -> None:
    [reason] = reasons(tmp_path, *[events] * 9, STREAMED)
    assert reason.startswith("in 9 of 10 answers most events came in few reads: ")
    assert BUFFERS in reason
    assert "proxy_buffering" in reason


@pytest.mark.parametrize("events", [STREAMED, THREE_AN_EVENT, THREE_EVENTS_A_STEP, TWO_MERGED, ONE_TOKEN])
def test_tokens_of_one_step_are_no_buffer(tmp_path: Path, events: Events) -> None:
    assert reasons(tmp_path, *[events] * 10, loop_lag_ms_p50=0.2) == []


def test_an_answer_of_several_tokens_in_one_event_has_no_time_per_token(tmp_path: Path) -> None:
    [reason] = reasons(tmp_path, *[ONE_EVENT] * 3, STREAMED)
    assert reason == "3 of 4 answers of several tokens came in one event: their time per token is unknown"
    assert reasons(tmp_path / "rare", ONE_EVENT, *[STREAMED] * 20) == [], "one of them is no figure's"


def test_such_answers_are_in_no_time_per_token(tmp_path: Path) -> None:
    data = data_of(tmp_path, ONE_EVENT, AT_ONCE, STREAMED)
    assert data.window is not None
    assert tpot_s(data, data.window).tolist() == pytest.approx([0.01])


def test_the_first_event_of_an_answer_is_never_joined_to_the_last_of_another(tmp_path: Path) -> None:
    data = data_of(tmp_path, [(10.0, 1), (220.0, 1)], [(20.0, 1), (20.0, 1), (30.0, 1)])
    assert data.joined().tolist() == [3]


@pytest.mark.parametrize(("lag_ms", "blamed"), [(0.3, BUFFERS), (6.0, "the client joined them")])
def test_a_client_that_is_late_joins_events_itself(tmp_path: Path, lag_ms: float, blamed: str) -> None:
    """The answers took 120 ms for 12 events: one each 10 ms, had they come evenly."""
    [reason] = reasons(tmp_path, *[AT_ONCE] * 10, loop_lag_ms_p50=lag_ms)
    assert blamed in reason


@pytest.mark.parametrize(("lag_ms", "share", "blamed"), [(11.0, 0.06, True), (9.0, 0.06, False), (11.0, 0.04, False)])
def test_a_late_client_that_joins_tokens_leaves_upper_bounds(
    tmp_path: Path, lag_ms: float, share: float, blamed: bool
) -> None:
    """Events come each 10 ms; the kernel stamped the reads, so that nothing but joined tokens is the client's."""
    said = reasons(tmp_path, *[STREAMED] * 10, loop_lag_ms_p99=lag_ms, kernel_stamp_share=1.0, joined_token_share=share)
    assert any("the client was late and read 6% of the tokens together" in reason for reason in said) == blamed


@pytest.mark.parametrize(("excess_ms", "span_ms", "buffers"), [
    (110.0, 2.0, True),
    (110.0, 30.0, False),
    (15.0, 0.1, False),
    (None, 0.1, False),
])  # fmt: skip
def test_a_proxy_that_sends_one_event_after_the_other_shows_in_the_servers_histogram(
    excess_ms: float | None, span_ms: float, buffers: bool
) -> None:
    found = streaming_reasons(
        Streaming(answers=50, several=50, spacing_ms=12.0, span_ms=span_ms),
        ClientFigures(ttft_excess_ms=excess_ms, server_ttft_ms_mean=40.0),
    )
    assert [BUFFERS in reason for reason in found] == [True] * buffers


def test_nothing_is_said_of_a_cell_without_answers(tmp_path: Path) -> None:
    assert reasons(tmp_path) == reasons(tmp_path / "one", []) == []
    assert streaming_of(data_of(tmp_path / "streamed", STREAMED), None) == Streaming()
