"""The GPU kit's plan against simulated servers: cut, gone on with, packed, and written up as a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu import measure as measuring
from bench.gpu.measure import Deadline, Site, measure
from bench.gpu.pack import pack
from bench.gpu.pages import write
from bench.gpu.plan import load_plan
from loadgen.record.journal import unfinished_cells

PLAN = """
name = "small"
device = "cuda"
budget_s = 1000
start_s = 1
cell_s = 1
[options]
dataset = "sample"
fixed_length = 160
duration = 1.5
repeats = 1
power = "nvml"
[[step]]
name = "a-sensors"
why = "to see"
kind = "sensors"
[[step]]
name = "d-qwen3-0.6b"
why = "the smallest model, for short answers"
kind = "sweep"
model = "Qwen3-0.6B"
serve = ["fp16", "awq"]
options = { concurrency = [1, 4] }
"""


@pytest.mark.slow
def test_the_plan_in_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(PLAN)
    plan = load_plan(tmp_path / "small.toml")
    site = Site(work=tmp_path / "work", models=tmp_path / "models", preset="h200")
    run_dir = site.run(plan.step[1])
    now = [0.0]
    monkeypatch.setattr(measuring, "Deadline", lambda seconds: Deadline(seconds, lambda: now[0]))

    def until_one_cell_has_ended(line: str) -> None:
        now[0] += 2000 * line.startswith("001-")

    state = measure(plan, site, say=until_one_cell_has_ended)
    assert state.steps["d-qwen3-0.6b"].status == "cut"
    assert state.steps["a-sensors"].status == "skipped"
    assert [cell.index for cell in unfinished_cells(run_dir)] == [2, 3, 4]
    first = (run_dir / "journal" / "001-fp16-b1-r1.jsonl").read_bytes()

    assert measure(plan, site, say=lambda _: None).is_finished()
    assert unfinished_cells(run_dir) == []
    assert (run_dir / "journal" / "001-fp16-b1-r1.jsonl").read_bytes() == first

    pack(site.work, plan, tmp_path / "packed", folders={}, most_mib=1)
    page = write(tmp_path / "packed", tmp_path / "studies")
    text = page.read_text()
    assert page.name.startswith("simulated-h200-")
    assert "## Qwen3-0.6B, d-qwen3-0.6b (SIMULATED)" in text
    assert "| SIMULATED B | fp16 | awq |" in text
    figures = json.loads((tmp_path / "studies" / page.stem / "figures.json").read_text())
    assert figures["simulated"]
    valid = {(row["precision"], row["concurrency"]): row for row in figures["rows"]}
    for row in valid.values():
        if row["energy_per_token_j"] is None:
            continue  # a machine that starves the sampler leaves gaps, which no energy bridges
        assert row["energy_per_token_j"] == pytest.approx(row["power_w_mean"] / row["tokens_per_s"], rel=0.05)
