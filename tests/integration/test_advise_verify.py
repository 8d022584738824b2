"""Advice beside what an open loop measures on the same servers: SIMULATED ones, at four times their speed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dashboard_stack import serving

import loadgen
from loadgen.analysis import cells
from loadgen.analysis.advise import Advice
from loadgen.errors import UsageError
from loadgen.serving.process import free_port

RATE = 30.0


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        found = {}
        for name in ("fp16", "gptq"):
            port = free_port()
            argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", name, "--port", str(port)]
            found[name] = f"http://127.0.0.1:{port}"
            stack.enter_context(serving([*argv, "--time-scale", "4"], f"{found[name]}/health"))
        yield found


def test_what_is_predicted_is_measured_as_nearly_as_so_few_requests_tell(
    urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 60 requests a window, whose mean length is accounted for; when they come is in the interval. X(B) is of as
    few, and a machine that runs tests is late: so twice the interval and 20% are allowed. The judgement of the client's
    own speed is left out."""
    monkeypatch.setattr(cells, "client_checks", lambda *_, **__: [])
    run = loadgen.sweep(
        targets=urls, concurrency=(1, 12), dataset="sample", duration=0.8, repeats=1, metrics_port=None, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    advice = loadgen.advise(run.path, rate=RATE, verify=True, duration=2)
    assert isinstance(advice, Advice)
    assert advice.verification is not None
    assert advice.verification.path == f"{run.path}-verify-30"
    assert advice.verification.simulated
    for arm in advice.verification.arms:
        assert {"energy_per_query_j", "in_flight", "power_w"} <= {one.figure for one in arm.figures}, arm
        for one in arm.figures:
            assert one.measured.hi is not None
            allowed = 2 * (one.measured.hi - one.measured.value) + 0.2 * one.predicted
            assert abs(one.measured.value - one.predicted) < allowed, (arm.target, one)
    measured = loadgen.load_run(advice.verification.path)
    asked = measured.cells.set_index("target")["rate_asked_per_s"]
    assert asked.to_dict() == pytest.approx({arm.target: arm.rate_asked_per_s for arm in advice.verification.arms})
    again = loadgen.advise(run.path, rate=RATE, verify=True)
    assert isinstance(again, Advice)
    assert again.verification == advice.verification, "it is not measured twice"
    with pytest.raises(UsageError, match="was measured at fp16=poisson:30"):
        loadgen.advise(run.path, rate=RATE / 2, verify=True, out=f"{run.path}-verify-30")
