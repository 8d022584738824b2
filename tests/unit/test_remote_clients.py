"""Client processes on other machines: times brought to the sweep's clock, and what `--workers` takes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from made_run import answer

from loadgen.cluster.clients import RayWorker
from loadgen.errors import UsageError
from loadgen.load.exchange import Exchange, shifted
from loadgen.load.worker import WorkerClock
from loadgen.measure.config import configure
from loadgen.power.sample import boot_id

HOUR_NS = 3600 * 10**9
TIMES = {"t_scheduled_ns", "t_send_ns", "t_first_ns", "t_end_ns", "token_times"}


def test_all_times_of_an_exchange_move_and_nothing_else() -> None:
    exchange = answer(100, [(120, 1), (130, 2)], 140, t_scheduled_ns=90_000_000)
    moved = shifted(exchange, HOUR_NS)
    for name, value in msgspec.structs.asdict(exchange).items():
        if name not in TIMES:
            assert getattr(moved, name) == value
    assert moved.t_scheduled_ns == 90_000_000 + HOUR_NS
    assert (moved.t_send_ns, moved.t_end_ns) == (exchange.t_send_ns + HOUR_NS, exchange.t_end_ns + HOUR_NS)
    assert moved.token_times == tuple((t_ns + HOUR_NS, n) for t_ns, n in exchange.token_times)
    assert shifted(answer(100, [], 140), 5).t_first_ns is None


class FarWorker(RayWorker):
    """A worker whose clock drifts, and which answers when it is asked."""

    def __init__(self, got: list[Exchange], ahead_ns: Iterator[int], *, boot: str | None, url: str) -> None:
        assignment: Any = SimpleNamespace(share=SimpleNamespace(first=0, of=2), url=url)
        super().__init__(None, None, {"NodeManagerHostname": "far"}, "", assignment, got.append, asyncio.Event())
        self._ahead_ns, self._boot = ahead_ns, boot
        self.running = True

    def send(self, method: Any) -> None:
        from time import monotonic_ns

        told = WorkerClock(monotonic_ns=monotonic_ns() + next(self._ahead_ns), boot_id=self._boot)
        asyncio.get_running_loop().call_soon(self._on_report, told)


def test_a_clock_that_drifts_is_inside_the_bound_and_exchanges_come_by_ours() -> None:
    def drift() -> Iterator[int]:
        for k in range(40):
            yield HOUR_NS + (k // 20) * 3_000_000

    async def measure() -> tuple[FarWorker, list[Exchange]]:
        got: list[Exchange] = []
        worker = FarWorker(got, drift(), boot="another", url="http://server:8000")
        await worker.set_clock()
        worker._on_report(shifted(answer(100, [(120, 1)], 140), HOUR_NS))
        assert worker.node is not None
        assert abs(worker.node.clock.offset_ns - HOUR_NS) <= worker.node.clock.bound_ns < 3_000_000
        await worker.set_clock()
        return worker, got

    worker, (exchange,) = asyncio.run(measure())
    assert worker.node is not None
    assert worker.failure is None
    assert worker.node.clock.bound_ns >= 2_900_000, "the drift is part of it"
    off_ns = abs(exchange.t_send_ns - 100_000_000)
    assert off_ns <= worker.node.clock.bound_ns


def test_a_process_of_this_machine_has_its_clock_exactly() -> None:
    async def measure() -> FarWorker:
        worker = FarWorker([], iter([0] * 20), boot=boot_id(), url="http://127.0.0.1:8000")
        await worker.set_clock()
        return worker

    worker = asyncio.run(measure())
    assert worker.node is not None
    assert worker.failure is None
    assert (worker.node.clock.offset_ns, worker.node.clock.bound_ns, worker.node.clock.same_machine) == (0, 0, True)


def test_a_loopback_server_is_not_asked_from_another_machine() -> None:
    async def measure() -> FarWorker:
        worker = FarWorker([], iter([5] * 20), boot="another", url="http://127.0.0.1:8000/v1")
        await worker.set_clock()
        return worker

    worker = asyncio.run(measure())
    assert not worker.running
    assert worker.failure == (
        "client worker 1 of 2 is on far, from where 127.0.0.1:8000 is another machine: measure it with --target, under "
        "an address that far reaches"
    )


@pytest.mark.parametrize("given", ["ray:0", "ray:x", "ray:", "slurm:4", "0", "-1", "many", "ray:-2", "10001", 0])
def test_what_workers_takes_is_said(given: object) -> None:
    with pytest.raises(UsageError, match=r"^--workers .*: give the number of client processes, as in 4, or ray:4 "):
        configure(workers=given)


def test_processes_are_counted_here_and_on_ray() -> None:
    here, there, asked = configure(workers="4"), configure(workers="ray:4"), configure()
    assert (here.workers, here.client_processes, here.on_ray) == (4, 4, False)
    assert (there.workers, there.client_processes, there.on_ray) == ("ray:4", 4, True)
    assert (asked.client_processes, asked.on_ray) == (None, False)
    with pytest.raises(UsageError, match="one process sends"):
        configure(workers="ray:1", arrival="poisson:5")


def test_sigterm_ends_a_grid_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from contextlib import nullcontext

    from loadgen.cluster import run
    from loadgen.errors import Interrupted

    def killed(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run, "_given", lambda *_: (tmp_path, None, None))
    monkeypatch.setattr(run, "_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(run, "run_grid", killed)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run.grid(None, {}, SimpleNamespace())  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGTERM) == before
