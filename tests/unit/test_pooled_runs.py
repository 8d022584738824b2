"""Runs of one model on several GPUs as one: a difference between GPUs is in no comparison of precisions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from made_models import GPU, SLOPE, model_run
from made_run import make_run
from scipy import stats

import loadgen
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.compare.gpus import _differs, _estimate
from loadgen.errors import UsageError
from loadgen.record.grid import GridRecord, Place, Task, receipt_of, write_grid, write_receipt
from loadgen.record.pool import pool_runs, runs_in
from loadgen.reports.html.grid import write_index

FASTER = 1.1
"""The second GPU over the first, in everything."""


def grid(folder: Path, made: dict[str, dict[str, float]]) -> Path:
    tasks = []
    for name, options in made.items():
        size = options["parameters"]
        model_run(folder / "runs" / name, n_star=2e9, gpus=[GPU | {"uuid": f"GPU-{name[-1]}"}], **options)  # type: ignore[arg-type]
        tasks.append(Task(id=name, model=f"m-{size:g}", gpu=int(name[-1]), repeats=3, options={}))
        place = Place(node="n", gpus=(f"GPU-{name[-1]}",))
        run_dir = folder / "runs" / name
        write_receipt(run_dir, receipt_of(run_dir, tasks[-1], 1, place))
    write_grid(folder, GridRecord(name="g", loadgen="0", simulated=False, tasks=tuple(tasks)))
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunComparison, Path]:
    folder = grid(
        tmp_path_factory.mktemp("grid"),
        {
            "a-g1": {"parameters": 1e9}, "a-g2": {"parameters": 1e9, "speed": FASTER},
            "b-g1": {"parameters": 4e9}, "b-g2": {"parameters": 4e9, "speed": FASTER},
        },
    )  # fmt: skip
    return loadgen.compare(folder, out=folder), folder


def test_a_grid_is_compared_as_one_run_per_model(compared: tuple[RunComparison, Path]) -> None:
    rows = [row for row in compared[0].rows if not row.is_reference]
    assert [(row.run, row.repeats, row.pairs) for row in rows] == [("a", 6, 6), ("b", 6, 6)]


def test_a_faster_gpu_is_no_difference_between_precisions(compared: tuple[RunComparison, Path]) -> None:
    """awq over fp16 is (N / N*)^SLOPE on both; the other GPU's 10% are in neither its value nor its interval."""
    comparison, _ = compared
    effects = {one.run: one for one in comparison.gpus.precisions if one.metric == "tokens_per_s"}
    for run, size in (("a", 1e9), ("b", 4e9)):
        expected, effect = (size / 2e9) ** SLOPE, effects[run]
        assert effect.change.value == pytest.approx(expected, rel=2e-3)
        half = stats.t.ppf(0.975, 4) * 0.02 / math.sqrt(6)  # repeats are 2% apart in log(awq / fp16)
        assert effect.change.lo is not None and effect.change.hi is not None
        assert math.log(effect.change.hi / effect.change.lo) == pytest.approx(2 * half, rel=0.05)
        assert effect.differs is False
        assert [gpu.gpu for gpu in effect.gpus] == ["GPU-1", "GPU-2"]
    cor = {row.run: row for row in comparison.rows if not row.is_reference}
    lo, hi = cor["a"].cor_lo, cor["a"].cor_hi
    assert lo is not None and hi is not None
    assert math.log1p(hi) - math.log1p(lo) < 0.06  # 10% between GPUs would make it 0.3


def test_how_far_the_gpus_differ_is_told_by_itself(compared: tuple[RunComparison, Path]) -> None:
    levels = [one for one in compared[0].gpus.gpus if one.metric == "tokens_per_s"]
    assert [(one.run, one.gpu, one.first) for one in levels] == [("a", "GPU-2", "GPU-1"), ("b", "GPU-2", "GPU-1")]
    assert all(one.change.value == pytest.approx(FASTER, rel=2e-3) for one in levels)
    assert "GPUs over each other" in (compared[1] / "compare.html").read_text()


def test_n_star_rests_on_the_pooled_runs(compared: tuple[RunComparison, Path]) -> None:
    (found,) = compared[0].n_stars
    assert found.status == "crosses"
    assert found.crossings[0].n == pytest.approx(2e9, rel=0.05)


def test_a_precision_that_gains_more_on_one_gpu_is_said_and_its_interval_is_over_gpus() -> None:
    """Means 0 and 0.5 with repeats 0.01 apart: F is large; two GPUs have one degree of freedom, t = 12.7."""
    groups = [[-0.01, 0.0, 0.01], [0.49, 0.5, 0.51]]
    assert _differs(groups, 1) is True
    estimate = _estimate(groups, over_gpus=True)
    assert estimate.lo is not None
    assert math.log(estimate.value / estimate.lo) == pytest.approx(stats.t.ppf(0.975, 1) * 0.25)
    assert _differs([[0.1], [0.2]], 1) is None
    assert _differs([[-0.01, 0.01], [-0.02, 0.02]], 1) is False


def test_the_report_of_a_grid_leads_to_every_run_and_to_the_comparison(compared: tuple[RunComparison, Path]) -> None:
    folder, reported = compared[1], list[Path]()
    text = write_index(folder, reported.append).read_text()
    places = ["pooled/a", "pooled/b", "runs/a-g1", "runs/a-g2", "runs/b-g1", "runs/b-g2"]
    assert [path.relative_to(folder).as_posix() for path in reported] == places
    for link in ("compare.html", *(f"{place}/report.html" for place in places)):
        assert f'href="{link}"' in text


def test_one_run_of_several_is_named(compared: tuple[RunComparison, Path]) -> None:
    folder = compared[1]
    with pytest.raises(UsageError, match=r"is a grid of 2 runs; name one of them: .*pooled/a, .*pooled/b"):
        loadgen.load_run(folder)
    assert loadgen.load_run(folder / "pooled" / "a").manifest.config.repeats == 6


def test_a_pooled_run_is_made_again_only_when_its_runs_changed(compared: tuple[RunComparison, Path]) -> None:
    folder = compared[1]
    first = {path.name: (path / "manifest.json").stat().st_mtime_ns for path in runs_in(folder)}
    assert {path.name: (path / "manifest.json").stat().st_mtime_ns for path in runs_in(folder)} == first
    receipt = folder / "runs" / "a-g1" / "task.json"
    content = json.loads(receipt.read_text())
    receipt.write_bytes(msgspec.json.encode(content | {"attempt": 2}))
    again = {path.name: (path / "manifest.json").stat().st_mtime_ns for path in runs_in(folder)}
    assert again["a"] > first["a"] and again["b"] == first["b"]


def test_runs_that_measured_something_else_are_not_pooled(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", concurrency=(1, 4))]
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="did not measure the same thing; compare them as two runs"):
        pool_runs(runs, tmp_path / "out")
