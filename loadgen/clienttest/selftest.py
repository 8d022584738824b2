"""Selftest: whether this machine's client measures a given traffic truly, and how much more it could take.

A selftest as lines of text.

Drive: a cell of a sweep against the server of known timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Unpack

import msgspec
import uvloop

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.client import BUSY_SHARE
from loadgen.clienttest.server import MODEL
from loadgen.clienttest.trial import IN_FLIGHT_SHARE, TTFT_MEAN_MS, TTFT_P99_MS, Trial, trial_of
from loadgen.errors import ServerError, UsageError
from loadgen.load.assignment import Assignment
from loadgen.load.workers import load_of
from loadgen.measure.cell import CellRun, CellSettings, Interrupt
from loadgen.measure.observer import Observer
from loadgen.options import SelftestOptions, complete
from loadgen.processgroup import exit_words
from loadgen.record.cell import Cell
from loadgen.record.journal import CellEnd, CellStart, Journal
from loadgen.secret import without_secrets
from loadgen.serving.metrics import MetricsSource
from loadgen.workload.grading import Grader
from loadgen.workload.protocol import load_protocol
from loadgen.workload.questions import sample_items, warmup_items

FIRST_MS = 20.0
"""The server's TTFT."""
ANSWER_S = 0.4
"""About how long an answer lasts: long enough to stream, short enough that slots are refilled in a short window."""
FEWEST_TOKENS, MOST_TOKENS = 4, 400
WINDOW_ANSWERS = 1.5
"""Least length of a window, in answers."""
TIMEOUT_S = 60.0


def run_trial(
    concurrency: int, tokens_per_s: float, *, workers: int = 1, transport: str = "raw", window_s: float = 1.0
) -> Trial:
    """One cell of a sweep, `window_s` long at least, against a server of this very timing on this machine.

    Raises ServerError when no figure came of it.
    """
    itl_ms = 1e3 * concurrency / tokens_per_s
    tokens = min(max(round(1e3 * ANSWER_S / itl_ms), FEWEST_TOKENS), MOST_TOKENS)
    window_s = max(window_s, WINDOW_ANSWERS * (FIRST_MS + tokens * itl_ms) / 1e3)
    with tempfile.TemporaryDirectory(prefix="loadgen-selftest-") as folder, _server(itl_ms) as url:
        path = Path(folder) / "cell.jsonl"
        cell = Cell(index=1, target=MODEL, precision="none", concurrency=concurrency, repeat=1)
        assignment = Assignment(
            url=url, model=MODEL, api_key=None, transport=transport, timeout_s=TIMEOUT_S,
            protocol=load_protocol("sample", shots_file=None), seed=0, max_tokens=tokens, fixed_length=None,
            thinking=None, items=tuple(sample_items()), warmup_items=tuple(warmup_items()), concurrency=concurrency,
            requests=None,
        )  # fmt: skip
        journal = Journal(path)
        try:
            journal.append(CellStart(cell=cell, t_ns=monotonic_ns(), simulated=False))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                end = runner.run(_run(cell, assignment, workers, journal, window_s))
        finally:
            journal.close()
        data = read_cell(path)
    if data is None or data.window is None or end.aborted is not None:
        raise ServerError(f"the selftest's cell ended early: {end.aborted or 'it never got warm'}")
    return trial_of(data, transport, tokens_per_s, itl_ms, tokens)


async def _run(cell: Cell, assignment: Assignment, workers: int, journal: Journal, window_s: float) -> CellEnd:
    run = CellRun(
        cell,
        settings=CellSettings(duration_s=window_s, requests=None, warmup_s=0.0),
        metrics=MetricsSource(target_url=assignment.url),
        make_load=lambda on_exchange: load_of(assignment, workers, on_exchange),
        journal=journal,
        observer=Observer(),
        server_died=lambda: None,
        grader=Grader({}, "sample"),
        power=None,
        interrupt=Interrupt(),
    )
    return await run.run()


@contextlib.contextmanager
def _server(itl_ms: float) -> Iterator[str]:
    """Its address; it ends with this block, or with this process."""
    argv = [sys.executable, "-m", "loadgen.clienttest.server", "--first-ms", str(FIRST_MS), "--tick-ms", str(itl_ms)]
    pipe, env = subprocess.PIPE, without_secrets(os.environ)
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise ServerError(f"the selftest's server ended with {exit_words(process.wait())}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


ITL_MS = 10.0
"""As fast as servers of 7B models and more decode: what is assumed where nothing is said."""
SLOWEST_ITL_MS = 500.0
WINDOW_S = 2.0
SEARCH_WINDOW_S = 0.8
SEARCH_TRIALS = 4
BUDGET_S = 12.0
"""No further trial begins after this."""
STEP, LONGEST_STEP = 1.4, 4.0
_CLOSE = 1.15
"""A bracket whose ends are this close is not halved any more."""


class Selftest(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one traffic. Nothing in it is about a model or a server: the client alone was measured."""

    trial: Trial
    """Of the traffic that was asked about."""
    capacity_tokens_per_s: float | None
    """Highest rate at this B at which these processes stayed within every limit; None: at none that was tried."""
    capacity_below_tokens_per_s: float | None
    """Lowest rate at which they did not; None: none was found, or the selftest's own server had no more to give."""
    trials: tuple[Trial, ...]
    """All of them, in the order in which they were run."""
    workers_needed: int | None
    """Client processes that stayed within every limit; None: no number that was tried on these cores."""
    cores: int
    load_average: float
    """Of the machine, over the minute before the selftest: other work is in its errors."""

    @property
    def enough(self) -> bool:
        """The processes that were asked about are."""
        return self.trial.stands

    @property
    def sentence(self) -> str:
        """The verdict."""
        t = self.trial
        processes = "one process is" if t.workers == 1 else f"{t.workers} processes are"
        traffic = f"B = {t.concurrency} at {t.tokens_per_s_asked:,.0f} tokens/s"
        if not t.valid:
            return (
                f"no verdict on {traffic}: on {self.cores} cores beside the client, the selftest's own server sent "
                f"{t.offered_share:.0%} of it"
            )
        if self.enough:
            return f"{processes} enough for {traffic}: {_uses(t)}{self._room}"
        why = f"{processes} not enough for {traffic}: {'; '.join(t.faults)}"
        if self.workers_needed is not None:
            return f"{why}. Use --workers {self.workers_needed}"
        return f"{why}. No number of processes was, on {self.cores} cores at a load average of {self.load_average:.1f}"

    @property
    def _room(self) -> str:
        capacity = self.capacity_tokens_per_s
        if capacity is None or capacity <= self.trial.tokens_per_s_asked:
            return ""
        least = "" if self.capacity_below_tokens_per_s is not None else "at least "
        return f", and {least}{capacity:,.0f} tokens/s stayed within the limits, too"


def selftest(*, budget_s: float = BUDGET_S, **options: Unpack[SelftestOptions]) -> Selftest:
    """Tries the traffic that is asked about, then looks for the highest rate; `budget_s`: no trial begins later.

    A rate is said in tokens a second over all streams, or in ms between the tokens of one. Raises UsageError for wrong
    use, and ServerError where no figure came of the traffic itself.
    """
    o = complete(SelftestOptions, options)
    concurrency, workers, transport = o["concurrency"], o["workers"], o["transport"]
    rate = _rate(concurrency, o["tokens_per_s"], o["itl_ms"])
    load_average, bench = os.getloadavg()[0], _Bench(concurrency, transport, budget_s)
    trial = bench.trial(rate, workers, WINDOW_S)
    needed = workers if trial.stands else bench.workers_for(trial)
    capacity, below = bench.capacity(trial)
    return Selftest(
        trial=trial,
        capacity_tokens_per_s=capacity,
        capacity_below_tokens_per_s=below,
        trials=tuple(bench.trials),
        workers_needed=needed,
        cores=cores(),
        load_average=load_average,
    )


def fewest_workers(concurrency: int, tokens_per_s: float, transport: str) -> tuple[int, list[Trial]]:
    """How many client processes a sweep should use, no more than cores or slots, and the trials that say so.

    Where none of the numbers stays within all limits, the one with the fewest faults. Raises ServerError where no
    figure came of a trial.
    """
    bench = _Bench(concurrency, transport, BUDGET_S)
    best: Trial | None = None
    for workers in range(1, min(cores(), concurrency) + 1):
        trial = bench.trial(tokens_per_s, workers, SEARCH_WINDOW_S)
        if best is None or len(trial.faults) < len(best.faults):
            best = trial
        if trial.stands or not trial.valid or bench.over:
            break
    assert best is not None
    return best.workers, bench.trials


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Bench:
    """Trials of one B and transport, none begun after the budget is spent."""

    def __init__(self, concurrency: int, transport: str, budget_s: float) -> None:
        self._concurrency = concurrency
        self._transport = transport
        self._deadline_s = monotonic() + budget_s
        self.trials: list[Trial] = []

    @property
    def over(self) -> bool:
        return monotonic() > self._deadline_s

    def trial(self, rate: float, workers: int, window_s: float) -> Trial:
        """One with faults is run again, where it was not short of CPU, and the better counts: a machine that stood
        still for a moment is not what is asked about."""
        found = self._once(rate, workers, window_s)
        if found.valid and found.faults and found.cpu_share <= BUSY_SHARE and not self.over:
            again = self._once(rate, workers, window_s)
            found = again if again.valid and len(again.faults) < len(found.faults) else found
        return found

    def workers_for(self, asked: Trial) -> int | None:
        """The fewest of the numbers tried that stay within all limits, no more than there are cores or slots."""
        for workers in range(asked.workers + 1, min(cores(), self._concurrency) + 1):
            if not asked.valid or self.over:
                break
            trial = self._probe(asked.tokens_per_s_asked, workers)
            if trial is not None and trial.stands:
                return workers
        return None

    def capacity(self, asked: Trial) -> tuple[float | None, float | None]:
        """The highest rate that stayed within all limits, and the lowest that did not, by a few trials."""
        good: float | None = None
        bad: float | None = None
        trial: Trial | None = asked
        for left in range(SEARCH_TRIALS, -1, -1):
            if trial is None or not trial.valid:
                break
            rate = trial.tokens_per_s_asked
            if trial.stands:
                good = max(good or 0.0, rate)
            else:
                bad = min(bad or math.inf, rate)
            following = _next_rate(good, bad, trial)
            if following is None or self.over or not left:
                break
            trial = self._probe(following, asked.workers)
        return good, bad

    def _probe(self, rate: float, workers: int) -> Trial | None:
        """None where no figure came of it."""
        try:
            return self.trial(rate, workers, SEARCH_WINDOW_S)
        except ServerError:
            return None

    def _once(self, rate: float, workers: int, window_s: float) -> Trial:
        trial = run_trial(self._concurrency, rate, workers=workers, transport=self._transport, window_s=window_s)
        self.trials.append(trial)
        return trial


def _next_rate(good: float | None, bad: float | None, trial: Trial) -> float | None:
    """The middle of the bracket; while it has no upper end, what the CPU leaves room for, and no less than a step."""
    if good is None:
        return bad / 2 if bad is not None else None
    if bad is None:
        room = 0.9 * BUSY_SHARE / trial.cpu_share if trial.cpu_share else STEP
        return good * min(max(STEP, room), LONGEST_STEP)
    return math.sqrt(good * bad) if bad / good > _CLOSE else None


def _uses(t: Trial) -> str:
    whose = "it uses" if t.workers == 1 else "the busiest of them uses"
    return f"{whose} {t.cpu_share:.0%} of a core"


def _rate(concurrency: int, tokens_per_s: float | None, itl_ms: float | None) -> float:
    if tokens_per_s is not None and itl_ms is not None:
        raise UsageError("--tokens-per-s and --itl-ms exclude each other: at a given B one follows from the other")
    rate = float(tokens_per_s) if tokens_per_s is not None else 1e3 * concurrency / (itl_ms or ITL_MS)
    if (between_ms := 1e3 * concurrency / rate) > SLOWEST_ITL_MS:
        raise UsageError(
            f"{rate:g} tokens/s at B = {concurrency} is a token each {between_ms:,.0f} ms: such slow streams say "
            f"nothing about a client; ask for {SLOWEST_ITL_MS:g} ms at most"
        )
    return rate


def selftest_lines(result: Selftest) -> list[str]:
    """What was tried, what came of it beside its limits, and the verdict."""
    t = result.trial
    processes = "one process" if t.workers == 1 else f"{t.workers} processes"
    lag = "" if t.loop_lag_ms_p90 is None else f"p90 {t.loop_lag_ms_p90:.0f} ms, p99 {t.loop_lag_ms_p99:.0f} ms"
    figures = [
        ("TTFT error", f"mean {t.ttft_error_ms_mean:+.2f} ms, p99 {t.ttft_error_ms_p99:.2f} ms",
         f"{TTFT_MEAN_MS:g} and {TTFT_P99_MS:g} ms"),
        ("ITL error", f"p99 {t.itl_error_ms_p99:.2f} ms", f"{t.itl_limit_ms:g} ms"),
        ("in flight", f"{t.inflight_share:.2%} of B, {t.served_share:.2%} by the server", f"{IN_FLIGHT_SHARE:.1%}"),
        ("CPU", f"{t.cpu_us_per_token:.1f} µs a token, {t.cpu_share:.0%} of a core", f"{BUSY_SHARE:.0%}"),
        ("event loop late", lag, ""),
    ]  # fmt: skip
    return [
        "The client of this machine against a server of known timing: no model, no GPU, no measurement of a server.",
        f"  B = {t.concurrency}, {t.tokens_per_s_asked:,.0f} tokens/s: TTFT {FIRST_MS:g} ms, a token to every stream "
        f"each {t.itl_ms:.3g} ms, {t.answer_tokens} an answer",
        f"  {processes}, transport {t.transport}, {t.window_s:g} s; {result.cores} cores, load average "
        f"{result.load_average:.1f}",
        *(f"  {name:<16}{value:<40}{f'limit {limit}' if limit else ''}".rstrip() for name, value, limit in figures),
        f"  {'its server':<16}p99 {t.server_error_ms_p99:.2f} ms off its ticks, {t.offered_share:.1%} of its tokens; "
        "not in the errors",
        result.sentence[:1].upper() + result.sentence[1:] + ".",
    ]


def selftest_json(result: Selftest) -> str:
    """Every figure of every trial, and the verdict."""
    content = {"sentence": result.sentence, "enough": result.enough, **msgspec.to_builtins(result)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
