"""The verdict on a cell that has just ended is that of cells.csv, and observers tell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_run import MS, answer, cell, ended, make_run, scrape, write_cell
from rich.console import Console

import loadgen
from loadgen.analysis import energy
from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cellresult import judge_cell
from loadgen.analysis.energy import read_power
from loadgen.errors import UsageError
from loadgen.measure.observer import Timetable
from loadgen.power.sample import PowerSample
from loadgen.record.cell import CellVerdict
from loadgen.record.journal import Journal, cell_files, power_file, read_lines, sealed
from loadgen.record.manifest import read_manifest
from loadgen.reports.live import PlainView

CAPPED = "running batch 2.00 did not reach B = 4"


def capped_cell(run_dir: Path, index: int) -> Path:
    """B = 4 was asked and held in flight, 2 ran and 2 waited."""
    tokens = [(1000 + 10 * (k + 1), 1) for k in range(100)]
    asked = [answer(900, tokens, slot=slot, item_id="q1", text="#### 5") for slot in range(4)]
    samples = [scrape(t, running=2.0, waiting=2.0) for t in (1100, 1900)]
    return write_cell(run_dir, cell(4, index=index), asked, samples, ended())


def test_it_is_that_of_cells_csv(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), repeats=1)
    capped_cell(run_dir, 3)
    write_cell(run_dir, cell(8, index=4), [answer(900, [(1500, 1)])], [], ended(None, aborted="the server died"))
    verdicts = [judge_cell(run_dir, path) for path in cell_files(run_dir)]
    cells = loadgen.load_run(run_dir).cells
    assert [verdict.valid for verdict in verdicts] == [True, True, False, False] == list(cells["valid"])
    assert [verdict.reasons for verdict in verdicts] == list(cells["reasons"])
    assert verdicts[2].reasons.startswith(CAPPED)
    assert verdicts[3].reasons == "the server died"


@pytest.mark.parametrize(("max_error_rate", "valid"), [(None, False), (0.4, False), (0.5, True)])
def test_the_errors_that_are_allowed_are_the_manifests(
    tmp_path: Path, max_error_rate: float | None, valid: bool
) -> None:
    """One of two requests failed; its answers stand or fall by the same limit."""
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    if max_error_rate is not None:
        manifest = json.loads((run_dir / "manifest.json").read_text())
        manifest["config"]["max_error_rate"] = max_error_rate
        (run_dir / "manifest.json").write_text(json.dumps(manifest))
    (path,) = cell_files(run_dir)
    path.unlink()
    asked = [answer(900, [(1500, 10)], item_id="q1", text="#### 5")]
    asked += [answer(1500, end=2100, item_id="q1", status="http", error="503: full")]
    write_cell(run_dir, cell(1), asked, [scrape(1100, running=1.0), scrape(1900, running=1.0)], ended())
    run = loadgen.load_run(run_dir)
    assert judge_cell(run_dir, path).valid is valid
    assert list(run.cells["valid"]) == [valid]
    assert run.summary["accuracy"].notna().all() == valid


def test_a_journal_beyond_the_limit_is_left_to_the_report(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), repeats=1)
    path = cell_files(run_dir)[0]
    size = path.stat().st_size
    assert judge_cell(run_dir, path, largest_bytes=size).valid
    verdict = judge_cell(run_dir, path, largest_bytes=size - 1)
    assert verdict.valid is None
    assert "is read by the report only" in verdict.reasons


@pytest.mark.parametrize("place", ["elsewhere", "itself"])
def test_a_journal_that_is_a_link_is_refused_before_its_size_is_asked(tmp_path: Path, place: str) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), repeats=1)
    path, power = cell_files(run_dir)[0], power_file(run_dir, "fp16", 1)
    power.parent.mkdir(exist_ok=True)
    for linked in (path, power):
        target = linked.rename(tmp_path / linked.name) if linked == path and place == "elsewhere" else linked
        linked.unlink(missing_ok=True)
        linked.symlink_to(target)
    for read in (
        lambda: read_cell(path),
        lambda: judge_cell(run_dir, path),
        lambda: read_power(run_dir, read_manifest(run_dir), "fp16", 1, since_ns=0),
    ):
        with pytest.raises(UsageError, match="link"):
            read()


def with_power(tmp_path: Path, *, gpus: tuple[str, ...], until_ms: int, lost_ms: int | None = None) -> Path:
    """A run whose only cell has its window at 100 to 101 s of a server's life; a sample each 20 ms and GPU, 100 W.

    The last GPU has none after `lost_ms`.
    """
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    (path,) = cell_files(run_dir)
    path.unlink()
    tokens = [(100_000 + 10 * (k + 1), 1) for k in range(100)]
    samples = [scrape(t, running=1.0, waiting=0.0) for t in (100_100, 100_900)]
    write_cell(run_dir, cell(1), [answer(99_900, tokens)], samples, ended((100_000, 101_000)))
    manifest = json.loads((run_dir / "manifest.json").read_text())
    facts = [{"uuid": gpu, "memory_total_bytes": None, "power_limit_default_w": 300, "mig": False} for gpu in gpus]
    manifest["power_blocks"] = [{"target": "fp16", "repeat": 1, "gpus": facts, "rest_w": {}}]
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    journal = Journal(power_file(run_dir, "fp16", 1))
    for t in range(0, until_ms, 20):
        for gpu in gpus[:-1] if lost_ms is not None and t > lost_ms else gpus:
            journal.append(PowerSample(t_ns=t * MS, latency_ns=MS, gpu=gpu, power_instant_w=100.0, counter_j=t / 10))
    journal.close()
    return run_dir


def test_energy_counts_and_only_the_end_of_its_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = with_power(tmp_path, gpus=("GPU-a", "GPU-b"), until_ms=102_000)
    manifest = read_manifest(run_dir)
    monkeypatch.setattr(energy, "TAIL_BYTES", 1000)
    whole = read_power(run_dir, manifest, "fp16", 1)
    tail = read_power(run_dir, manifest, "fp16", 1, since_ns=100_000 * MS)
    assert whole is not None and tail is not None
    window = 100_000 * MS, 101_000 * MS
    for ends, all_of_it in zip(tail.around(*window), whole.around(*window), strict=True):
        assert ends.t_ns.tolist() == all_of_it.t_ns.tolist()
        assert ends.counter_j.tolist() == all_of_it.counter_j.tolist()
    assert len(tail.samples["GPU-a"]) < len(whole.samples["GPU-a"]) / 4
    assert judge_cell(run_dir, cell_files(run_dir)[0]).state == "valid"


@pytest.mark.parametrize(("until_ms", "lost_ms", "gpus"), [
    (100_500, None, ("GPU-a",)),
    (102_000, 50_000, ("GPU-a", "GPU-b")),
])  # fmt: skip
def test_a_cell_whose_energy_cannot_be_had_keeps_its_load(
    tmp_path: Path, until_ms: int, lost_ms: int | None, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that end within the window; a GPU that was lost long before it, in a part of the file not read."""
    monkeypatch.setattr(energy, "TAIL_BYTES", 1000)
    run_dir = with_power(tmp_path, gpus=gpus, until_ms=until_ms, lost_ms=lost_ms)
    verdict = judge_cell(run_dir, cell_files(run_dir)[0])
    (row,) = loadgen.load_run(run_dir).cells.to_dict("records")
    assert (verdict.valid, verdict.energy_valid, verdict.state) == (True, False, "partly_valid")
    assert verdict.reasons == f"energy invalid: {row['energy_reasons']}"


def test_a_file_is_read_from_the_first_line_behind_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = [sealed(json) for json in (b"1", b"[2]", b'"three"')]
    path.write_bytes(b"".join(lines) + b"torn")
    begins = [sum(map(len, lines[:place])) for place in range(3)]
    for start in range(len(path.read_bytes()) + 1):
        expected = [
            json for begin, json in zip(begins, (b"1\n", b"[2]\n", b'"three"\n'), strict=True) if begin >= start
        ]
        found = read_lines(path, start)
        assert (b"".join(found), found.damaged) == (b"".join(expected), 0), start


@pytest.mark.parametrize(("verdict", "said"), [
    (CellVerdict(valid=True), "fp16 B=4 repeat 1: window 1.0 s; "),
    (CellVerdict(valid=False, reasons=CAPPED), f"fp16 B=4 repeat 1: window 1.0 s; invalid: {CAPPED}; "),
    (CellVerdict(valid=True, energy_valid=False, reasons="energy invalid: a reset"),
     "fp16 B=4 repeat 1: window 1.0 s; energy invalid: a reset; "),
    (CellVerdict(valid=None, reasons="too large"), "fp16 B=4 repeat 1: window 1.0 s; not judged yet: too large; "),
    (CellVerdict(valid=None), "fp16 B=4 repeat 1: window 1.0 s; "),
])  # fmt: skip
def test_the_line_of_an_ended_cell_says_why_it_is_invalid(verdict: CellVerdict, said: str) -> None:
    console = Console(record=True, width=200, quiet=True)
    view = PlainView(console)
    view.run_begins("title", Timetable(cells=(cell(4),), cells_s=(10.0,)), False)
    with console.capture() as shown:
        console.quiet = False
        view.cell_ends(cell(4), "window 1.0 s", verdict)
    assert said in shown.get()
