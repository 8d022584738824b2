"""The running batch of servers as they are met: engines side by side, chunked prompts, gateways, other names, a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pandas as pd
import pytest

import loadgen
from loadgen.analysis.run import Run
from tests.wild_server import Wild, serving, whole

pytestmark = pytest.mark.slow
B = 4
KEY = "a-key-of-this-test"


class DataParallel(Wild):
    """Every series once per engine, each with half of the requests; as many steps each as there are together."""

    def series(self, head: str) -> list[str]:
        names = [line.partition("{")[0] for line in super().series(head)]
        values = [float(line.rpartition(" ")[2]) for line in super().series(head)]
        return [
            f'{name}{{model_name="wild",engine="{engine}"}} {value if "iteration" in name else value / 2}'
            for name, value in zip(names, values, strict=True)
            for engine in (0, 1)
        ]


class Chunked(Wild):
    """A prompt takes 72 steps before the one that brings its first token."""

    tokens = 36

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        self.steps += 72 / max(1, self.peak)
        async for piece in super().answer(asked):
            yield piece


class Speculative(Wild):
    """Three tokens an event, in one step."""

    tokens = 36

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        for k in range(0, self.tokens, 3):
            await self.token(k, 3)
            self.steps -= 2 / max(1, self.peak)
            yield self.chunk(" a b c", k + 3, "length" if k + 3 == self.tokens else None)
        yield self.total(self.tokens)
        yield b"data: [DONE]\n\n"


class BehindAGateway(Wild):
    """Two requests reach the engine at a time, the others are kept before it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Semaphore(2)

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        self.running -= 1
        async with self.gate:
            self.running += 1
            self.peak = 2
            self._read_s[asyncio.current_task()] = asyncio.get_running_loop().time()
            async for piece in super().answer(asked):
                yield piece


class Renamed(Wild):
    """The same series under another prefix, as Ray Serve's."""

    def series(self, head: str) -> list[str]:
        return [line.replace("vllm:", "ray_vllm_") for line in super().series(head)]


class SGLang(Wild):
    def series(self, head: str) -> list[str]:
        return [
            f'sglang:num_running_reqs{{model_name="wild",tp_rank="0"}} {self.running}',
            "sglang:num_queue_reqs 0",
            f"sglang:generation_tokens_total {self.made}",
        ]


class Closed(Wild):
    """/metrics answers 403 whatever the key."""

    def metrics(self, head: str) -> bytes:
        return whole(403, {})


class Elsewhere(Wild):
    """Only its own port knows its metrics."""

    def metrics(self, head: str) -> bytes:
        if f"bearer {KEY}" not in head.lower():
            return whole(401, {})
        return super().metrics(head) if "/engine" in head.partition("\r\n")[0] else whole(404, {})


class Shared(Wild):
    """Somebody else has as many requests there."""

    def series(self, head: str) -> list[str]:
        shown = {"num_requests_running": 2 * self.running, "iteration_tokens_total_count": self.steps / 2}
        lines = super().series(head)
        for name, value in shown.items():
            lines = [f"{line.rpartition(' ')[0]} {value}" if name in line else line for line in lines]
        return lines


SERVERS: dict[str, type[Wild]] = {
    "data-parallel": DataParallel,
    "chunked": Chunked,
    "speculative": Speculative,
    "gateway": BehindAGateway,
    "ray": Renamed,
    "sglang": SGLang,
    "closed": Closed,
    "elsewhere": Elsewhere,
    "shared": Shared,
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pd.DataFrame]:
    """One cell of each, all in one sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_KEY", KEY)
        with serving({name: kind() for name, kind in SERVERS.items()}) as url:
            run: Run = loadgen.sweep(
                targets={f"{name}:fp16": f"{url}/{name}" for name in SERVERS},
                metrics_url=[f"elsewhere={url}/elsewhere/metrics/engine"],
                api_key_env="SOME_KEY",
                concurrency=[B],
                duration=1.0,
                warmup=0.2,
                repeats=1,
                power="none",
                dataset="sample",
                metrics_port=None,
                out=tmp_path_factory.mktemp("servers") / "run",
            )
        yield run.cells.set_index("target")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data-parallel", "counters"),
        ("chunked", "gauge"),
        ("speculative", "gauge"),
        ("ray", "counters"),
        ("sglang", "gauge"),
        ("elsewhere", "counters"),
    ],
)
def test_the_batch_that_ran_is_found(cells: pd.DataFrame, name: str, source: str) -> None:
    cell = cells.loc[name]
    assert cell.running_source == source
    # A gauge is looked at now and then in one second; tokens per step would say 1.3 or 12 instead.
    assert cell.running_mean == pytest.approx(B, rel=0.03 if source == "counters" else 0.25)
    assert "running batch" not in cell.reasons


def test_what_was_taken_is_said_where_the_servers_figures_disagree(cells: pd.DataFrame) -> None:
    assert "chunked prefill" in cells.loc["chunked"].running_note
    assert "speculative decoding" in cells.loc["speculative"].running_note
    assert cells.loc[["data-parallel", "ray", "sglang", "elsewhere"]].running_note.isna().all()


def test_who_holds_requests_back_is_named(cells: pd.DataFrame) -> None:
    cell = cells.loc["gateway"]
    assert not cell.valid
    assert "a layer between client and engine holds requests back (running 2.0 and waiting 0.0 of 4.0" in cell.reasons


def test_a_server_whose_metrics_are_closed_is_measured_without_its_batch(cells: pd.DataFrame) -> None:
    cell = cells.loc["closed"]
    assert "running batch" not in cell.reasons
    assert (cell.running_source, cell.tokens_per_s > 0) == ("none", True)
    assert "/metrics answers 403: it does not accept the key of --api-key-env" in cell.running_note


def test_more_than_was_asked_for_is_somebody_elses(cells: pd.DataFrame) -> None:
    cell = cells.loc["shared"]
    assert not cell.valid
    assert "is above B = 4: something else is using this server too" in cell.reasons
