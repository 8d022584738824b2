"""Advice beside what an open loop measures on servers that answer after a known time, whatever the load.

Such a server completes X(n) = n / E2E requests a second, as the made run says: an open loop at a rate has rate x E2E in
flight, but for those that the window's edges cut.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import KnownServer, known_server

import loadgen
from loadgen.analysis import cells
from loadgen.analysis.advise import Advice
from loadgen.errors import UsageError
from loadgen.measure.config import configure

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from made_run import cell, manifest, valid_cell

RATE, TOKENS = 30.0, 16
BATCHES = (1, 32)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, KnownServer]]:
    """E2E 250 and 125 ms."""
    with (
        known_server(ttft_s=0.1, itl_s=0.01, tokens=TOKENS) as slow,
        known_server(ttft_s=0.05, itl_s=0.005, tokens=TOKENS) as fast,
    ):
        yield {"fp16": slow, "awq": fast}


@pytest.fixture
def closed(servers: dict[str, KnownServer], tmp_path: Path) -> Path:
    """The closed loops of these servers, as if they had been measured."""
    run = tmp_path / "run"
    run.mkdir()
    urls = {name: server.url for name, server in servers.items()}
    config = configure(
        targets=urls, concurrency=BATCHES, dataset="sample", max_tokens=TOKENS, repeats=1, power="none",
        metrics_port=None,
    )  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest(msgspec.to_builtins(config))))
    (run / "items.json").write_text('{"q1": "5", "q2": "8"}')
    for index, (name, b) in enumerate([(name, b) for name in urls for b in BATCHES], start=1):
        tokens_per_s = round(b * TOKENS / servers[name].e2e_s)
        valid_cell(run, cell(b, target=name, index=index), tokens_per_s=tokens_per_s, length=TOKENS)
    return run


def test_what_is_predicted_is_measured(
    servers: dict[str, KnownServer], closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that runs tests adds some 10 ms to an answer: 10% of 125 ms are allowed besides the interval. How the
    client read the tokens is not judged here."""
    monkeypatch.setattr(cells, "client_checks", lambda *_, **__: [])
    advice = loadgen.advise(closed, rate=RATE, price=2.5, verify=True, duration=1.5)
    assert isinstance(advice, Advice)
    found = advice.verification
    assert found is not None
    assert found.path == f"{closed}-verify-30"
    for arm in found.arms:
        if arm.refusal is not None:
            assert arm.refusal.startswith("client-bound: "), "a busy machine is late, and says so"
            continue
        figures = {one.figure: one for one in arm.figures}
        assert figures.keys() == {"in_flight", "e2e_s"}, arm
        assert arm.rate_asked_per_s == RATE
        assert arm.rate_per_s is not None
        e2e_s = servers[arm.target].e2e_s
        assert figures["e2e_s"].predicted == pytest.approx(e2e_s, rel=1e-3)
        assert figures["in_flight"].predicted == pytest.approx(arm.rate_per_s * e2e_s, rel=1e-3)
        for one in arm.figures:
            assert one.measured.hi is not None
            allowed = one.measured.hi - one.measured.value + 0.1 * one.predicted
            assert abs(one.measured.value - one.predicted) <= allowed, (arm.target, one)
    again = loadgen.advise(closed, rate=RATE, price=2.5, verify=True)
    assert isinstance(again, Advice)
    assert again.verification == found, "it is not measured twice"
    other = Path(found.path)
    with pytest.raises(
        UsageError, match=r"was measured at fp16=poisson:30,awq=.*, and this advice needs fp16=poisson:20"
    ):
        loadgen.advise(closed, rate=20, price=2.5, verify=True, out=other)
