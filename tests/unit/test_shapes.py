"""Several shapes of requests in one run: what is planned, which requests a cell sends, and which figures are shown."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest
from made_run import cell, ended, make_run, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.requests import Traces, read_cells
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.load.body import BodyChanges
from loadgen.measure.config import configure
from loadgen.measure.metrics import SweepMetrics
from loadgen.measure.plan import plan_sweep
from loadgen.record.cell import CellVerdict, TargetSpec, plan_blocks
from loadgen.serving.facts import Target
from loadgen.workload.dataset import load_dataset

SHAPES = ("8/8", "64/8")
NAMED = f"synthetic:{','.join(SHAPES)}"


def test_each_shape_of_each_b_is_a_cell_in_an_order_that_turns_round_with_every_repeat() -> None:
    [first, second] = plan_blocks([TargetSpec(name="a", precision="fp16")], [1, 4], 2, shapes=SHAPES)
    order = [(1, "8/8"), (1, "64/8"), (4, "8/8"), (4, "64/8")]
    assert [(cell.concurrency, cell.shape) for cell in first.cells] == order
    assert [(cell.concurrency, cell.shape) for cell in second.cells] == order[::-1]
    assert len({cell.label for cell in (*first.cells, *second.cells)}) == 8


def test_a_shape_has_its_own_prompts_as_many_as_if_it_were_alone() -> None:
    dataset = load_dataset(NAMED, limit=5)
    parts = [dataset.of_shape(shape) for shape in SHAPES]
    assert [{item.input_tokens for item in part.items} for part in parts] == [{8}, {64}]
    assert [{item.input_tokens for item in part.warmup} for part in parts] == [{8}, {64}]
    assert [len(part.items) for part in parts] == [5, 5]
    assert len({item.id for item in dataset.items}) == 10


def test_a_cell_asks_the_requests_of_its_shape_alone() -> None:
    plan = plan_sweep(configure(dataset=f"synthetic: {SHAPES[0]}, {SHAPES[1]}", limit=3, concurrency="1", repeats=1))
    assert plan.dataset_record.name == NAMED
    assert len(plan.cells) == 2 * len(plan.config.targets)
    for of in plan.cells:
        target = Target(name=of.target, precision=of.precision, url="http://127.0.0.1:1", model="m")
        asked = plan.assignment(target, of, BodyChanges()).items
        assert {f"{item.input_tokens}/{item.output_tokens}" for item in asked} == {of.shape}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "synthetic:8/8,8/8"}, "8/8 is listed twice"),
        ({"dataset": "synthetic:8/8,16"}, "write synthetic:IN/OUT"),
        ({"dataset": "synthetic:8/8,,16/8"}, "write synthetic:IN/OUT"),
        ({"dataset": NAMED, "find": "tokens_per_s"}, "one shape; give one, as in synthetic:8/8"),
    ],
)
def test_shapes_that_cannot_be_measured_are_refused_with_what_to_write(options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        configure(**options)  # type: ignore[arg-type]


def test_series_of_cells_that_differ_only_in_their_shape_are_told_apart() -> None:
    metrics = SweepMetrics(simulated=True, shapes=True)
    for of in plan_blocks([TargetSpec(name="a", precision="fp16")], [1], 1, shapes=SHAPES)[0].cells:
        metrics.cell_ends(of, "", CellVerdict(valid=True))
    labels = {"run": "", "target": "a", "precision": "fp16", "concurrency": "1", "arrival": "closed", "repeat": "1"}
    values = [metrics.registry.get_sample_value("loadgen_ended_cell_valid", labels | {"shape": s}) for s in SHAPES]
    assert values == [1, 1]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 targets x 2 B x 2 shapes x 2 repeats; the second shape has twice the throughput of the first."""
    run_dir = make_run(tmp_path_factory.mktemp("shapes") / "run", shapes=SHAPES)
    analyse(run_dir)
    return run_dir


def test_no_figure_mixes_shapes(run_dir: Path) -> None:
    run = load_run(run_dir)
    rates = run.every_summary.set_index(["target", "concurrency", "shape"])["tokens_per_s"]
    for target, b in product(("fp16", "awq"), (1, 2)):
        assert rates[target, b, "8/8"] == pytest.approx(105)
        assert rates[target, b, "64/8"] == pytest.approx(210)
    assert set(run.every_summary["repeats"]) == {2}
    assert run.shape == "8/8"
    assert list(run.summary["tokens_per_s"]) == pytest.approx([105] * 4)
    assert (len(run.cells), len(run.every_cell)) == (8, 16)
    assert run.complete
    assert [cell for cell, _ in read_cells(run.path, "awq", run.shape)] == [
        ("awq", b, r) for r in (1, 2) for b in (1, 2)
    ]
    assert all(len(requests) == b for (_, b, _), requests in read_cells(run.path, "awq", run.shape)), (
        "the requests of one shape alone"
    )
    traces = [Traces(run).of(cell, requests) for cell, requests in read_cells(run.path, "awq", run.shape)]
    assert [len(trace.running[0]) for trace in traces if trace.running] == [2] * 4, "server samples of one shape alone"
    compared = [test.comparison for test in run.analysis.trust]
    assert [of.output_tokens_mean for of in compared if of] == [105, 52.5], "lengths of answers of one shape alone"


def test_the_analysis_is_about_one_shape_the_first_or_the_one_that_is_named(run_dir: Path, tmp_path: Path) -> None:
    first = load_run(run_dir)
    analyse(run_dir, shape="64/8", out=tmp_path / "other")
    other = load_run(tmp_path / "other")
    assert [run.crossover("awq", "tokens_per_s").points[0].reference_value for run in (first, other)] == [
        pytest.approx(rate, rel=0.01) for rate in (105, 210)
    ]
    assert other.shape == "64/8"
    assert any("those of the shape 64/8" in warning for warning in other.analysis.warnings)
    with pytest.raises(UsageError, match=r"--shape 1/1: .* give one of 8/8, 64/8"):
        analyse(run_dir, shape="1/1", out=tmp_path / "none")


def test_what_is_invalid_is_told_with_its_shape(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "journal" / "002-fp16-b1-r1.jsonl").unlink()
    bad = cell(1, repeat=1, index=2, shape="64/8")
    write_cell(copy, bad, [], [], ended(None, aborted="the server died"))
    analyse(copy)
    [invalid] = {(one.shape, one.repeat) for one in load_run(copy).invalid if one.quantity == "load"}
    assert invalid == ("64/8", 1)
    assert any(warning.startswith("fp16, B = 1, 64/8, repeat 1: ") for warning in load_run(copy).analysis.warnings)


def test_of_a_run_that_was_killed_a_shape_that_was_measured_is_shown(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    for path in sorted((copy / "journal").glob("*.jsonl"))[::2]:
        path.unlink()
    analyse(copy)
    assert load_run(copy).shape == "64/8"
    with pytest.raises(UsageError, match="no measured cell of the shape 8/8; give --shape 64/8"):
        analyse(copy, shape="8/8")
    for path in (copy / "journal").glob("*.jsonl"):
        path.unlink()
    write_cell(copy, cell(1), [], [], ended(None, aborted="the server died"))
    with pytest.raises(UsageError, match="no measured cell of the shape 8/8"):
        analyse(copy)
