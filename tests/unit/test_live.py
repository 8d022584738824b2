"""What a sweep shows while it runs: results of cells as they end, why some are not valid, and the time that is left."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pytest
from msgspec.structs import replace
from rich.console import Console

from loadgen.measure.observer import Pace, Progress, Timetable
from loadgen.record.cell import Cell, CellVerdict, TargetSpec, plan_blocks
from loadgen.reports.live import LiveView, PlainView, QuietView

FIGURES = {
    "tokens_per_s": 2210.4, "ttft_ms_p50": 45.12, "ttft_ms_p99": 80.2, "tpot_ms_p50": 7.1, "energy_per_token_j": 0.0123,
    "running_mean": 15.94, "power_w_mean": 412.0, "energy_per_query_j": 3.2, "requests": 250, "errors": 0,
    "e2e_ms_p50": 812.0, "e2e_ms_p99": 1690.0,
}  # fmt: skip
VALID = CellVerdict(valid=True, figures=FIGURES)
CAPPED = CellVerdict(valid=False, figures=FIGURES, reasons="running 8.0 did not reach B = 16: the server caps it")
NO_LATENCY = CellVerdict(valid=True, latency_valid=False, figures=FIGURES, reasons="latency invalid: client-bound")
RESULT = (
    "2,210 tok/s, TTFT 45.1 / 80.2 ms (p50 / p99), TPOT 7.10 ms, 0.0123 J/token, right 12/16, running 15.9"
)  # fmt: skip


def cells(targets: Sequence[str] = ("fp16", "awq"), b: Sequence[int] = (1, 16), repeats: int = 2) -> tuple[Cell, ...]:
    blocks = plan_blocks([TargetSpec(name=name, precision=name) for name in targets], b, repeats)
    return tuple(cell for block in blocks for cell in block.cells)


def glance(cell: Cell, stage: str = "window", share: float = 0.5, graded: int = 16) -> Progress:
    return Progress(
        cell=cell, stage=stage, in_flight=cell.concurrency, running=15.9, requests=30, errors=0, tokens_per_s=2000.0,
        ttft_ms=44.0, tpot_ms=7.0, power_w=400.0, accuracy=0.75, share=share, graded=graded,
    )  # fmt: skip


class Clock:
    ns = 0

    def __call__(self) -> int:
        return self.ns


def begun(clock: Clock, plan: Sequence[Cell], cell_s: float = 60.0, start_s: float = 90.0) -> Pace:
    return Pace(Timetable(cells=tuple(plan), cells_s=(cell_s,) * len(plan), start_s=start_s), clock)


def ends(pace: Pace, clock: Clock, cell: Cell, *, start_s: float = 0.0, cell_s: float) -> None:
    clock.ns += round(start_s * 1e9)
    pace.progress(glance(cell, "warm-up", 0.0))
    clock.ns += round(cell_s * 1e9)
    pace.cell_ends(cell, VALID)


class TestTimeLeft:
    def test_before_anything_is_seen_it_is_what_was_expected_and_runs_down_while_a_server_starts(self) -> None:
        clock = Clock()
        pace = begun(clock, cells())
        assert pace.left_s == 8 * 60 + 4 * 90
        clock.ns = 30 * 10**9
        assert pace.left_s == 8 * 60 + 4 * 90 - 30
        clock.ns = 200 * 10**9
        assert pace.left_s == 8 * 60 + 3 * 90, "this start takes longer: nobody knows how long"

    def test_it_learns_how_long_starts_take_apart_from_cells(self) -> None:
        clock, plan = Clock(), cells()
        pace = begun(clock, plan)
        ends(pace, clock, plan[0], start_s=30, cell_s=60)
        assert pace.left_s == 7 * 60 + 3 * 30
        ends(pace, clock, plan[1], cell_s=60)
        ends(pace, clock, plan[2], start_s=10, cell_s=60)
        assert pace.left_s == 5 * 60 + 30 + 10, "one more start of each target's server, as its last one"

    def test_a_cell_is_expected_to_take_what_cells_of_its_load_took(self) -> None:
        """64 requests, say: 120 s at B = 1, 12 s at B = 16; awq is twice as fast."""
        clock, plan = Clock(), cells()
        pace = begun(clock, plan, start_s=0)
        ends(pace, clock, plan[0], cell_s=120)
        assert pace.left_s == 3 * 120 + 4 * 60 * 2, "twice what was expected, until another load was seen"
        ends(pace, clock, plan[1], cell_s=12)
        assert pace.left_s == 3 * 120 + 3 * 12
        ends(pace, clock, plan[2], cell_s=60)
        assert pace.left_s == 120 + 60 + 3 * 12

    def test_of_the_running_cell_its_share_counts_once_enough_of_it_is_over(self) -> None:
        clock, plan = Clock(), cells(("fp16",), (16,), 1)
        pace = begun(clock, plan)
        pace.progress(glance(plan[0], "warm-up", 0.0))
        clock.ns = 20 * 10**9
        pace.progress(glance(plan[0], share=0.1))
        assert pace.left_s == 40
        pace.progress(glance(plan[0], share=0.25))
        assert pace.left_s == 60
        pace.progress(glance(plan[0], "drain", 1.0))
        assert pace.left_s == 40

    def test_cells_of_a_server_that_does_not_come_up_take_no_time(self) -> None:
        clock, plan = Clock(), cells()
        pace = begun(clock, plan)
        clock.ns = 50 * 10**9
        pace.not_measured(plan[:2])
        assert (pace.ended, pace.counts["not_measured"], pace.counts["left"]) == (2, 2, 6)
        assert pace.left_s == 6 * 60 + 3 * 90


def plain(*ended: tuple[Cell, CellVerdict], simulated: bool = False) -> list[str]:
    out = io.StringIO()
    view = PlainView(Console(file=out, width=80))
    view.run_begins("title", Timetable(cells=cells(), cells_s=(0.0,) * 8), simulated)
    for cell, verdict in ended:
        view.progress(glance(cell))
        view.cell_ends(cell, "window 1.0 s", verdict)
    return out.getvalue().splitlines()


def test_a_finished_cell_is_a_line_of_results() -> None:
    line = plain((cells()[1], VALID))[-1]
    assert line.startswith(f"[1/8] fp16 B=16 repeat 1: {RESULT}; ")
    assert line.endswith(" left")


def test_its_line_says_why_it_is_not_valid_and_that_it_is_simulated() -> None:
    told = plain((cells()[1], CAPPED), (cells()[3], NO_LATENCY), simulated=True)
    assert told[0].startswith("SIMULATED")
    assert f"[1/8] SIMULATED fp16 B=16 repeat 1: {RESULT}; invalid: {CAPPED.reasons}; " in told[-2]
    assert f"[2/8] SIMULATED awq B=16 repeat 1: {RESULT}; latency invalid: client-bound; " in told[-1]


def test_what_was_not_measured_is_not_in_the_line() -> None:
    few = FIGURES | dict.fromkeys(("energy_per_token_j", "running_mean"))
    line = plain((cells()[1], CellVerdict(valid=True, figures=few)))[-1]
    assert "J/token" not in line and "running" not in line
    nothing = CellVerdict(valid=False, reasons="20 failures in a row")
    assert "repeat 1: window 1.0 s; invalid: 20 failures" in plain((cells()[1], nothing))[-1]


def test_a_search_counts_its_cells_and_says_nothing_of_the_time_left() -> None:
    out = io.StringIO()
    view = PlainView(Console(file=out, width=80))
    view.run_begins("title", Timetable(), False)
    view.cell_ends(cells()[1], "", VALID)
    line = out.getvalue().splitlines()[-1]
    assert line.startswith("[1] fp16 B=16 repeat 1: 2,210 tok/s, ")
    assert "left" not in line


def test_an_open_loop_has_its_rate() -> None:
    cell = replace(cells()[1], arrival="poisson:20")
    line = plain((cell, CellVerdict(valid=True, figures=FIGURES | {"rate_per_s": 19.84})))[-1]
    assert line.startswith("[1/8] fp16 poisson:20 repeat 1: 2,210 tok/s, 19.84 requests/s sent, TTFT ")


def test_quiet_says_which_cells_are_missing_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    view = QuietView()
    view.run_begins("title", Timetable(cells=cells(), cells_s=(0.0,) * 8), True)
    view.warn("a warning")
    view.not_measured(cells()[:2], "server 'fp16' ended with exit status 3; its log is L and ends:\nno GPU")
    assert capsys.readouterr() == (
        "", "warning: server 'fp16' ended with exit status 3; its log is L and ends:\n  no GPU\n"
    )  # fmt: skip


def screen(
    width: int, height: int, verdicts: Mapping[int, CellVerdict], *, ended: int, plan: Sequence[Cell]
) -> list[str]:
    """The live view when so many cells have ended and the next one runs."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    view = LiveView(console)
    view.run_begins("model · sample, 64 items · 2 targets", Timetable(cells=plan, cells_s=(6.0,) * len(plan)), True)
    for place, cell in enumerate(plan[:ended]):
        view.progress(glance(cell))
        view.cell_ends(cell, "", verdicts.get(place, VALID))
    view.progress(glance(plan[ended]))
    return ["".join(part.text for part in line).rstrip() for line in console.render_lines(view.drawn(), pad=False)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50), (40, 10)])
def test_the_live_view_fits_and_always_shows_the_time_left(width: int, height: int) -> None:
    plan = cells(("fp16", "awq", "gptq", "bnb-nf4"), (1, 16, 64, 128), 3)
    shown = screen(width, height, {3: CAPPED, 9: NO_LATENCY, 20: CAPPED}, ended=47, plan=plan)
    assert len(shown) < height
    assert max(map(len, shown)) <= width
    assert "left · cell 48 of 48" in shown[-1]
    assert shown[0].startswith("SIMULATED")


def test_it_keeps_the_table_of_finished_cells_with_the_running_one_last() -> None:
    shown = screen(80, 24, {}, ended=2, plan=cells())
    place = next(k for k, line in enumerate(shown) if "TTFT ms" in line)
    rows = [line.split() for line in shown[place + 2 : place + 5]]
    assert rows[0] == ["1", "fp16", "1", "1", "15.9", "2,210", "45.1", "80.2", "7.10", "0.0123", "12/16", "yes"]
    assert rows[1][:4] == ["2", "fp16", "16", "1"]
    assert rows[2] == ["3", "awq", "1", "1", "15.9", "2,000", "44.0", "7.00", "0.200", "12/16", "window"]
    assert "p50" in shown[place + 1] and "p99" in shown[place + 1]


def test_it_says_why_cells_are_not_valid_once_for_all_whose_reasons_differ_in_figures_alone() -> None:
    other = replace(CAPPED, reasons=CAPPED.reasons.replace("8.0", "7.25"))
    shown = screen(120, 40, {0: other, 2: CAPPED, 3: NO_LATENCY}, ended=5, plan=cells())
    assert f"#3 invalid: {CAPPED.reasons} (also #1)" in shown
    assert "#4 latency invalid: client-bound" in shown
    assert "left · cell 6 of 8, 2 invalid, 1 partly valid" in shown[-1]


def test_what_the_terminal_has_no_room_for_is_the_earliest_and_counted() -> None:
    plan = cells(repeats=20)
    shown = screen(80, 24, {}, ended=60, plan=plan)
    (left_out,) = (line for line in shown if line.startswith("…"))
    rows = [line for line in shown if line.split()[1:2] in (["fp16"], ["awq"])]
    assert rows[-1].split()[0] == "61"
    assert left_out == f"… {61 - len(rows)} earlier"


def test_200_columns_have_more_figures_than_80() -> None:
    wide, narrow = ("\n".join(screen(width, 50, {}, ended=2, plan=cells())) for width in (200, 80))
    for figure in ("E2E ms", "J/query", "requests", "errors"):
        assert figure in wide and figure not in narrow
    assert " W" in wide


def test_at_the_end_the_whole_table_stays() -> None:
    out, plan = io.StringIO(), cells(repeats=10)
    with LiveView(Console(file=out, force_terminal=True, width=80, height=24, color_system=None)) as view:
        view.run_begins("title", Timetable(cells=plan, cells_s=(6.0,) * len(plan)), False)
        for cell in plan:
            view.cell_ends(cell, "", CAPPED)
    tail = out.getvalue().splitlines()[-44:]
    rows = [line.split()[0] for line in tail if line.split()[1:2] in (["fp16"], ["awq"])]
    assert rows == [str(k) for k in range(1, 41)]
