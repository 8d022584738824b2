"""TTFT, TPOT, ITL, ICL and E2E of streams made by hand; the window is (1000 ms, 2000 ms]."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import MS, WINDOW, answer, arrived, cell_data, turned_away

from loadgen.analysis.celldata import e2e_s, icl_s, itl_s, tpot_s, ttft_s
from loadgen.load.exchange import Exchange
from loadgen.load.latency import Latencies, latencies_in

OPEN_CLOSE = (WINDOW[0] * MS, WINDOW[1] * MS)
CHUNKED = answer(1000, [(1100, 2), (1200, 1), (1500, 2), (1600, 1)], end=1650)
"""6 tokens in 4 events: 2 at first, then gaps of 100, 300 and 100 ms for 1, 2 and 1 tokens."""


@pytest.fixture(autouse=True, params=[2, 1 << 15])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that are gone through at a time; the figures do not depend on it."""
    monkeypatch.setattr("loadgen.analysis.celldata._AT_ONCE", request.param)


def ms(values_of: object, tmp_path: Path, *exchanges: Exchange) -> list[float]:
    assert callable(values_of)
    values = values_of(cell_data(tmp_path, exchanges), OPEN_CLOSE)
    return [round(value * 1e3, 6) for value in values]


def test_ttft_is_send_to_the_first_event_with_a_token(tmp_path: Path) -> None:
    assert ms(ttft_s, tmp_path, CHUNKED) == [100]


def test_e2e_is_send_to_the_last_byte_and_not_to_the_last_token(tmp_path: Path) -> None:
    assert ms(e2e_s, tmp_path, CHUNKED) == [650]


def test_tpot_is_the_decode_time_over_tokens_less_one(tmp_path: Path) -> None:
    assert ms(tpot_s, tmp_path, CHUNKED) == [(1600 - 1100) / (6 - 1)]


def test_icl_is_every_gap_between_events_whatever_they_hold(tmp_path: Path) -> None:
    assert ms(icl_s, tmp_path, CHUNKED) == [100, 300, 100]


def test_itl_shares_a_gap_among_the_tokens_it_brought(tmp_path: Path) -> None:
    assert ms(itl_s, tmp_path, CHUNKED) == [100, 150, 150, 100]


def test_an_answer_of_one_token_has_a_ttft_but_no_time_per_output_token(tmp_path: Path) -> None:
    short = answer(1000, [(1100, 1)])
    assert ms(ttft_s, tmp_path / "a", short) == [100]
    assert ms(tpot_s, tmp_path / "b", short) == ms(itl_s, tmp_path / "c", short) == []


def test_tokens_that_all_came_at_once_have_no_time_per_output_token(tmp_path: Path) -> None:
    """Nobody knows when they were made: none, and not 0."""
    at_once = answer(1000, [(1100, 2), (1100, 1)])
    assert ms(tpot_s, tmp_path / "a", at_once) == []
    assert latencies_in(at_once, OPEN_CLOSE) == Latencies(ttft_s=0.1, tpot_s=None)


def test_gaps_never_span_two_requests(tmp_path: Path) -> None:
    pair = answer(1000, [(1100, 1), (1200, 1)]), answer(1300, [(1500, 1), (1510, 1)])
    assert ms(icl_s, tmp_path, *pair) == [100, 10]


STARTED_BEFORE = answer(500, [(900, 1), (1200, 1), (1500, 1)])
ENDS_AFTER = answer(1500, [(1800, 1), (1900, 1), (2500, 1)])


def test_a_request_begun_before_the_window_counts_with_what_happened_inside(tmp_path: Path) -> None:
    assert ms(ttft_s, tmp_path / "a", STARTED_BEFORE) == []
    assert ms(icl_s, tmp_path / "b", STARTED_BEFORE) == [300, 300]
    assert ms(tpot_s, tmp_path / "c", STARTED_BEFORE) == [300]
    assert ms(e2e_s, tmp_path / "d", STARTED_BEFORE) == [1000]


def test_a_request_that_ends_after_the_window_counts_with_what_happened_inside(tmp_path: Path) -> None:
    assert ms(ttft_s, tmp_path / "a", ENDS_AFTER) == [300]
    assert ms(icl_s, tmp_path / "b", ENDS_AFTER) == [100]
    assert ms(tpot_s, tmp_path / "c", ENDS_AFTER) == ms(e2e_s, tmp_path / "d", ENDS_AFTER) == []


@pytest.mark.parametrize(("end", "counts"), [(1000, False), (1001, True), (2000, True), (2001, False)])
def test_the_opening_instant_is_outside_and_the_closing_one_inside(tmp_path: Path, end: int, counts: bool) -> None:
    assert bool(ms(e2e_s, tmp_path, answer(500, [(900, 1)], end=end))) is counts


@pytest.mark.parametrize("fields", [{"phase": "warmup"}, {"status": "broken", "error": "cut"}])
def test_warm_up_and_failed_requests_have_no_latency(tmp_path: Path, fields: dict[str, str]) -> None:
    aside = answer(1000, [(1100, 1), (1200, 1)], **fields)
    for place, figure in enumerate((ttft_s, e2e_s, tpot_s, icl_s, itl_s)):
        assert ms(figure, tmp_path / str(place), aside) == []


EVERY_KIND = (
    CHUNKED,
    STARTED_BEFORE,
    ENDS_AFTER,
    answer(1000, [(1100, 1)]),
    answer(1000, [(1100, 2), (1100, 1)]),
    answer(900, [(1000, 1), (1001, 1)]),
    answer(1900, [(2000, 1), (2001, 1)]),
    answer(1500),
    answer(1000, [(1100, 1), (1200, 1)], phase="warmup"),
    answer(1000, [(1100, 1), (1200, 1)], status="broken", error="cut"),
)
ARRIVALS = (
    arrived(990, [(1100, 1), (1200, 1)]),
    arrived(1010, [(1100, 1), (1200, 1)], late=5),
    arrived(1990, [(2100, 1), (2200, 1)]),
    arrived(2010, [(2100, 1), (2200, 1)]),
    arrived(1500, [(1600, 1), (1700, 1)], phase="warmup"),
    turned_away(1600),
)


@pytest.mark.parametrize(("arrival", "exchanges"), [("closed", EVERY_KIND), ("poisson:4", ARRIVALS)])
def test_what_is_counted_live_is_what_the_table_counts(
    tmp_path: Path, arrival: str, exchanges: tuple[Exchange, ...]
) -> None:
    data = cell_data(tmp_path, exchanges, arrival=arrival)
    counted = [latencies_in(exchange, OPEN_CLOSE) for exchange in exchanges]
    assert [found.ttft_s for found in counted if found.ttft_s is not None] == ttft_s(data, OPEN_CLOSE).tolist()
    assert [found.tpot_s for found in counted if found.tpot_s is not None] == tpot_s(data, OPEN_CLOSE).tolist()
    assert {latencies_in(exchange, None) for exchange in exchanges} == {Latencies()}
