"""A sweep over two shapes of requests against one simulated server."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboard_stack import serving

import loadgen
from loadgen.serving.process import free_port


def test_a_cell_has_requests_of_one_shape_and_its_server_sees_all_shapes(tmp_path: Path) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", "awq", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with serving(argv, f"{url}/health"):
        run = loadgen.sweep(
            targets={"awq": url}, dataset="synthetic:24/8,96/16", limit=200, concurrency=2,
            duration=0.8, warmup=0.1, repeats=1, power="simulated", metrics_port=None, quiet=True, out=tmp_path / "run",
        )  # fmt: skip
    assert list(run.every_cell["shape"]) == ["24/8", "96/16"]
    answered = run.requests[(run.requests["phase"] != "warmup") & (run.requests["status"] == "ok")]
    lengths = answered.groupby("shape")[["prompt_tokens", "output_tokens"]].agg(["min", "max"]).to_numpy().tolist()
    assert lengths == [[24, 24, 8, 8], [96, 96, 16, 16]]
    [entry] = run.analysis.token_energy
    assert (entry.target, entry.concurrency) == ("awq", 2)
    assert entry.prompt_token_energy_j or entry.why
    assert "Joules by token" in (run.path / "report.html").read_text(encoding="utf-8")
