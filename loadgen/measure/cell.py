"""One cell, live: warm up, open the window, keep the load, close, drain. Everything seen goes to the journal.

Interrupt: what Ctrl-C and SIGTERM mean while a sweep runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic_ns
from types import FrameType

import msgspec

from loadgen.load.exchange import Exchange
from loadgen.load.latency import Window, latencies_in
from loadgen.load.load import Load
from loadgen.load.worker import Assignment
from loadgen.load.workers import MakeWorker, Workers
from loadgen.measure.observer import LiveFigures, Observer, Progress
from loadgen.measure.power import PowerRecorder
from loadgen.record.cell import Cell
from loadgen.record.journal import CellEnd, Journal
from loadgen.serving.exposition import ServerSample
from loadgen.serving.metrics import MetricsProbe, MetricsSampler, MetricsSource
from loadgen.workload.grading import Grader


class Interrupt:
    """Ctrl-C once: requests in flight may finish. Twice, or SIGTERM, whose sender may kill soon: stop at once.

    Where nothing is in flight both raise KeyboardInterrupt; a cell looks at `asked` and `hurried` instead.
    """

    def __init__(self) -> None:
        self.asked = False
        """The sweep is to stop."""
        self.hurried = False
        """At once."""
        self._patient = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within, the signals come here, but for those that are ignored or that the program handles itself."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    previous[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within, nothing is raised; KeyboardInterrupt at its end, if a signal came."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self.asked:
            raise KeyboardInterrupt

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.hurried = self.asked or number == signal.SIGTERM
        self.asked = True
        if not self._patient:
            raise KeyboardInterrupt


TURN_S = 0.005
WINDOW_TURN_S = 0.05
"""Between two looks at a window whose end is known: each look costs the client as much CPU as two tokens."""
PROGRESS_EVERY_NS = 250_000_000
SAMPLES_EVERY_S = 0.25
COUNTERS_SETTLE_S = 5.0
COUNTERS_STILL_S = 1.0
"""A count of tokens that does not change for so long is final, even if a gauge still shows running requests."""
COUNTERS_EVERY_S = 0.01
OPEN_MOST_FAILURES = 100
"""Failures in a row that end a cell of an open loop; in a closed one it depends on B."""
INTERRUPTED = "interrupted"


class CellRun:
    """Measures one cell against one server. `run()` returns the cell's last record, already journalled.

    `assignment` has the window's length: `duration_s`, or else `requests`, the number of items that are asked once
    each; then the window closes when the first slot finds none left.
    """

    def __init__(
        self,
        cell: Cell,
        assignment: Assignment,
        workers: int,
        *,
        warmup_s: float,
        metrics: MetricsSource,
        journal: Journal,
        observer: Observer,
        server_died: Callable[[], str | None],
        grader: Grader,
        power: PowerRecorder | None,
        interrupt: Interrupt,
        make: MakeWorker | None = None,
    ) -> None:
        """`make`: where the client processes run elsewhere."""
        self._cell = cell
        self._make = make
        self._assignment = assignment
        self._workers = workers
        self._duration_s, self._requests = assignment.duration_s, assignment.requests
        self._warmup_s = warmup_s
        self._journal = journal
        self._observer = observer
        self._server_died = server_died
        self._power = power
        self._interrupt = interrupt
        self._probe = MetricsProbe(metrics)
        self._sampler = MetricsSampler(metrics)
        self._figures = LiveFigures(grader)
        self._next_progress_ns = 0
        self._most_failures = max(20, 3 * cell.concurrency) if cell.arrivals is None else OPEN_MOST_FAILURES
        self._t_start_ns = 0
        self._open_ns: int | None = None
        self._window: Window | None = None
        """Once it has closed."""
        self._stage = ""
        self._aborted: str | None = None
        self._server_lost = False
        self._unwritable: OSError | None = None

    async def run(self) -> CellEnd:
        """Raises nothing that the server or the user caused: a Ctrl-C ends as `aborted`, unless the window was over.

        Raises OSError when the journal can no longer be written; the cell has ended early then.
        """
        tokens_before = await asyncio.to_thread(self._generation_tokens)
        load: Load
        if self._workers == 1 and self._make is None:
            load = self._assignment.load(self._on_exchange)
        else:
            load = Workers(self._assignment, self._workers, self._on_exchange, self._make)
        self._load = load
        self._sampler.start()
        sampled = asyncio.create_task(self._journal_samples_now_and_then())
        gc.collect()
        gc.disable()
        try:
            await load.prepare()
            self._t_start_ns = monotonic_ns()
            if not self._broken():
                load.start()
                if await self._until_warm():
                    self._open_ns = open_ns = monotonic_ns()
                    load.open_window(open_ns, self._planned_close_ns(open_ns))
                    await self._until_window_over(open_ns)
                    load.close_window()
                    self._window = open_ns, self._close_ns(open_ns)
                if self._aborted is not None:
                    load.stop_feeding()
                await self._until_drained()
        finally:
            gc.enable()
            await load.close()
            sampled.cancel()
            self._sampler.stop()
            self._journal_samples()
        self._show("over", 1.0)
        window = self._window
        end = CellEnd(
            t_ns=monotonic_ns(),
            window_open_ns=window[0] if window else None,
            window_close_ns=window[1] if window else None,
            generation_tokens=None if self._interrupt.hurried else self._tokens_since(tokens_before),
            client_nodes=load.nodes,
            aborted=self._aborted or load.failure,
            server_lost=self._server_lost,
            batch_gauge=self._sampler.probe.gauge or self._probe.gauge,
            metrics_failure=self._sampler.probe.failure,
            **(msgspec.structs.asdict(load.use) if load.use is not None else {}),
        )
        if self._power is not None and window is not None and self._unwritable is None:
            self._power.cover(window[1])
        self._append(end)
        self._probe.close()
        if self._unwritable is not None:
            raise self._unwritable
        return end

    async def _until_warm(self) -> bool:
        """True once the load is steady, and the time for it is over."""
        warm_at_ns = self._t_start_ns + int(self._warmup_s * 1e9)
        while not self._broken():
            if self._load.dry_ns is not None:
                self._aborted = "every request was sent before all slots were busy; ask for more --requests"
                return False
            if monotonic_ns() >= warm_at_ns:
                self._load.end_warmup()
                if self._load.steady:
                    return True
            self._show("warm-up", 0.0)
            await asyncio.sleep(TURN_S)
        return False

    async def _until_window_over(self, open_ns: int) -> None:
        duration_s, requests = self._duration_s, self._requests
        while not self._broken():
            if duration_s is not None:
                left_s = duration_s - (monotonic_ns() - open_ns) / 1e9
                share = 1 - left_s / duration_s
                if left_s <= 0:
                    return
            else:
                assert requests is not None
                left_s, share = TURN_S, self._load.completed / requests
                if self._load.dry_ns is not None:
                    return
            self._show("window", share)
            await asyncio.sleep(min(WINDOW_TURN_S, left_s))

    def _planned_close_ns(self, open_ns: int) -> int | None:
        """None where requests are counted."""
        return None if self._duration_s is None else open_ns + int(self._duration_s * 1e9)

    def _close_ns(self, open_ns: int) -> int:
        planned_ns = self._planned_close_ns(open_ns) if self._aborted is None else None
        return planned_ns or self._load.dry_ns or monotonic_ns()

    def _window_so_far(self) -> Window | None:
        """From its opening to now, or to its close; None: it has not opened."""
        if self._window is not None or self._open_ns is None:
            return self._window
        now_ns = monotonic_ns()
        return self._open_ns, min(self._planned_close_ns(self._open_ns) or self._load.dry_ns or now_ns, now_ns)

    async def _until_drained(self) -> None:
        drained = asyncio.create_task(self._load.drained())
        announced = False
        while not drained.done():
            if self._interrupt.hurried:
                self._aborted = INTERRUPTED
                return
            if self._interrupt.asked and not announced:
                announced = True
                self._load.stop_feeding()
                self._observer.stopping(
                    f"Interrupted: finishing {self._load.in_flight} requests in flight; Ctrl-C again stops at once"
                )
            self._show("drain", 1.0)
            await asyncio.wait([drained], timeout=0.1)

    def _broken(self) -> bool:
        """Interrupted, or server or client are gone, or nothing but errors comes: the cell ends early and says why."""
        if self._interrupt.asked:
            self._aborted = self._aborted or INTERRUPTED
        if self._unwritable is not None:
            self._aborted = self._aborted or "the journal could not be written"
        failures = self._load.failures_in_a_row
        if self._aborted is None:
            self._aborted = self._load.failure
        if self._aborted is None and failures:
            died = self._server_died()
            if died is not None:
                self._aborted = died
            elif failures >= self._most_failures:
                self._aborted = f"{failures} failures in a row, the last: {self._figures.last_error}"
            self._server_lost = self._aborted is not None
        return self._aborted is not None

    def _append(self, record: Exchange | ServerSample | CellEnd) -> None:
        """Nothing more once a record could not be written: a cell has no holes."""
        if self._unwritable is None:
            try:
                self._journal.append(record)
            except OSError as error:
                self._unwritable = error

    def _on_exchange(self, exchange: Exchange) -> None:
        window = self._window_so_far()
        latencies = latencies_in(exchange, window)
        self._append(exchange)
        self._figures.add(exchange, latencies, window)
        self._observer.answered(self._cell, exchange, latencies)

    async def _journal_samples_now_and_then(self) -> None:
        while True:
            self._journal_samples()
            await asyncio.sleep(SAMPLES_EVERY_S)

    def _journal_samples(self) -> None:
        for sample in self._sampler.take():
            self._append(sample)
        if self._power is not None and self._unwritable is None:
            try:
                self._power.flush()
            except OSError as error:
                self._unwritable = error

    def _generation_tokens(self) -> float | None:
        sample = self._probe.scrape()
        return None if sample is None else sample.generation_tokens

    def _tokens_since(self, before: float | None) -> float | None:
        """Tokens the server says it made for this cell; waits until it reports nothing running, or makes no more."""
        deadline_ns = monotonic_ns() + int(COUNTERS_SETTLE_S * 1e9)
        last, still_until_ns = before, 0
        while before is not None:
            sample = self._probe.scrape()
            if sample is None or sample.generation_tokens is None:
                return None
            if sample.generation_tokens != last or not still_until_ns:
                last, still_until_ns = sample.generation_tokens, sample.t_ns + int(COUNTERS_STILL_S * 1e9)
            if not sample.running or sample.t_ns > min(still_until_ns, deadline_ns):
                return sample.generation_tokens - before
            time.sleep(COUNTERS_EVERY_S)
        return None

    def _show(self, stage: str, share: float) -> None:
        """Tells the observers how the cell is doing: at each change of stage, else every quarter of a second."""
        now_ns = monotonic_ns()
        if now_ns < self._next_progress_ns and stage == self._stage:
            return
        self._stage, self._next_progress_ns = stage, now_ns + PROGRESS_EVERY_NS
        latest, figures = self._sampler.latest, self._figures
        self._observer.progress(
            Progress(
                cell=self._cell,
                stage=stage,
                share=share,
                in_flight=self._load.in_flight,
                running=latest.running if latest else None,
                requests=figures.requests,
                errors=figures.errors,
                tokens_per_s=figures.tokens_per_s(self._window_so_far()),
                ttft_ms=figures.ttft_ms,
                tpot_ms=figures.tpot_ms,
                power_w=self._power.latest_w if self._power is not None else None,
                accuracy=figures.accuracy,
                graded=figures.graded,
                elapsed_s=(now_ns - self._t_start_ns) / 1e9,
                arrived=self._load.arrived,
            )
        )
