"""The report's figures: which are drawn, what each says of its points, and that they fit any page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib
import msgspec
import pyarrow.parquet as pq
import pytest
from made_answer import BATCHES, answered, cells, trusted
from made_run import answer, cell_data, made_open_run, make_run

from loadgen.analysis.analyse import Analysis, analyse, write_analysis
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.requests import Latencies, Traces, read_cells
from loadgen.analysis.run import Run, load_run
from loadgen.analysis.tables import summarize, write_cells, write_summary
from loadgen.analysis.trust.study import DepthTest
from loadgen.analysis.validity import Validity
from loadgen.reports.figures import Figure, draw_figures
from loadgen.reports.figures.curves import draw_backends, draw_curves, equal_bits, rests_on
from loadgen.reports.figures.requests import draw_latency, draw_timelines
from loadgen.reports.figures.sheet import COLOURS, GRID, INVALID, MOST_POINTS, STAMP, STYLE, TEXT, Sheet, looks_of
from loadgen.reports.html.answer import lead

BUCKET = {
    "items": 40, "accuracy": 0.5, "accuracy_lo": 0.4, "accuracy_hi": 0.6, "reference_accuracy": 0.6,
    "reference_accuracy_lo": 0.5, "reference_accuracy_hi": 0.7, "difference": -0.1, "difference_lo": -0.2,
    "difference_hi": 0.0, "relative_loss": 0.167, "relative_loss_lo": 0.0, "relative_loss_hi": 0.33,
}  # fmt: skip
TABLE = {"n": 40, "both_right": 18.0, "lost": 6.0, "won": 2.0, "both_wrong": 14.0}
DEPTH = {
    "target": "awq", "reference": "fp16", "measure": "steps", "curve": {
        "buckets": [BUCKET | {"steps": s, "table": TABLE} for s in ("7+", "1-2", "3-4")],
        "items_without_depth": 0, "absolute": None, "relative": None, "survival": None,
    },
}  # fmt: skip
PANELS = {"advantage": 5, "by-precision": 4, "pillars": 4, "depth": 3}
NAMES = [
    "throughput", "energy", "energy-correct", "accuracy", "ttft", "tpot", "e2e", "si", "cor", "advantage",
    "by-precision", "pillars", "depth", "ttft-distribution", "tpot-distribution", "e2e-distribution",
    "time-fp16", "time-awq",
]  # fmt: skip


def made_run(folder: Path, *, simulated: bool, spoiled: int = 0) -> Run:
    """The closed-form run of `made_answer`; of awq's cells at B = 64 the first `spoiled` repeats are invalid."""
    run_dir = make_run(folder / "run", concurrency=BATCHES, repeats=3, simulated=simulated)
    analyse(run_dir)
    data = cell_data(folder / "cell", [answer(1100, [(1200, 1), (1300, 1)])])
    base = msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()), simulated=simulated)
    made = [_spoil(cell) if _place(cell) in [("awq", 64, k + 1) for k in range(spoiled)] else cell
            for cell in cells(base)]  # fmt: skip
    result, (answers, trust) = answered(made), trusted()
    write_cells(run_dir, made)
    write_summary(run_dir, summarize(made, answers, trust, result.indices))
    depth = (msgspec.convert(DEPTH, DepthTest),)
    parts = msgspec.structs.asdict(trust) | msgspec.structs.asdict(result.indices) | {"depth": depth}
    analysis = Analysis(reference="fp16", simulated=simulated, invalid=(), crossovers=result.crossovers, **parts)
    write_analysis(run_dir, analysis)
    return Run(run_dir)


def _place(cell: CellSummary) -> tuple[str, int, int]:
    return cell.target, cell.concurrency, cell.repeat


def _spoil(cell: CellSummary) -> CellSummary:
    return msgspec.structs.replace(cell, validity=Validity(load=("7 preemptions",), energy=()))


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """As within `draw_figures`."""
    with matplotlib.rc_context(STYLE):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("made"), simulated=True)


@pytest.fixture(scope="module")
def figures(run: Run) -> dict[str, Figure]:
    return {figure.name: figure for figure in draw_figures(run)}


def svg_of(figure: Figure) -> str:
    return figure.svg.read_text(encoding="utf-8")


def tips_of(figure: Figure, target: str) -> dict[str, str]:
    return {gid: tip for gid, tip in figure.tips.items() if gid.startswith(f"pt-{target}-")}


def x_of(svg: str, gid: str) -> float:
    """Where the group's first mark stands: a marker's `use`, else the first point of its path."""
    group = re.sub(r"<defs>.*?</defs>", "", svg[svg.index(f'id="{gid}"') :], flags=re.DOTALL)
    found = re.search(r'<use [^>]*?x="([\d.]+)"|<path d="M ([\d.]+)', group)
    assert found is not None
    return float(found[1] or found[2])


def test_the_figure_of_the_first_screen_is_energy_where_it_was_measured(figures: dict[str, Figure]) -> None:
    drawn = list(figures.values())
    assert lead(drawn) is figures["energy"]
    assert lead([figure for figure in drawn if not figure.name.startswith("energy")]) is figures["throughput"]
    assert lead([]) is None


@pytest.mark.slow
def test_all_that_the_data_allow_is_drawn_in_the_page_s_order(figures: dict[str, Figure]) -> None:
    assert list(figures) == NAMES, "no joules per token and no watts were measured here"
    sections = [figure.section for figure in figures.values()]
    assert sections == ["answer"] * 10 + ["paper"] * 3 + ["latency"] * 3 + ["time"] * 2
    for figure in figures.values():
        assert figure.svg.stat().st_size < 150_000
        assert figure.png.read_bytes().startswith(b"\x89PNG")
        assert figure.svg.name == f"{figure.name}.svg" and figure.title and figure.alt
        assert figure.caption.endswith(".") and re.search(r"Numbers: \w+\.(csv|json|parquet)", figure.caption)


def test_a_point_says_its_figures(figures: dict[str, Figure]) -> None:
    """awq at B = 16 makes 100 x 16 x (64 / 16) ^ 0.5 / 2 = 1600 tokens/s, at 1% of spread."""
    said = [tip for tip in tips_of(figures["throughput"], "awq").values() if "B = 16:" in tip]
    assert len(said) == 1
    assert said[0].startswith("SIMULATED · awq · B = 16: running 16.0, 1,600 tok/s (1,5")


def test_batches_stand_on_a_logarithmic_axis(figures: dict[str, Figure]) -> None:
    """1, 4, 16, 64: equal steps."""
    svg = svg_of(figures["throughput"])
    x = [x_of(svg, f"pt-fp16-{k}") for k in (1, 2, 3, 4)]
    steps = [b - a for a, b in pairwise(x)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.05) and steps[0] > 20


def test_the_crossover_stands_at_b_star_and_says_its_sentence(figures: dict[str, Figure]) -> None:
    """B* = 64 / 9 lies log(16 / 9) / log(4) of the way from 4 to 16."""
    figure = figures["energy"]
    (gid,) = [gid for gid, tip in figure.tips.items() if "B* =" in tip]
    assert figure.tips[gid].startswith("SIMULATED · awq uses less energy per query than fp16 up to B = 4 and more")
    svg = svg_of(figure)
    left, right = x_of(svg, "pt-awq-2"), x_of(svg, "pt-awq-3")
    share = (x_of(svg, gid) - left) / (right - left)
    assert share == pytest.approx(math.log(16 / 9) / math.log(4), abs=0.03)


def test_cor_has_its_value_and_its_interval(figures: dict[str, Figure]) -> None:
    """Twice as fast at B = 4: COR = 1 / 2 - 1."""
    tips = tips_of(figures["cor"], "awq")
    assert list(tips) == [f"pt-awq-{k}" for k in (1, 2, 3, 4)]
    assert re.search(r"awq · B = 4: running 4\.00, COR −0\.500 \(−0\.5\d* to −0\.4\d*\)", tips["pt-awq-2"])
    assert not tips_of(figures["cor"], "fp16"), "the reference is the line at 0"


def test_the_advantage_is_how_many_times_better(figures: dict[str, Figure]) -> None:
    """tokens/s at B = 1: (64 / 1) ^ 0.5 / 2 = 4; joules per query: 1.5 / 4 of fp16's, 2.67 times better."""
    tips = [tip for tip in figures["advantage"].tips.values() if "B = 1:" in tip]
    assert any(re.search(r"tokens/s 4.00 times better .*, wins", tip) for tip in tips)
    assert any("energy per query 2.67 times better" in tip for tip in tips)


def test_pillars_and_precisions_have_a_row_for_each_target_and_batch(figures: dict[str, Figure]) -> None:
    """awq at B = 4: E_SI = 2.4 (see test_answer); fp16 has no pillars, being 1 by definition."""
    asked = [name for name in ("accuracy", "by-precision") if "n = 200 questions" not in figures[name].caption]
    assert asked == [], "an accuracy without its n"
    assert any(" of n = 200" in tip for tip in figures["accuracy"].tips.values())
    assert len(tips_of(figures["by-precision"], "fp16")) == 3 * 4, "tokens/s, J/query, accuracy at four B"
    assert len(tips_of(figures["by-precision"], "awq")) == 4 * 4
    assert any("awq · B = 4: E_SI (speed, memory) 2.4" in tip for tip in figures["pillars"].tips.values())
    assert not tips_of(figures["pillars"], "fp16")


def test_depth_is_in_the_order_of_steps(figures: dict[str, Figure]) -> None:
    svg = svg_of(figures["depth"])
    places = [svg.index(f">{steps}</text>") for steps in ("1-2", "3-4", "7+")]
    assert places == sorted(places)
    assert "SIMULATED · awq · 7+ steps, 40 items: difference −10.0 pp (−20.0 to 0)" in figures["depth"].tips.values()
    assert "SIMULATED · fp16 · 3-4 steps, 40 items: accuracy 60.0% (50.0 to 70.0)" in figures["depth"].tips.values()


def test_every_id_is_there_once_and_every_tip_has_its_mark(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        svg = svg_of(figure)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids)), figure.name
        assert set(figure.tips) <= set(ids), figure.name
        assert {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)} <= set(ids)
    assert {"series-fp16", "series-awq", "legend-fp16", "legend-awq"} <= set(
        re.findall(r'\bid="([^"]+)"', svg_of(figures["throughput"]))
    )


def test_a_page_can_recolour_all_but_the_data(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        svg = svg_of(figure)
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {TEXT, GRID, INVALID, STAMP, *COLOURS}, figure.name
        assert not re.search(r"(?:fill|stroke): *(?:white|black|none; fill)", svg)
        assert "<image" not in svg and "@font-face" not in svg


def test_a_simulated_run_says_so_across_every_panel_and_in_every_word(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        panels = PANELS.get(figure.name, 12 if figure.section == "time" else 4 if figure.section == "latency" else 1)
        assert svg_of(figure).count(">SIMULATED</text>") == panels, figure.name
        words = (figure.caption, figure.alt, *figure.tips.values())
        assert all(text.startswith("SIMULATED") for text in words)


def test_invalid_cells_are_grey_crosses_that_say_why(tmp_path: Path) -> None:
    """Two of three repeats at B = 64 are invalid: one mark for both, and the third alone makes the mean."""
    run = made_run(tmp_path, simulated=False, spoiled=2)
    looks = looks_of(["fp16", "awq"])
    figure = next(draw_curves(run, looks, tmp_path))
    assert figure.name == "throughput" and "Grey crosses: cells in which it is invalid" in figure.caption
    assert "awq · B = 64, repeat 1, 2: invalid, 7 preemptions" in figure.tips.values()
    assert INVALID in svg_of(figure) and "invalid cell</text>" in svg_of(figure)
    traces = Traces(run)
    of_cells = {cell: traces.of(cell, rows) for cell, rows in read_cells(run.path) if cell[:2] == ("awq", 64)}
    (time,) = draw_timelines(run, looks, tmp_path, of_cells)
    assert re.findall(r">B = 64, repeat (\d)(.*?)</text>", svg_of(time)) == [
        ("1", ": invalid ×"), ("2", ": invalid ×"), ("3", ""),
    ]  # fmt: skip


def test_what_was_not_measured_has_no_figure_and_what_was_is_not_called_simulated(tmp_path: Path) -> None:
    """A single target at one B without power: nothing to compare, no curve of energy."""
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(2,), repeats=1)
    analyse(run_dir)
    drawn = draw_figures(Run(run_dir))
    names = [figure.name for figure in drawn]
    assert names == [
        "throughput", "accuracy", "ttft", "tpot", "e2e", "by-precision",
        "ttft-distribution", "tpot-distribution", "e2e-distribution", "time-fp16",
    ]  # fmt: skip
    assert sorted(path.name for path in (run_dir / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    )
    for figure in drawn:
        words = (svg_of(figure), figure.caption, figure.alt, *figure.tips.values())
        assert not any("SIMULATED" in text for text in words)


def test_the_same_run_gives_the_same_bytes_and_needs_no_token_times(
    run: Run, figures: dict[str, Figure], tmp_path: Path
) -> None:
    path = run.path / "requests.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["token_times", "text"]), path)
    latencies = Latencies(run)
    for cell, rows in read_cells(run.path):
        latencies.add(cell, rows)
    looks = looks_of(["fp16", "awq"])
    again = [next(draw_curves(run, looks, tmp_path)), *draw_latency(run, looks, tmp_path, latencies)]
    assert len(again) == 4
    for figure in again:
        assert figure.svg.read_bytes() == figures[figure.name].svg.read_bytes()
        assert figure.png.read_bytes() == figures[figure.name].png.read_bytes()
        assert figure.tips == figures[figure.name].tips


def test_equal_bits_in_different_kernels_are_compared(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16", "awq", "bnb-nf4", "fp8"), concurrency=(1, 2), repeats=2)
    analyse(run_dir)
    run = Run(run_dir)
    assert equal_bits(run) == {4: ["awq", "bnb-nf4"]}
    (figure,) = draw_backends(run, looks_of(run.summary["target"]), tmp_path)
    assert figure is not None
    assert figure.name == "backends-4-bit" and "Figure 6" in figure.caption
    assert {gid.rsplit("-", 1)[0] for gid in figure.tips} == {"pt-awq", "pt-bnb-nf4"}
    pattern = r"awq · B = 1: running 1\.00, tokens/s over fp16's 1\.00\b"
    assert any(re.match(pattern, tip) for tip in figure.tips.values())


def test_a_figure_of_many_points_keeps_its_ids_few(tmp_path: Path) -> None:
    """All are drawn; from a limit on they belong to their series and have no tip."""
    sheet = Sheet(looks_of(["fp16"]), simulated=False)
    for k in range(MOST_POINTS + 20):
        sheet.point(sheet.axes[0], "fp16", k, k, f"point {k}")
    figure = sheet.save(tmp_path, "many", "answer", "Many", "Many.", "Many")
    assert len(figure.tips) == MOST_POINTS
    assert svg_of(figure).count('id="series-fp16') == 20


def test_the_note_of_an_open_loop_tells_how_many_repeats_its_rate_rests_on(tmp_path: Path) -> None:
    run_dir = made_open_run(tmp_path / "run", targets=("fp16", "awq"), arrival="poisson:4", repeats=2)
    analyse(run_dir)
    assert rests_on(load_run(run_dir), "running_mean") == {
        ("fp16", 4.0): ", n = 2 repeats",
        ("awq", 4.0): ", n = 2 repeats",
    }
