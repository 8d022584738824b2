"""The simulator's error: its closed form beside what was measured, where anything was, and beside what others
published; a part of docs/simulator.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import msgspec

from bench.gpu.anchors import ANSWER_TOKENS, PROMPT_TOKENS, SIMULATED_HEAD, simulated_anchors
from bench.gpu.markdown import number, paragraph, table
from bench.gpu.simulated import preset_gpu, preset_model
from loadgen.errors import UsageError
from loadgen.serving.simulated.presets import Presets, load_presets
from loadgen.serving.simulated.steadystate import closed_loop

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN = "<!-- Written by `python -m bench.gpu simulator-error` from docs/studies; not to be edited. -->\n"
END = "<!-- end of what is written by it -->\n"


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One precision at one batch: what the simulator says over what was measured, less one."""

    model: str
    precision: str
    concurrency: int
    tokens_per_s: float
    power_w: float | None
    energy_per_token_j: float | None


def pairs(figures: Mapping[str, Any], presets: Presets) -> list[Pair]:
    """Of one study's figures.json. Empty where the simulator has no such GPU, model or precision."""
    gpu = preset_gpu(presets, figures["gpu"])
    found = []
    for row in figures["rows"] if gpu is not None else []:
        try:
            cost = presets.cost(row["precision"], gpu=str(gpu), model=preset_model(presets, row["model"]))
        except UsageError:
            continue
        if row["tokens_per_s"] is None:
            continue
        said = closed_loop(cost, int(row["concurrency"]), row["prompt_tokens_mean"], row["output_tokens_mean"])
        found.append(
            Pair(
                model=row["model"],
                precision=row["precision"],
                concurrency=int(row["concurrency"]),
                tokens_per_s=said.tokens_per_s / row["tokens_per_s"] - 1,
                power_w=_off(said.power_w, row["power_w_mean"]),
                energy_per_token_j=_off(said.energy_per_token_j, row["energy_per_token_j"]),
            )
        )
    return found


def rows_of(found: Sequence[Pair]) -> list[list[str]]:
    """A row of text per pair."""
    return [
        [
            pair.model, pair.precision, str(pair.concurrency),
            *map(_percent, (pair.tokens_per_s, pair.power_w, pair.energy_per_token_j)),
        ]
        for pair in found
    ]  # fmt: skip


HEAD = ("model", "precision", "B", "tokens/s", "W", "J/token")


def section(studies: Path) -> str:
    """The section's text: a table per measured study of a GPU that has a preset, else that none is there."""
    parts = ["## Error against hardware"]
    for file in sorted(studies.glob("*/figures.json")):
        figures = json.loads(file.read_text(encoding="utf-8"))
        if figures["simulated"]:
            continue
        found = pairs(figures, load_presets())
        if not found:
            continue
        parts += [
            paragraph(
                f"{figures['gpu']}, {figures['day']} ([study](studies/{file.parent.name}.md)): what the closed form of "
                "the preset gives for the prompts and answers of the run, over what was measured, less one. "
                f"{_summary(found)}"
            ),
            table(HEAD, rows_of(found)),
        ]
    if len(parts) == 1:
        parts.append(
            paragraph(
                "**Hardware figures pending.** No study in docs/studies was measured on a GPU that has a preset: the "
                "simulator's error against hardware is not known. [bench/gpu](../bench/gpu/README.md) is the kit that "
                "measures it. Until then there are figures that others published:"
            )
        )
    return "\n\n".join([*parts, _published()]) + "\n"


def _published() -> str:
    """What others measured, beside the closed form; on every page, measured or not."""
    words = (
        "**No measurement of ours.** ML.ENERGY's leaderboard (BF16, LMArena chat, vLLM 0.11.1) beside the closed form "
        f"of the preset nearest in size, for prompts of {PROMPT_TOKENS} and answers of {ANSWER_TOKENS} tokens "
        "(assumed of that chat). The GPU's preset was fitted to Llama-3.1-8B's watts and joules, so those rows show "
        "the fit; nothing was fitted to the others. Another size, chat and vLLM lie between the two."
    )
    rows = table(SIMULATED_HEAD, simulated_anchors(load_presets()))
    return f"### Beside published figures\n\n{paragraph(words)}\n\n{rows}"


def write(page: Path = DOCS / "simulator.md", studies: Path = DOCS / "studies") -> Path:
    """Puts the section between its marks in the page. Raises UsageError when the page has no such marks."""
    content = page.read_text(encoding="utf-8")
    page.write_text(replaced(content, section(studies)), encoding="utf-8")
    return page


def replaced(content: str, text: str) -> str:
    before, mark, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise UsageError(f"the page has no section between {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _off(said: float, measured: float | None) -> float | None:
    return said / measured - 1 if measured else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{round(100 * value):+d}%"


def _summary(found: Sequence[Pair]) -> str:
    """The typical factor of each figure, and the largest difference."""
    words = []
    for name, values in (
        ("tokens/s", [p.tokens_per_s for p in found]),
        ("watts", [p.power_w for p in found if p.power_w is not None]),
        ("joules per token", [p.energy_per_token_j for p in found if p.energy_per_token_j is not None]),
    ):
        if values:
            typical = geometric_mean([1 + value for value in values])
            most = max(values, key=abs)
            words.append(f"{name} × {number(typical, '.2f')} in the geometric mean, at most {_percent(most)}")
    return "; ".join(words) + "."
