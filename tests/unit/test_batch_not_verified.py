"""A server that does not tell its batch is measured all the same, and every place that shows the axis says so."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from made_run import make_run
from rich.console import Console

from loadgen.analysis.analyse import analyse
from loadgen.analysis.compare.row import rows_of
from loadgen.analysis.crossover.crossover import crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint
from loadgen.analysis.run import Run, batch_of, load_run
from loadgen.measure.observer import Progress
from loadgen.record.cell import Cell
from loadgen.reports.compare import RUNS
from loadgen.reports.figures import draw_figures
from loadgen.reports.figures.sheet import batch_title
from loadgen.reports.html.page import page
from loadgen.reports.live import LiveView
from loadgen.reports.rows import RESULT, summary_rows, table_of
from loadgen.reports.terminal import end_lines


@pytest.fixture(scope="module")
def neither(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two targets at B = 1 and 2, no server with /metrics."""
    return analysed(tmp_path_factory.mktemp("neither") / "run", without_metrics=("fp16", "awq"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, where fp16's server tells its batch."""
    return analysed(tmp_path_factory.mktemp("one") / "run", without_metrics=("awq",))


def analysed(path: Path, **options: object) -> Run:
    analyse(make_run(path, **options))
    return load_run(path)


def test_its_cells_are_valid_and_stand_at_the_requests_in_flight(neither: Run) -> None:
    cells = neither.cells
    assert cells["valid"].all()
    assert cells["running_mean"].isna().all()
    assert list(batch_of(cells)) == list(cells["inflight_mean"])
    assert set(cells["running_source"]) == {"none"}
    assert set(cells["running_note"]) == {"batch not verified: http://h:1/metrics answers 404"}
    assert set(neither.summary["running_source"]) == {"none"}
    assert neither.summary["tokens_per_s"].notna().all()


def test_the_end_in_the_terminal_says_so_and_why(neither: Run, one: Run) -> None:
    told = end_lines(neither, 120)
    assert "batch not verified: fp16, awq by requests in flight, not by what the server ran" in told
    why = "! fp16, B = 1, repeat 1 and 3 more: batch not verified: http://h:1/metrics answers 404"
    assert why in told, "once per target"
    assert "batch not verified: awq by requests in flight, not by what the server ran" in end_lines(one, 120)


def test_its_column_in_the_table_says_so(one: Run) -> None:
    running = {(row[1], row[0]): row[2] for row in table_of(RESULT, summary_rows(one)).rows}
    assert running == {
        ("fp16", "1"): "1.00", ("fp16", "2"): "2.00", ("awq", "1"): "not verified", ("awq", "2"): "not verified"
    }  # fmt: skip


def test_its_crossovers_carry_the_mark_in_words_and_in_the_file(neither: Run, one: Run) -> None:
    for run in (neither, one):
        (found,) = (c for c in run.analysis.crossovers if c.metric == "tokens_per_s")
        assert found.batch_verified is False
        assert "(batch not verified)" in found.sentence.partition(";")[0]


@pytest.mark.parametrize("verified", [True, False])
def test_a_crossing_over_requests_in_flight_is_marked(verified: bool) -> None:
    def curve(target: str, *values: float) -> Curve:
        return Curve(
            target=target,
            points=tuple(
                CurvePoint(
                    concurrency=b, running=float(b), verified=verified or target == "fp16",
                    values=tuple(value * noise for noise in (0.999, 1.0, 1.001)),
                )
                for b, value in zip((1, 2, 4, 8), values, strict=True)
            ),
        )  # fmt: skip

    found = crossover(curve("awq", 5, 6, 9, 12), curve("fp16", 8, 8, 8, 8), "energy_per_query_j")
    assert (found.status, found.batch_verified) == ("crosses", verified)
    assert ("batch not verified" in found.sentence) is ("batch not verified" in found.brief) is not verified


def test_every_figure_over_the_batch_and_the_page_say_so(neither: Run, one: Run) -> None:
    figures = {figure.name: figure for figure in draw_figures(neither)}
    for name in ("throughput", "accuracy", "ttft", "cor", "advantage"):
        assert "requests in flight (batch not verified)" in figures[name].svg.read_text(), name
    assert figures["throughput"].caption.startswith("Over the requests in flight (batch not verified), ")
    assert "not verified" in page(neither, list(figures.values()))
    assert batch_title(one) == "running batch; of awq requests in flight (batch not verified)"


def test_a_comparison_of_runs_says_so(one: Run) -> None:
    shown = {(row[7], row[8]): row[9] for row in table_of(RUNS, rows_of(one, "one", {})).rows}
    assert (shown["fp16", "2"], shown["awq", "2"]) == ("2.00", "not verified")


def test_the_live_view_says_so() -> None:
    out = StringIO()
    cell = Cell(index=1, target="fp16", precision="fp16", concurrency=4, repeat=1)
    progress = Progress(
        cell=cell, stage="window", in_flight=4, running=None, requests=1, errors=0, tokens_per_s=1.0, ttft_ms=1.0,
        tpot_ms=1.0, power_w=None, accuracy=2 / 3, share=0.5, graded=3,
    )  # fmt: skip
    with LiveView(Console(file=out, force_terminal=True, width=160)) as view:
        view.progress(progress)
    assert "4 in flight, batch not verified" in out.getvalue()
    assert "2/3" in out.getvalue()
