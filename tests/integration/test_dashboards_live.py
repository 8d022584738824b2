"""Every query of every panel, asked of a real Prometheus that watched a simulated sweep.

Prometheus has docker/prometheus' own configuration and rules; only the addresses are other ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stack import Stack, stack
from programs import program

import loadgen
from loadgen.analysis.analyse import analyse

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "dashboards"))

from boards.live import Prometheus, Span, answer, interpolate, targets, variables  # noqa: E402

FILES = sorted((ROOT / "dashboards").glob("*.json"))
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
SWEPT = ("fp16", "awq")
BATCHES = (1, 4)
EMPTY = {
    ("Utilization", "A"): "the simulated GPU has no utilization counter",
    ("Resets and failed readings", "B"): "no reading of the simulated GPU fails",
}
"""Queries that may find nothing, by panel and refId, and why."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program("prometheus")
    batches = ",".join(map(str, BATCHES))
    options = {"concurrency": batches, "repeats": 1, "duration": 2.5}
    with stack(tmp_path_factory.mktemp("stack"), precisions=SWEPT, sweep=options) as found:
        yield found


def span_of(swept: Stack) -> Span:
    return Span(swept.start_s, swept.end_s)


def may_be_empty(panel: dict, target: dict) -> bool:
    """Listed, or the curve of a precision that was not swept; the 16-bit reference has no COR."""
    title = panel["title"].removesuffix(" · $stamp")
    if panel["type"] == "xychart":
        return target["refId"] not in (SWEPT[1:] if title.startswith("COR") else SWEPT)
    return (title, target["refId"]) in EMPTY


def found_empty(board: dict, swept: Stack) -> list[str]:
    """Panels and queries without one finite sample that are not allowed to be so."""
    prometheus, span = Prometheus(swept.url), span_of(swept)
    values = variables(board, prometheus, span)
    return [
        f"{panel['title']} {target['refId']}"
        for panel, target in targets(board)
        if not may_be_empty(panel, target)
        and not any(series.finite for series in answer(target, prometheus, values, span))
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_of_every_panel_finds_finite_figures(name: str, swept: Stack) -> None:
    assert found_empty(BOARDS[name], swept) == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_metric_that_is_called_otherwise_is_noticed(name: str, swept: Stack) -> None:
    metric = {
        "run": "loadgen_power_watts",
        "precisions": "batch:cor:ratio",
        "gpu-power": "loadgen_gpu_energy_joules_total",
        "servers": "vllm:iteration_tokens_total_count",
    }[name]
    board = json.loads(json.dumps(BOARDS[name]).replace(metric, f"{metric}_renamed"))
    assert found_empty(board, swept)


def test_every_allowance_is_for_a_query_that_there_is() -> None:
    asked = {(p["title"].removesuffix(" · $stamp"), t["refId"]) for board in BOARDS.values() for p, t in targets(board)}
    assert asked >= EMPTY.keys()


@pytest.mark.parametrize("name", BOARDS)
def test_every_title_says_simulated(name: str, swept: Stack) -> None:
    values = variables(BOARDS[name], Prometheus(swept.url), span_of(swept))
    titles = [interpolate(panel["title"], values) for panel in BOARDS[name]["panels"] if panel["type"] != "row"]
    assert all(title.endswith(" · SIMULATED") for title in titles)


@pytest.mark.parametrize("name", BOARDS)
def test_an_annotation_marks_the_start_of_every_cell(name: str, swept: Stack) -> None:
    cells = next(one for one in BOARDS[name]["annotations"]["list"] if one["name"] == "Cells")
    marks = {
        (series.labels["target"], series.labels["concurrency"]): {value / 1e3 for _, value in series.points}
        for series in Prometheus(swept.url).over(cells["expr"], span_of(swept))
    }
    assert marks.keys() == {(target, str(batch)) for target in SWEPT for batch in BATCHES}
    for begins in marks.values():
        (begin_s,) = begins
        assert swept.start_s < begin_s < swept.end_s


def test_the_curves_are_the_run_directorys_figures_up_to_a_glance(swept: Stack) -> None:
    """The live figure leaves out up to 0.25 s at either end of the window of 2.5 s, and its power is up to 0.75 s old:
    the first third of the glances may still show the GPU at rest."""
    analyse(swept.run_dir)
    prometheus = Prometheus(swept.url)
    for cell in loadgen.load_run(swept.run_dir).cells.to_dict("records"):
        where = f'{{target="{cell["target"]}", concurrency="{cell["concurrency"]}"}}'
        (valid,) = prometheus.instant(f"last_over_time(loadgen_ended_cell_valid{where}[1m])", swept.end_s)
        assert valid.points[0][1] == cell["valid"]
        for rule, column, within in (
            ("batch:output_tokens_per_second:mean", "tokens_per_s", 0.25),
            ("batch:energy_per_token_joules:mean", "energy_per_token_j", 0.6),
        ):
            (series,) = prometheus.instant(f"last_over_time({rule}{where}[1m])", swept.end_s)
            assert series.points[0][1] == pytest.approx(cell[column], rel=within)


def test_cor_is_that_of_the_tokens_per_second(swept: Stack) -> None:
    prometheus = Prometheus(swept.url)
    for batch in BATCHES:
        rate = {
            name: prometheus.instant(
                f'last_over_time(batch:output_tokens_per_second:mean{{target="{name}", concurrency="{batch}"}}[1m])',
                swept.end_s,
            )[0].points[0][1]
            for name in SWEPT
        }
        (cor,) = prometheus.instant(f'last_over_time(batch:cor:ratio{{concurrency="{batch}"}}[1m])', swept.end_s)
        assert cor.points[0][1] == pytest.approx(rate["fp16"] / rate["awq"] - 1)
