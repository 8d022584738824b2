"""Python and notebooks: the API, what a run shows of itself, and a sweep's progress as one output that is updated."""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
from pathlib import Path

import pytest
from made_run import make_run

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.errors import UsageError
from loadgen.measure import run as measuring
from loadgen.measure.observer import Progress, Timetable
from loadgen.record.cell import Cell, CellVerdict
from loadgen.reports.notebook import NotebookView, Run, outside_event_loop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("notebook") / "run"
    make_run(folder, targets=("fp16", "awq"), concurrency=(1, 16), repeats=2, simulated=True)
    analyse(folder)
    return loadgen.load_run(folder)


def test_dir_is_the_api() -> None:
    assert dir(loadgen) == sorted(loadgen.__all__)
    assert all(hasattr(loadgen, name) for name in loadgen.__all__)
    assert measuring.Interrupted is loadgen.Interrupted  # type: ignore[attr-defined]
    assert loadgen.Run is Run


def test_the_docstring_has_types_units_and_defaults() -> None:
    doc = inspect.getdoc(loadgen.sweep) or ""
    assert "concurrency (int | str | Sequence[int] | None): Batch sizes B to hold" in doc
    assert "duration (float | str | None; s): Length of a window.  [default: 60; simulated 1, or 10]" in doc
    assert re.search(r"max_error_rate \(float \| str; share\): .*\[default: 0.005\]", doc)


def test_the_answer_is_a_sentence_for_each_target(run: Run) -> None:
    targets = [target for target in run.summary["target"].unique() if target != run.analysis.reference]
    assert len(run.answer) == len(targets)
    for target, text in zip(targets, run.answer, strict=True):
        assert text.startswith(f"SIMULATED: {target} against {run.analysis.reference}: ")
        assert text.endswith(".")
        assert "<" not in text
        assert "|" not in text


@pytest.mark.parametrize("metric", ["tokens_per_s", "TTFT-ms-p50", "pareto"])
def test_a_plot_is_a_picture_with_its_caption(run: Run, metric: str) -> None:
    before = sorted(run.path.rglob("*"))
    plot = run.plot(metric)
    assert "<svg" in plot.svg
    shown = plot._repr_html_()
    (source,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', shown)
    assert base64.b64decode(source).decode() == plot.svg
    assert plot.caption.partition(".")[0] in shown
    assert repr(plot) == f"Plot({plot.title!r})"
    assert sorted(run.path.rglob("*")) == before, "nothing is written into the run"


def test_a_plot_of_something_else_says_what_there_is(run: Run) -> None:
    with pytest.raises(UsageError, match="no figure of 'token_per_s'; did you mean tokens_per_s"):
        run.plot("token_per_s")
    with pytest.raises(UsageError, match="has no figure of energy_per_query_j: it was not measured"):
        run.plot()


def test_a_crossover_is_named_in_any_letter_case_and_a_misspelt_one_is_answered_with_the_right_name(run: Run) -> None:
    assert run.crossover("AWQ", "Tokens-per-s") == run.crossover("awq", "tokens_per_s")
    with pytest.raises(UsageError, match="did you mean tokens_per_s"):
        run.crossover("awq", "token_per_s")
    with pytest.raises(UsageError, match="did you mean awq"):
        run.crossover("aqw", "tokens_per_s")


def test_a_run_shows_its_answer_and_one_figure(run: Run) -> None:
    shown = run._repr_html_()
    assert shown.count("<img ") == 1
    assert shown.count("<li>") == len(run.answer)
    assert str(run.path / "report.html") in shown
    assert "<script" not in shown


def test_progress_is_one_output_of_plain_text() -> None:
    shown: list[str] = []
    cell = Cell(index=1, target="f<16", precision="fp16", concurrency=4, repeat=1)
    moment = Progress(
        cell=cell, stage="window", in_flight=4, running=4.0, requests=9, errors=0, tokens_per_s=1234.0, ttft_ms=None,
        tpot_ms=None, power_w=None, accuracy=None, share=0.5,
    )  # fmt: skip
    view = NotebookView(lambda content: shown.append(content["text/html"]))
    view.run_begins("a title", Timetable(cells=(cell,), cells_s=(5.0,)), True)
    view.progress(moment)
    assert "[1/1] f&lt;16 B = 4: window, 1,234 tok/s" in shown[-1]
    view.cell_ends(cell, "window 1.0 s", CellVerdict(valid=True))
    view.warn("\x1b[31mred")
    assert shown[-1].startswith("<pre>SIMULATED: ")
    assert "window, 1,234 tok/s" not in shown[-1]
    assert "\x1b" not in shown[-1]
    assert shown[-1].count("\n") == 3


def test_a_loop_runs_where_a_notebooks_loop_waits() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 7

    async def cell_of_a_notebook() -> tuple[int, bool]:
        task = asyncio.current_task()
        with outside_event_loop(), asyncio.Runner() as runner:
            value = runner.run(inner())
        await asyncio.sleep(0)
        return value, asyncio.current_task() is task

    assert asyncio.run(cell_of_a_notebook()) == (7, True)
    with outside_event_loop(), asyncio.Runner() as runner:
        assert runner.run(inner()) == 7


def test_a_sweep_is_refused_before_anything_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--duration soon: not a time"):
        loadgen.sweep(duration="soon", out=tmp_path / "run")
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()
