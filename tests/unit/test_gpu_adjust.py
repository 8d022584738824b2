"""The simulator's presets adjusted to a study: constants that were put into made figures are found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.gpu.adjust import FREE, adjust, laid_over, report, to_toml
from bench.gpu.simulator import pairs
from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import Activity, closed_loop, load_presets

PRESETS = load_presets()
TRUE_GPU = msgspec.structs.replace(
    PRESETS.gpu["h200"], bandwidth_share=0.66, launch_s=1.7e-3, sequence_s=35e-6, idle_w=90.0, limit_w=650.0,
    activity=Activity(memory=0.60, compute=0.90, sequence=0.95),
)  # fmt: skip
TRUE = {"awq": 0.9, "gptq": 0.0, "bnb-nf4": 6.0}
MODELS = ("Mistral-7B-v0.3", "Qwen3-0.6B", "Falcon3-3B-Base")
"""Keys of the presets but for version and tuning."""


def figures(*, simulated: bool = False, gpu: str = "NVIDIA H200") -> dict[str, Any]:
    """Rows that the closed form gives for constants other than the presets'."""
    rows = []
    for model, key in zip(MODELS, ("mistral-7b", "qwen3-0.6b", "falcon3-3b"), strict=True):
        for precision in ("fp16", *TRUE):
            truth = msgspec.structs.replace(
                PRESETS.precision[precision], **({FREE[precision]: TRUE[precision]} if precision in TRUE else {})
            )
            cost = msgspec.structs.replace(
                PRESETS.cost(precision, gpu="h200", model=key), gpu=TRUE_GPU, precision=truth
            )
            for slots in (1, 8, 32, 128):
                said = closed_loop(cost, slots, 100, 160)
                rows.append({"step": "b", "model": model, "precision": precision, "concurrency": slots,
                             "running_mean": slots, "prompt_tokens_mean": 100, "output_tokens_mean": 160,
                             "tokens_per_s": said.tokens_per_s, "power_w_mean": said.power_w,
                             "energy_per_token_j": said.energy_per_token_j,
                             "kernel": "MacheteLinearKernel" if precision in ("awq", "gptq") else None})  # fmt: skip
    return {"simulated": simulated, "gpu": gpu, "day": "2026-12-01", "idle_w": 90.0, "limit_w": 650.0, "rows": rows}


def test_constants_that_made_the_figures_are_found_and_the_error_is_gone(tmp_path: Path) -> None:
    found = adjust(figures(), "docs/studies/h200.md", PRESETS)
    assert found.preset == "h200"
    assert found.gpu.bandwidth_share == pytest.approx(0.66, rel=0.02)
    assert found.gpu.launch_s == pytest.approx(1.7e-3, rel=0.02)
    assert found.gpu.sequence_s == pytest.approx(35e-6, rel=0.05)
    assert (found.gpu.idle_w, found.gpu.limit_w) == (90.0, 650.0)
    assert found.gpu.activity.memory == pytest.approx(0.60, rel=0.03)
    assert found.precisions == {
        "awq": pytest.approx(0.9, rel=0.05), "gptq": pytest.approx(0.0, abs=0.05),
        "bnb-nf4": pytest.approx(6.0, rel=0.02),
    }  # fmt: skip
    before = max(abs(pair.tokens_per_s) for pair in pairs(figures(), PRESETS))
    after = max(abs(pair.tokens_per_s) for pair in pairs(figures(), laid_over(PRESETS, found)))
    assert before > 0.2
    assert after < 0.01

    # What is printed is a --cost-file that says the same, with the source of every entry.
    (tmp_path / "costs.toml").write_text(to_toml(found))
    read = load_presets(tmp_path / "costs.toml")
    assert max(abs(pair.tokens_per_s) for pair in pairs(figures(), read)) < 0.01
    assert "fitted to docs/studies/h200.md" in read.gpu["h200"].source
    said = "dequant_flops_per_weight: fitted to docs/studies/h200.md, MacheteLinearKernel"
    assert read.precision["awq"].source == said
    assert read.gpu["h100"] == PRESETS.gpu["h100"]


def test_the_report_says_how_far_off_it_was_and_is(tmp_path: Path) -> None:
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "figures.json").write_text(json.dumps(figures()))
    lines = report(tmp_path / "h200" / "figures.json").splitlines()
    assert lines[1].startswith("#   before: tokens/s ")
    assert lines[2].startswith("#   after: tokens/s 0.")
    assert "[gpu.h200]" in lines


def test_nothing_is_adjusted_to_simulated_figures_to_unknown_gpus_or_to_a_handful_of_rows() -> None:
    with pytest.raises(UsageError, match="is SIMULATED: nothing is adjusted"):
        adjust(figures(simulated=True), "study", PRESETS)
    with pytest.raises(UsageError, match="NVIDIA L40S, which has no preset"):
        adjust(figures(gpu="NVIDIA L40S"), "study", PRESETS)
    few = figures()
    few["rows"] = few["rows"][:3]
    with pytest.raises(UsageError, match="3 rows in 16 bits"):
        adjust(few, "study", PRESETS)
    with pytest.raises(UsageError, match=r"is not a study's figures\.json"):
        report(Path("nowhere/figures.json"))
