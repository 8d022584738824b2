"""A short simulated sweep that is killed with SIGKILL at random instants and resumed, and what must be true of it then.

Used by tests/integration/test_kill.py for a few kills and by bench/kill_resume.py for many.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.analysis.run import Run, load_run
from loadgen.load.exchange import Exchange
from loadgen.measure.machine import await_old_servers
from loadgen.record.cell import Cell, plan_blocks
from loadgen.record.journal import cell_file, cell_files, read_lines, read_records, unfinished_cells, why_unfinished
from loadgen.record.manifest import read_manifest
from loadgen.workload.questions import sample_items

REQUESTS = 32
OPTIONS = (
    "--dataset", "sample", "--concurrency", "4,8", "--requests", str(REQUESTS), "--max-tokens", "24", "--repeats", "1",
    "--quiet",
)  # fmt: skip
DEADLINE_S = 300.0
MOST_SESSIONS = 100
Trigger = Callable[[subprocess.Popen[str]], bool]
"""Waits for the instant of a kill; whether the process had ended by then."""
BEFORE, STARTING, IN_CELL, REPORTING = "before the manifest", "around servers", "in a cell", "all cells finished"


@dataclass(frozen=True)
class Kill:
    """One SIGKILL of the client, and what had been on disk then."""

    session: int
    after_s: float
    """Since that session was started."""
    phase: str
    files: dict[str, list[bytes]]
    """Whole lines of every file of the journal."""
    finished: frozenset[str]
    """Labels of cells."""


@dataclass
class KilledRun:
    """A run and all kills it went through."""

    run_dir: Path
    kills: list[Kill] = field(default_factory=list)
    sessions: int = 0
    took_s: float = 0.0
    """The time of all sessions together."""

    def go(self, rng: random.Random, kills: int, whole_s: float) -> None:
        """Kills it so many times at most, each at an instant that may be any of the session's, then lets it end.

        `whole_s` is about what an undisturbed run takes.
        """
        while self._session(self._at(rng.uniform(0.0, self._left_s(whole_s))) if len(self.kills) < kills else None):
            pass

    def go_by_cells(self, rng: random.Random, kills: int, within_s: float) -> None:
        """Kills it so many times, each within `within_s` of the beginning of a cell; the same on any machine."""
        while self._session(self._after_cell(rng, within_s) if len(self.kills) < kills else None):
            pass

    def _at(self, after_s: float) -> Trigger:
        def wait(process: subprocess.Popen[str]) -> bool:
            return _ends_within(process, after_s)

        return wait

    def _after_cell(self, rng: random.Random, within_s: float) -> Trigger:
        """Or, with no cell left to begin, within as much of the session's own beginning."""
        labels = [cell.label for cell in unfinished_cells(self.run_dir)] if self._begun else ["001-fp16-b4-r1"]
        if not labels:
            return self._at(rng.uniform(0.0, within_s))
        path = self.run_dir / "journal" / f"{rng.choice(labels[:3])}.jsonl"
        before = path.stat().st_ino if path.exists() else None
        then_s = rng.uniform(0.0, within_s)

        def wait(process: subprocess.Popen[str]) -> bool:
            while not path.exists() or path.stat().st_ino == before:
                if _ends_within(process, 0.01):
                    return True
            return _ends_within(process, then_s)

        return wait

    def _left_s(self, whole_s: float) -> float:
        if not self._begun:
            return whole_s
        cells = planned(self.run_dir)
        return whole_s * (0.3 + 0.7 * len(unfinished_cells(self.run_dir)) / len(cells))

    @property
    def _begun(self) -> bool:
        return (self.run_dir / "manifest.json").exists()

    def _session(self, trigger: Trigger | None) -> bool:
        """Whether there must be another one; the session is killed when `trigger` returns, unless it has ended."""
        if not self._begun and self.run_dir.exists():
            shutil.rmtree(self.run_dir)
        self.sessions += 1
        how = ["--resume", str(self.run_dir), "--quiet"] if self._begun else [*OPTIONS, "--out", str(self.run_dir)]
        t0_s = time.monotonic()
        process = sweep(*how)
        killed = trigger is not None and not trigger(process)
        if killed:
            process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=DEADLINE_S)
        took_s = time.monotonic() - t0_s
        self.took_s += took_s
        if killed:
            self.kills.append(self._seen(took_s))
            return True
        assert process.returncode in (0, 1), f"{process.returncode}: {err}"
        assert self.sessions < MOST_SESSIONS, "there is always a cell that ends early"
        return bool(unfinished_cells(self.run_dir))

    def _seen(self, after_s: float) -> Kill:
        if not self._begun:
            return Kill(self.sessions, after_s, BEFORE, {}, frozenset())
        cells = planned(self.run_dir)
        why = {cell.label: why_unfinished(self.run_dir, cell) for cell in cells}
        begun = [label for label, reason in why.items() if reason not in (None, "not begun")]
        finished = frozenset(label for label, reason in why.items() if reason is None)
        newest = max((path.name for path in cell_files(self.run_dir)), default="")
        phase = IN_CELL if any(newest == f"{label}.jsonl" for label in begun) else STARTING
        phase = REPORTING if len(finished) == len(cells) else phase
        return Kill(self.sessions, after_s, phase, journal(self.run_dir), finished)


def _ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def sweep(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "sweep", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "CI": ""},
    )  # fmt: skip


def planned(run_dir: Path) -> list[Cell]:
    config = read_manifest(run_dir).config
    blocks = plan_blocks(config.targets, config.concurrency, config.repeats)
    return [cell for block in blocks for cell in block.cells]


def journal(run_dir: Path) -> dict[str, list[bytes]]:
    """Path within `journal` -> its whole good lines."""
    folder = run_dir / "journal"
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        lines = read_lines(path)
        found[str(path.relative_to(folder))] = [line for block in lines for line in block.splitlines()]
        assert not lines.damaged, f"{path} has {lines.damaged} damaged lines"
    return found


def asked(run_dir: Path, cell: Cell) -> list[str]:
    """Items of a cell's measured requests, in the order in which they were sent."""
    rows = [record for record in read_records(cell_file(run_dir, cell)) if isinstance(record, Exchange)]
    assert all(row.status == "ok" for row in rows), cell.label
    return [row.item_id for row in sorted(rows, key=lambda row: row.t_send_ns) if row.phase == "measured"]


def violations(killed: KilledRun) -> list[str]:
    """What should not be: empty for a run that lost nothing and measured nothing twice."""
    run_dir, found = killed.run_dir, []
    now = journal(run_dir)
    for number, kill in enumerate(killed.kills, start=1):
        for name, lines in kill.files.items():
            stem = name.removesuffix(".jsonl")
            places = [name, *(other for other in now if other.startswith(f"attempts/{stem}-a"))]
            if not any(now.get(place, [])[: len(lines)] == lines for place in places):
                found.append(f"kill {number}: {len(lines)} records of {name} are no longer there as they were")
            if stem in kill.finished and now.get(name) != lines:
                found.append(f"kill {number}: the finished cell {stem} was touched")
    cells = planned(run_dir)
    wanted = [item.id for item in sample_items()][:REQUESTS]
    for cell in cells:
        if (why := why_unfinished(run_dir, cell)) is not None:
            found.append(f"{cell.label} is unfinished: {why}")
        elif asked(run_dir, cell) != wanted:
            found.append(f"{cell.label} did not ask each of its {REQUESTS} items once, in order")
    manifest = read_manifest(run_dir)
    told = sorted(attempt.file for attempt in manifest.attempts)
    there = sorted(f"journal/{name}" for name in now if name.startswith("attempts/"))
    if told != there:
        found.append(f"the manifest tells of the attempts {told}, there are {there}")
    twice = [label for label, count in Counter(path.stem for path in cell_files(run_dir)).items() if count > 1]
    found += [f"{label} has two files" for label in twice]
    if left := await_old_servers(manifest.servers):
        found.append(f"servers still run: {left}")
    return found + _table_violations(load_run(run_dir), cells)


def _table_violations(run: Run, cells: list[Cell]) -> list[str]:
    key = ["target", "concurrency", "repeat"]
    wanted = sorted((cell.target, cell.concurrency, cell.repeat) for cell in cells)
    measured = run.requests[run.requests["phase"] == "measured"]
    counts = measured.groupby(key).size()
    found = []
    if sorted(run.cells[key].itertuples(index=False, name=None)) != wanted:
        found.append("cells.csv has not each planned cell once")
    if sorted(counts.index) != wanted or set(counts) != {REQUESTS}:
        found.append(f"requests.parquet has not {REQUESTS} measured requests of each cell")
    if measured.duplicated([*key, "item_id"]).any():
        found.append("requests.parquet has an item of a cell twice")
    if set(run.cells["answers"]) != {REQUESTS}:
        found.append(f"cells.csv counts other than {REQUESTS} answers")
    if set(zip(run.summary["target"], run.summary["concurrency"], strict=True)) != {(t, b) for t, b, _ in wanted}:
        found.append("summary.csv has not each target at each B")
    return found
