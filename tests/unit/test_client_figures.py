"""What the client says of itself in a cell's row, and when that is held against the cell. The window is (1 s, 2 s]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_run import answer, cell_data, ended, make_run, scrape, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.client import Check, ClientFigures, NearestCheck, client_checks, client_doubt, client_figures
from loadgen.analysis.run import load_run
from loadgen.load.exchange import Exchange
from loadgen.record.cell import Cell
from loadgen.reports.html.page import page
from loadgen.reports.rows import CLIENT, table_of
from loadgen.serving.exposition import ServerSample


def figures(
    tmp_path: Path, exchanges: Sequence[Exchange], samples: Sequence[ServerSample] = (), **end: Any
) -> ClientFigures:
    return client_figures(cell_data(tmp_path, exchanges, samples, end=ended(**end)))


class TestRefillGap:
    def test_it_is_last_byte_to_next_send_of_the_same_slot(self, tmp_path: Path) -> None:
        lines = [answer(1, [(500, 1)]), answer(900, [(1100, 1)]), answer(1102, [(1500, 1)]), answer(2500, [(2600, 1)])]
        lines += [answer(900, [(1190, 1)], slot=1), answer(1194, [(1700, 1)], slot=1)]
        gaps = figures(tmp_path, lines)
        assert (gaps.refill_gap_ms_mean, gaps.refill_gap_ms_p50, gaps.refill_gap_ms_max) == pytest.approx((3, 3, 4))
        assert gaps.refill_gap_ms_p99 == pytest.approx(2 + 0.99 * 2)

    def test_a_slot_that_waits_after_a_failure_does_so_on_purpose(self, tmp_path: Path) -> None:
        refused = answer(900, end=1100, status="http", error="503")
        lines = [refused, answer(1150, [(1300, 1)]), answer(1301, [(1500, 1)])]
        assert figures(tmp_path, lines).refill_gap_ms_max == pytest.approx(1.0)

    def test_without_a_refill_there_is_none(self, tmp_path: Path) -> None:
        assert figures(tmp_path, [answer(900, [(1100, 1)])]).refill_gap_ms_mean is None


class TestStamps:
    def test_the_share_of_the_kernels_is_of_the_windows_answers(self, tmp_path: Path) -> None:
        lines = [answer(900, [(1100, 1)], stamps="kernel"), answer(900, [(1200, 1)], slot=1)]
        lines += [answer(100, [(500, 1)], slot=2, stamps="kernel"), answer(900, [(2500, 1)], slot=3, stamps="kernel")]
        assert figures(tmp_path, lines).kernel_stamp_share == 0.5
        assert figures(tmp_path / "none", []).kernel_stamp_share is None

    def test_tokens_of_one_answer_with_one_stamp_are_joined_but_for_the_last(self, tmp_path: Path) -> None:
        lines = [answer(900, [(1100, 1), (1100, 2), (1100, 1), (1200, 1)]), answer(900, [(1200, 1)], slot=1)]
        assert figures(tmp_path, lines).joined_token_share == 3 / 6
        assert figures(tmp_path / "none", [answer(100, [(500, 1), (500, 1)])]).joined_token_share is None

    def test_of_the_kernel_a_late_client_harms_refills_alone(self) -> None:
        late = {"client_cpu_share": 0.99, "loop_lag_ms_mean": 14.0, "loop_lag_ms_p50": 30.0, "kernel_stamp_share": 1.0}
        assert failed(against_server(26.0, **late)) == []
        assert failed(against_server(26.0, **late | {"kernel_stamp_share": 0.9})) != []
        assert failed(against_server(26.0, refill_gap_ms_mean=21.0, **late)) == ["refill_gap_ms_mean"]

    @pytest.mark.parametrize(
        ("joined", "lag_ms", "doubt"), [(0.02, 21.0, True), (0.02, 19.0, False), (0.005, 21.0, False)]
    )
    def test_joined_tokens_are_a_doubt_where_the_client_was_late(
        self, joined: float, lag_ms: float, doubt: bool
    ) -> None:
        client = ClientFigures(kernel_stamp_share=1.0, joined_token_share=joined, loop_lag_ms_p99=lag_ms)
        assert (client_doubt(client, icl_ms=20.0) is not None) == doubt


class TestCpuAndLag:
    def test_cores_are_of_all_processes_and_the_share_is_the_busiest_ones(self, tmp_path: Path) -> None:
        client = figures(
            tmp_path, [], client_processes=3, client_cpu_s=1.2, client_cpu_share=0.5, loop_lag_ms_p50=0.5,
            loop_lag_ms_p90=1.0, loop_lag_ms_p99=2.0, loop_lag_ms_max=7.0,
        )  # fmt: skip
        assert (client.client_processes, client.client_cpu_cores, client.client_cpu_share) == (3, 1.2, 0.5)
        assert (client.loop_lag_ms_p50, client.loop_lag_ms_p90) == (0.5, 1.0)
        assert (client.loop_lag_ms_p99, client.loop_lag_ms_max) == (2.0, 7.0)

    def test_a_journal_of_before_there_were_workers_has_one_process(self, tmp_path: Path) -> None:
        client = figures(tmp_path, [], client_cpu_s=0.25)
        assert (client.client_cpu_cores, client.client_cpu_share) == (0.25, 0.25)


class TestAgainstTheServersHistogram:
    """Two requests with a TTFT of 60 and 100 ms by the client; the server's histogram sees 40 and 70 ms."""

    ASKED = (answer(1100, [(1160, 1), (1170, 1)]), answer(1200, [(1300, 1), (1310, 1)], slot=1))

    def test_the_excess_is_the_clients_mean_less_the_servers(self, tmp_path: Path) -> None:
        before = answer(900, [(1040, 1)], slot=2)
        samples = [scrape(1050, ttft_count=7.0, ttft_sum_s=1.0), scrape(1900, ttft_count=9.0, ttft_sum_s=1.11)]
        client = figures(tmp_path, [before, *self.ASKED], samples)
        assert client.server_ttft_count == 2
        assert client.server_ttft_ms_mean == pytest.approx(55.0)
        assert client.ttft_excess_ms == pytest.approx(80.0 - 55.0)

    def test_other_requests_than_ours_leave_the_excess_open(self, tmp_path: Path) -> None:
        samples = [scrape(1050, ttft_count=7.0, ttft_sum_s=1.0), scrape(1900, ttft_count=27.0, ttft_sum_s=2.0)]
        client = figures(tmp_path, self.ASKED, samples)
        assert client.server_ttft_ms_mean == pytest.approx(50.0)
        assert client.ttft_excess_ms is None

    @pytest.mark.parametrize(
        "samples",
        [
            [],
            [scrape(1050, ttft_count=7.0, ttft_sum_s=1.0)],
            [scrape(1050), scrape(1900)],
            [scrape(1050, ttft_count=7.0, ttft_sum_s=1.0), scrape(1900, ttft_count=7.0, ttft_sum_s=1.0)],
            [scrape(900, ttft_count=5.0, ttft_sum_s=1.0), scrape(1900, ttft_count=7.0, ttft_sum_s=1.0)],
        ],
    )
    def test_without_two_readings_and_a_first_token_between_them_there_is_nothing(
        self, tmp_path: Path, samples: list[ServerSample]
    ) -> None:
        client = figures(tmp_path, self.ASKED, samples)
        assert (client.server_ttft_ms_mean, client.server_ttft_count, client.ttft_excess_ms) == (None, None, None)


def against_server(excess_ms: float, **others: Any) -> ClientFigures:
    """The server says 100 ms; 20% of what the client says are 25 ms where that is 125 ms."""
    return ClientFigures(
        **{"ttft_excess_ms": excess_ms, "server_ttft_ms_mean": 100.0, "server_ttft_count": 20} | others
    )


def failed(client: ClientFigures, *, icl_ms: float | None = 20.0, e2e_ms: float | None = 2000.0) -> list[str]:
    return [check.figure for check in client_checks(client, icl_ms=icl_ms, e2e_ms=e2e_ms) if check.failed]


class TestLimits:
    @pytest.mark.parametrize(
        ("client", "figure"),
        [
            (ClientFigures(client_cpu_share=0.96), "client_cpu_share"),
            (ClientFigures(loop_lag_ms_p50=21.0), "loop_lag_ms_p50"),
            (ClientFigures(refill_gap_ms_mean=21.0), "refill_gap_ms_mean"),
            (against_server(26.0, loop_lag_ms_mean=14.0), "ttft_excess_ms"),
            (against_server(26.0, client_cpu_share=0.9), "ttft_excess_ms"),
        ],
    )
    def test_just_above_each(self, client: ClientFigures, figure: str) -> None:
        assert failed(client) == [figure]

    @pytest.mark.parametrize(
        "client",
        [
            ClientFigures(),
            ClientFigures(client_cpu_share=0.94),
            ClientFigures(loop_lag_ms_p50=19.0),
            ClientFigures(refill_gap_ms_mean=19.0),
            against_server(24.0, loop_lag_ms_mean=14.0),
            against_server(60.0, loop_lag_ms_mean=14.0),
        ],
    )
    def test_just_below_each(self, client: ClientFigures) -> None:
        assert failed(client) == []

    def test_a_stall_of_a_moment_is_not_held_against_a_cell(self) -> None:
        stalled = ClientFigures(
            loop_lag_ms_mean=12.0, loop_lag_ms_p50=0.0, loop_lag_ms_p90=100.0, loop_lag_ms_max=500.0
        )
        assert failed(stalled) == []

    def test_a_slow_loop_harms_nothing_where_tokens_are_slower(self) -> None:
        assert failed(ClientFigures(loop_lag_ms_p50=20.0), icl_ms=500.0) == []
        assert failed(ClientFigures(loop_lag_ms_p50=2.0), icl_ms=0.8) == []

    def test_a_server_whose_front_end_is_slow_is_not_the_clients_fault(self) -> None:
        assert failed(against_server(300.0, loop_lag_ms_mean=1.0, client_cpu_share=0.1)) == []

    def test_few_requests_have_no_mean_to_compare(self) -> None:
        assert failed(against_server(26.0, server_ttft_count=19, loop_lag_ms_mean=14.0)) == []

    def test_what_a_limit_goes_by_must_be_known(self) -> None:
        late = ClientFigures(loop_lag_ms_p50=900.0, refill_gap_ms_mean=900.0)
        assert failed(late, icl_ms=None, e2e_ms=None) == []


def test_below_the_limits_there_may_be_a_doubt() -> None:
    assert client_doubt(ClientFigures(client_cpu_share=0.8, loop_lag_ms_p90=19.0), icl_ms=20.0) is None
    busy = client_doubt(ClientFigures(client_cpu_share=0.9), icl_ms=20.0)
    assert busy == "the busiest client process used 90% of a core (invalid from 95% on)"
    late = client_doubt(ClientFigures(client_cpu_share=0.1, loop_lag_ms_p90=21.0), icl_ms=20.0)
    assert late == ("one byte in ten waited 21.0 ms or more for the client's event loop, and chunks came each 20.0 ms")


def test_doubts_are_one_warning_and_none_of_cells_that_are_invalid_anyway(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    for index, share in ((2, 0.85), (3, 0.9), (4, 0.97)):
        cell = Cell(index=index, target="fp16", precision="fp16", concurrency=1, repeat=index)
        tokens = [(1000 + 10 * k, 1) for k in range(1, 100)]
        samples = [scrape(1100, running=1.0, waiting=0.0), scrape(1900, running=1.0, waiting=0.0)]
        end = ended(client_processes=1, client_cpu_s=share, client_cpu_share=share)
        write_cell(run_dir, cell, [answer(900, tokens, end=1999)], samples, end)
    analyse(run_dir)
    warnings = [w for w in load_run(run_dir).analysis.warnings if "p99" in w]
    assert warnings == [
        "p99 latencies of 2 cells may be the client's, as fp16, B = 1, repeat 2: the busiest client process used 85% "
        "of a core (invalid from 95% on)"
    ]


def summary(tmp_path: Path, **end: Any) -> CellSummary:
    asked = [answer(900, [(1000 + 10 * k, 1) for k in range(1, 100)], end=1999)]
    samples = [scrape(1100, running=1.0, waiting=0.0), scrape(1900, running=1.0, waiting=0.0)]
    data = cell_data(tmp_path, asked, samples, end=ended(**end))
    return summarize_cell(data, [None])


def test_a_client_bound_cell_is_invalid_and_names_figure_limit_and_remedy(tmp_path: Path) -> None:
    assert summary(tmp_path / "good", client_processes=1, client_cpu_s=0.5, client_cpu_share=0.5).validity.valid
    bad = summary(tmp_path / "bad", client_processes=1, client_cpu_s=0.99, client_cpu_share=0.97, loop_lag_ms_p50=11.0)
    assert not bad.validity.valid
    assert bad.validity.sentence == (
        "client-bound: the busiest client process used 97% of a core (limit 95%); give --workers 2 or more; "
        "client-bound: half of all bytes waited 11.0 ms or more for the client's event loop (limit 10.0 ms; chunks "
        "came each 10.0 ms); give --workers 2 or more, or free its CPU of other work"
    )


def test_the_analysis_names_the_cell_closest_to_each_limit(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    asked = [answer(900, [(1000 + 10 * k, 1) for k in range(1, 100)], end=1999)]
    for index, share in ((2, 0.4), (3, 0.6)):
        cell = Cell(index=index, target="fp16", precision="fp16", concurrency=index, repeat=1)
        end = ended(client_processes=1, client_cpu_s=share, client_cpu_share=share)
        write_cell(run_dir, cell, asked, [], end)
    analyse(run_dir)
    (check,) = load_run(run_dir).analysis.client
    assert check == NearestCheck(
        figure="client_cpu_share", value=0.6, limit=0.95, failed=False, target="fp16", concurrency=3, repeat=1
    )


def test_the_report_shows_how_close_the_client_came(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1, simulated=True)
    cell = Cell(index=2, target="fp16", precision="fp16", concurrency=8, repeat=1)
    asked = [answer(900, [(1000 + 10 * k, 1) for k in range(1, 100)], end=1999)]
    end = ended(client_processes=1, client_cpu_s=0.97, client_cpu_share=0.97, loop_lag_ms_p50=0.5)
    write_cell(run_dir, cell, asked, [], end, simulated=True)
    analyse(run_dir)
    run = load_run(run_dir)
    assert table_of(CLIENT, run.analysis.client).rows == [
        ("CPU of the busiest client process, of a core", "97%", "95%", "fp16", "8", "1", "client-bound"),
        ("event loop late, median", "0.500 ms", "10.0 ms", "fp16", "8", "1", ""),
    ]
    assert 'id="client"' in page(run, [])


def test_a_check_fails_above_its_limit_if_the_client_is_guilty() -> None:
    assert [
        Check(figure="f", value=value, limit=1.0, sentence="", guilty=guilty).failed
        for value, guilty in ((1.1, True), (1.0, True), (1.1, False))
    ] == [True, False, False]
