"""Selftest: whether this machine's client measures a given load correctly, and how much more it could take."""

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
from loadgen.load.compiled import reader_name
from loadgen.load.worker import Assignment
from loadgen.measure.cell import CellRun, Interrupt
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
"""Approximate length of an answer: long enough to stream, short enough that slots are refilled in a short window."""
FEWEST_TOKENS, MOST_TOKENS = 4, 400
WINDOW_ANSWERS = 1.5
"""Shortest window, in answers."""
TIMEOUT_S = 60.0
ITL_MS = 10.0
"""The default, as fast as most servers of models from 7B on."""
SLOWEST_ITL_MS = 500.0
WINDOW_S = 2.0
SEARCH_WINDOW_S = 0.8
SEARCH_TRIALS = 4
BUDGET_S = 12.0
"""No further trial begins after this."""
STEP, LONGEST_STEP = 1.4, 4.0
_CLOSE = 1.15
"""A bracket whose ends are this close is not halved again."""


def run_trial(
    concurrency: int, tokens_per_s: float, *, workers: int = 1, transport: str = "raw", window_s: float = 1.0
) -> Trial:
    """One cell of a sweep, at least `window_s` long, against a server of this timing on this machine. Raises
    ServerError when it gave no figure."""
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
        raise ServerError(f"the selftest's cell ended early: {end.aborted or 'its warm-up did not end'}")
    return trial_of(data, transport, tokens_per_s, itl_ms, tokens)


async def _run(cell: Cell, assignment: Assignment, workers: int, journal: Journal, window_s: float) -> CellEnd:
    run = CellRun(
        cell,
        msgspec.structs.replace(assignment, duration_s=window_s),
        workers,
        warmup_s=0.0,
        metrics=MetricsSource(target_url=assignment.url),
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
    """The server's URL; the server ends with this block, or with this process."""
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


class Selftest(msgspec.Struct, frozen=True, kw_only=True):
    """Whether this client is enough for one load. It says nothing about a model or a server: only the client was
    measured."""

    trial: Trial
    """The trial of the requested load."""
    capacity_tokens_per_s: float | None
    """Highest rate at this B at which these processes stayed within every limit; None: at none that was tried."""
    capacity_below_tokens_per_s: float | None
    """Lowest rate at which they did not; None: none was found, or the selftest's own server reached its own limit."""
    trials: tuple[Trial, ...]
    """All trials, in order."""
    workers_needed: int | None
    """Client processes that stayed within every limit; None: no number that was tried on these cores."""
    cores: int
    load_average: float
    """The machine's load over the minute before the selftest: other work adds to the errors."""

    @property
    def enough(self) -> bool:
        """Whether the requested processes are enough."""
        return self.trial.passes

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        t, capacity = self.trial, self.capacity_tokens_per_s
        processes = "one process is" if t.workers == 1 else f"{t.workers} processes are"
        load = f"B = {t.concurrency} at {t.tokens_per_s_asked:,.0f} tokens/s"
        if not t.valid:
            return (
                f"no verdict on {load}: on {self.cores} cores shared with the client, the selftest's own server sent "
                f"{t.offered_share:.0%} of it"
            )
        if self.enough:
            whose = "it uses" if t.workers == 1 else "the busiest uses"
            sentence = f"{processes} enough for {load}: {whose} {t.cpu_share:.0%} of a core"
            if capacity is not None and capacity > t.tokens_per_s_asked:
                least = "" if self.capacity_below_tokens_per_s is not None else "at least "
                sentence += f", and {least}{capacity:,.0f} tokens/s also stayed within the limits"
            return sentence
        why = f"{processes} not enough for {load}: {'; '.join(t.faults)}"
        if self.workers_needed is not None:
            return f"{why}. Use --workers {self.workers_needed}"
        return f"{why}. No number of processes was, on {self.cores} cores at a load average of {self.load_average:.1f}"


def selftest(*, budget_s: float = BUDGET_S, **options: Unpack[SelftestOptions]) -> Selftest:
    """Tries the requested load, then searches for the highest rate; no trial begins after `budget_s`.

    The rate is given in tokens per second over all streams, or in ms between the tokens of one. Raises UsageError for
    wrong use, and ServerError where the requested load gave no figure.
    """
    o = complete(SelftestOptions, options)
    concurrency, workers, transport = o["concurrency"], o["workers"], o["transport"]
    rate = _rate(concurrency, o["tokens_per_s"], o["itl_ms"])
    load_average, bench = os.getloadavg()[0], _Bench(concurrency, transport, budget_s)
    trial = bench.trial(rate, workers, WINDOW_S)
    needed = workers if trial.passes else None
    if trial.valid and not trial.passes and not bench.over:
        with contextlib.suppress(ServerError):
            needed = next((t.workers for t in bench.more_workers(rate, workers + 1) if t.passes), None)
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
    """How many client processes a sweep should use, at most as many as cores or slots, and the trials behind it.

    Where no number stays within all limits, the one with the fewest faults. Raises ServerError where a trial gave no
    figure.
    """
    bench = _Bench(concurrency, transport, BUDGET_S)
    best = min(bench.more_workers(tokens_per_s, 1), key=lambda trial: len(trial.faults))
    return best.workers, bench.trials


def cores() -> int:
    """The cores that this process may use."""
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
        """One trial. With faults that are not from a lack of CPU it is run again and the better counts, because a
        machine that paused for a moment says nothing about the client."""
        found = self._once(rate, workers, window_s)
        if found.valid and found.faults and found.cpu_share <= BUSY_SHARE and not self.over:
            again = self._once(rate, workers, window_s)
            found = again if again.valid and len(again.faults) < len(found.faults) else found
        return found

    def more_workers(self, rate: float, first: int) -> Iterator[Trial]:
        """Trials with `first` processes and more, up to one that passes; at most as many as cores or slots."""
        for workers in range(first, min(cores(), self._concurrency) + 1):
            trial = self.trial(rate, workers, SEARCH_WINDOW_S)
            yield trial
            if trial.passes or not trial.valid or self.over:
                break

    def capacity(self, trial: Trial) -> tuple[float | None, float | None]:
        """The highest rate that stayed within all limits, and the lowest that did not, by a few trials."""
        good: float | None = None
        bad: float | None = None
        for left in range(SEARCH_TRIALS, -1, -1):
            if not trial.valid:
                break
            rate = trial.tokens_per_s_asked
            if trial.passes:
                good = max(good or 0.0, rate)
            else:
                bad = min(bad or math.inf, rate)
            following = _next_rate(good, bad, trial)
            if following is None or self.over or not left:
                break
            try:
                trial = self.trial(following, trial.workers, SEARCH_WINDOW_S)
            except ServerError:
                break
        return good, bad

    def _once(self, rate: float, workers: int, window_s: float) -> Trial:
        trial = run_trial(self._concurrency, rate, workers=workers, transport=self._transport, window_s=window_s)
        self.trials.append(trial)
        return trial


def _next_rate(good: float | None, bad: float | None, trial: Trial) -> float | None:
    """The middle of the bracket; without an upper end, the rate that the CPU leaves room for, at least a step."""
    if good is None:
        return bad / 2 if bad is not None else None
    if bad is None:
        room = 0.9 * BUSY_SHARE / trial.cpu_share if trial.cpu_share else STEP
        return good * min(max(STEP, room), LONGEST_STEP)
    return math.sqrt(good * bad) if bad / good > _CLOSE else None


def _stamps(t: Trial) -> str:
    if t.kernel_stamp_share is None or t.joined_token_share is None:
        return ""
    who = {1.0: "by the kernel", 0.0: "by the client's process"}.get(
        t.kernel_stamp_share, f"{t.kernel_stamp_share:.0%} by the kernel"
    )
    return f"{who}; {t.joined_token_share:.1%} of tokens joined"


def _rate(concurrency: int, tokens_per_s: float | None, itl_ms: float | None) -> float:
    if tokens_per_s is not None and itl_ms is not None:
        raise UsageError("give --tokens-per-s or --itl-ms, not both: at a given B one follows from the other")
    rate = float(tokens_per_s) if tokens_per_s is not None else 1e3 * concurrency / (itl_ms or ITL_MS)
    if (between_ms := 1e3 * concurrency / rate) > SLOWEST_ITL_MS:
        raise UsageError(
            f"{rate:g} tokens/s at B = {concurrency} is a token every {between_ms:,.0f} ms: such slow streams do not "
            f"test a client; use at most {SLOWEST_ITL_MS:g} ms"
        )
    return rate


def selftest_lines(result: Selftest) -> list[str]:
    """The load, its figures with their limits, and the result."""
    t = result.trial
    processes = "one process" if t.workers == 1 else f"{t.workers} processes"
    lag = "" if t.loop_lag_ms_p90 is None else f"p90 {t.loop_lag_ms_p90:.0f} ms, p99 {t.loop_lag_ms_p99:.0f} ms"
    figures = [
        ("TTFT error", f"mean {t.ttft_error_ms_mean:+.2f} ms, p99 {t.ttft_error_ms_p99:.2f} ms",
         f"{TTFT_MEAN_MS:g} and {TTFT_P99_MS:g} ms"),
        ("ITL error", f"p99 {t.itl_error_ms_p99:.2f} ms", f"{t.itl_limit_ms:g} ms"),
        ("in flight", f"{t.inflight_share:.2%} of B, {t.served_share:.2%} by the server", f"{IN_FLIGHT_SHARE:.1%}"),
        ("CPU", f"{t.cpu_us_per_token:.1f} µs per token, {t.cpu_share:.0%} of a core", f"{BUSY_SHARE:.0%}"),
        ("stamps", _stamps(t), ""),
        ("reader", reader_name(), ""),
        ("event loop lag", lag, ""),
    ]  # fmt: skip
    return [
        "The client of this machine against a server of known timing: no model, no GPU, no measurement of a server.",
        f"  B = {t.concurrency}, {t.tokens_per_s_asked:,.0f} tokens/s: TTFT {FIRST_MS:g} ms, a token to every stream "
        f"every {t.itl_ms:.3g} ms, {t.answer_tokens} per answer",
        f"  {processes}, transport {t.transport}, {t.window_s:g} s; {result.cores} cores, load average "
        f"{result.load_average:.1f}",
        *(f"  {name:<16}{value:<40}{f'limit {limit}' if limit else ''}".rstrip() for name, value, limit in figures),
        f"  {'its server':<16}p99 {t.server_error_ms_p99:.2f} ms off its ticks, {t.offered_share:.1%} of its tokens; "
        "not in the errors",
        result.sentence[:1].upper() + result.sentence[1:] + ".",
    ]


def selftest_json(result: Selftest) -> str:
    """Every figure of every trial, and the result."""
    judged = {"sentence": result.sentence, "enough": result.enough, "reader": reader_name()}
    content = {**judged, **msgspec.to_builtins(result)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
