"""A search for B* by its run directory: cells made by hand, with known curves, take the place of servers."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from made_run import manifest, valid_cell
from msgspec.structs import replace

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Run, load_run
from loadgen.errors import UsageError
from loadgen.measure.plan import blocks_left
from loadgen.record.cell import Start, Step, step_blocks
from loadgen.record.journal import cell_file
from loadgen.record.manifest import Manifest, read_manifest
from loadgen.reports.html.sections import search as section
from loadgen.reports.terminal import end_lines
from loadgen.search.readings import Readings

B_STAR = 6.0
"""awq's throughput over fp16's is (B_STAR / B) ** 0.3."""
METRIC = "tokens_per_s"


def write(run_dir: Path, told: Manifest) -> None:
    (run_dir / "manifest.json").write_bytes(msgspec.json.encode(told))


def measure(run_dir: Path, told: Manifest, ratio: Callable[[int], float], draws: random.Random) -> None:
    """The cells that the last step lacks; `ratio`: awq's throughput over fp16's; starts of a server differ by 0.5%."""
    for block in step_blocks(told.config.targets, told.steps):
        noise = math.exp(draws.gauss(0, 0.005))
        for cell in block.cells:
            if not cell_file(run_dir, cell).exists():
                rate = 400 * cell.concurrency**0.6 * (noise if cell.target == "fp16" else 1)
                rate *= ratio(cell.concurrency) if cell.target == "awq" else 1
                valid_cell(run_dir, cell, tokens_per_s=round(rate))


def searched(run_dir: Path, ratio: Callable[[int], float]) -> Run:
    """A run of a search from its first step to its end."""
    config = {
        "mode": "target", "reference": "fp16", "concurrency": [1, 32],
        "targets": [{"name": name, "precision": name} for name in ("awq", "fp16")],
        "repeats": 3, "model": "some/model", "duration_s": 1.0, "requests": None, "find": [METRIC],
    }  # fmt: skip
    (run_dir / "manifest.json").write_text(json.dumps(manifest(config)))
    (run_dir / "items.json").write_text('{"q1": "5", "q2": "8"}')
    told, draws = read_manifest(run_dir), random.Random(5)
    readings = Readings(run_dir, told)
    while (step := readings.search(told).next) is not None:
        told = replace(told, steps=(*told.steps, step))
        write(run_dir, told)
        measure(run_dir, told, ratio, draws)
    analyse(run_dir)
    return load_run(run_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return searched(tmp_path_factory.mktemp("find"), lambda b: (B_STAR / b) ** 0.3)


def test_no_crossing_in_the_range_is_an_answer_after_three_starts_of_each_side(tmp_path: Path) -> None:
    """25% faster: Student's t of three repeats that differ by 0.5% is 0.22 / (0.005 / sqrt(3)) = 77, and 7 is
    needed."""
    found = searched(tmp_path, lambda b: 1.25)
    assert [step.repeat for step in found.manifest.steps] == [1, 2, 3]
    said = "awq is faster than fp16 at every B from 1 to 32 (proven at B = 1, 3, 10, 32; false in at most 5%)"
    crossover = found.crossover("awq", METRIC)
    assert (crossover.status, crossover.crossings, crossover.sentence) == ("better", (), said)
    assert said in section(found)


def test_it_finds_b_star_within_the_goal(run: Run) -> None:
    found = run.crossover("awq", METRIC)
    (crossing,) = found.crossings
    assert (found.status, crossing.direction) == ("crosses", "wins_below")
    assert crossing.lo is not None
    assert crossing.hi is not None
    assert crossing.lo < B_STAR < crossing.hi
    assert crossing.hi / crossing.b < 1.1
    assert run.complete


def test_wherever_it_is_interrupted_the_journal_leads_to_the_same_next_step(run: Run) -> None:
    told = run.manifest
    for done, step in enumerate(told.steps):
        so_far = replace(told, steps=told.steps[:done])
        assert Readings(run.path, so_far).search(so_far).next == step
    assert blocks_left(run.path, told) == ()


def test_what_an_interrupted_step_lacks_is_what_is_left(run: Run) -> None:
    last = run.manifest.steps[-1]
    (run.path / "journal").rename(run.path / "elsewhere")
    try:
        left = blocks_left(run.path, replace(run.manifest, steps=run.manifest.steps[:1]))
    finally:
        (run.path / "elsewhere").rename(run.path / "journal")
    assert {(block.target.name, block.repeat) for block in left} == {("fp16", 1), ("awq", 1)}
    assert last.phase == "repeat"


def test_cells_that_located_b_star_are_in_no_interval_at_a_b_that_was_repeated(run: Run) -> None:
    cells, summary = run.cells, run.summary.set_index(["target", "concurrency"])
    assert set(cells.loc[cells["repeat"] == 1, "phase"]) == {"locate"}
    repeats = cells[cells["phase"] == "repeat"].groupby(["target", "concurrency"]).size()
    assert len(repeats) == 4, "one B below and one above B*"
    assert {at: int(summary.loc[at, "repeats"]) for at in repeats.index} == repeats.to_dict()
    others = summary.drop(repeats.index)
    assert set(others["repeats"]) == {1}
    assert others["tokens_per_s_lo"].isna().all(), "a single start has no interval"


def test_a_repeat_is_read_without_the_answers_that_located_b_star(tmp_path: Path) -> None:
    """Joules per query count the answers' lengths: 10 and 20 tokens in the repeat. At the same B, those of awq that
    located B* had 25."""
    metric = "energy_hli_per_query_j"
    config = {
        "mode": "target", "reference": "fp16", "concurrency": [1, 32], "tdp_w": 300.0, "repeats": 3,
        "targets": [{"name": name, "precision": name} for name in ("awq", "fp16")],
        "model": "some/model", "duration_s": 1.0, "requests": None, "find": [metric],
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(config)))
    (tmp_path / "items.json").write_text("{}")
    steps = (
        Step("locate", 1, (Start("fp16", (1, 4)), Start("awq", (1, 4)))),
        Step("repeat", 2, (Start("fp16", (4,)), Start("awq", (4,)))),
    )
    told = replace(read_manifest(tmp_path), steps=steps)
    for block in step_blocks(told.config.targets, told.steps):
        for cell in block.cells:
            length = 20 if cell.target == "fp16" else 25 if cell.repeat == 1 else 10
            valid_cell(tmp_path, cell, tokens_per_s=1000, length=length, each_its_item=True)
    fp16, awq = (reading.values[metric] for reading in Readings(tmp_path, told).read(told)[-2:])
    assert fp16
    assert awq
    assert awq / fp16 == pytest.approx(10 / 20, rel=0.02), "the same joules per token"


def test_the_search_is_told_step_by_step(run: Run) -> None:
    story = run.analysis.search
    assert story is not None
    assert [chapter.repeat for chapter in story.chapters] == [step.repeat for step in run.manifest.steps]
    first, *_, last = story.chapters
    assert {mark.concurrency: mark.ratio > 1 for mark in first.marks if mark.ratio} == {
        1: True,
        3: True,
        10: False,
        32: False,
    }
    (known,) = last.known
    (answer,) = story.answers
    assert (known.b, known.lo, known.hi) == (answer.crossings[0].b, answer.crossings[0].lo, answer.crossings[0].hi)
    assert story.ended


def test_page_and_terminal_say_what_the_search_found(run: Run) -> None:
    (answer,) = run.analysis.search.answers if run.analysis.search else ()
    assert answer.sentence in section(run)
    told = re.search(r"Each 1% by which it would change the ratio moves B\* by about ([\d.]+)% \(awq", section(run))
    assert told is not None, "servers were kept"
    assert float(told[1]) == pytest.approx(1 / 0.3, rel=0.2), "the slope is 0.3"
    assert any(answer.sentence in line for line in end_lines(run, 200))


def test_a_run_whose_steps_this_version_would_not_have_taken_is_not_continued(run: Run, tmp_path: Path) -> None:
    other = Step("locate", 1, (Start("fp16", (2,)), Start("awq", (2,))))
    told = replace(run.manifest, steps=(other,))
    for block in step_blocks(told.config.targets, told.steps):
        for cell in block.cells:
            valid_cell(tmp_path, cell)
    (tmp_path / "items.json").write_text('{"q1": "5", "q2": "8"}')
    write(tmp_path, told)
    with pytest.raises(UsageError, match="would have searched otherwise"):
        blocks_left(tmp_path, told)
    analyse(tmp_path)
    assert load_run(tmp_path).analysis.search is None
