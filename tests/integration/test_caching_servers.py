"""Servers that cache prefixes, as vLLM does by default, in one sweep: one honours `cache_salt`, one does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import loadgen
from tests.wild_server import PROMPT_TOKENS, Wild, serving

CACHED_TOKENS = 48
MISS_S, HIT_S = 0.06, 0.005


class Caching(Wild):
    """Its first token comes sooner for a prompt that it has seen, with the same salt if it honours salts."""

    tokens = 4

    def __init__(self, *, honours_salts: bool) -> None:
        super().__init__()
        self._honours_salts = honours_salts
        self._known: set[tuple[str, str]] = set()
        self._queries = self._hits = 0

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        key = asked["prompt"], asked["cache_salt"] if self._honours_salts else ""
        hit = key in self._known
        self._known.add(key)
        self._queries += PROMPT_TOKENS
        self._hits += CACHED_TOKENS * hit
        self.ttft_s = HIT_S if hit else MISS_S
        async for piece in super().answer(asked):
            yield piece

    def series(self, head: str) -> list[str]:
        of = f'{{engine="0",model_name="{self.model}"}}'
        counters = {"prefix_cache_queries_total": self._queries, "prefix_cache_hits_total": self._hits}
        return [*super().series(head), *(f"vllm:{name}{of} {value}" for name, value in counters.items())]


def sweep(servers: dict[str, Caching], out: Path, **options: Any) -> loadgen.Run:
    with serving(servers) as url:
        return loadgen.sweep(
            targets={f"{name}:fp16": f"{url}/{name}" for name in servers}, concurrency=[2], dataset="sample",
            limit=8, duration=1, warmup=0.1, repeats=1, power="none", metrics_port=None, out=out, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[loadgen.Run]:
    """Eight items, so that most requests of a cell ask what was asked before."""
    servers = {"salted": Caching(honours_salts=True), "unsalted": Caching(honours_salts=False)}
    yield sweep(servers, tmp_path_factory.mktemp("cached") / "run", reference="salted")


def shares(run: loadgen.Run) -> dict[str, float]:
    return dict(run.cells.set_index("target").cache_hit_share)


def test_no_request_profits_from_another(run: loadgen.Run) -> None:
    assert shares(run)["salted"] == 0
    assert run.cells.set_index("target").loc["salted", "ttft_ms_p50"] >= 1e3 * MISS_S


def test_hits_in_spite_of_the_salts_are_told_and_mark_the_comparison(run: loadgen.Run) -> None:
    assert shares(run)["unsalted"] > 0.5
    said = [sentence for sentence in run.analysis.warnings if "prefix cache" in sentence]
    assert any("does not honour cache_salt" in sentence for sentence in said)
    marks = [note for found in run.analysis.crossovers for note in found.notes]
    assert any("unsalted took" in note and "from the prefix cache, salted 0.0%" in note for note in marks)


def test_a_cache_that_is_measured_on_purpose_is_filled_by_each_cell_itself(tmp_path: Path) -> None:
    run = sweep({"salted": Caching(honours_salts=True)}, tmp_path / "run", prefix_cache=True)
    assert shares(run)["salted"] > 0.5
    assert not [sentence for sentence in run.analysis.warnings if "cache_salt" in sentence]
