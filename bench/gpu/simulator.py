"""The simulator in the kit: servers for a step without its GPU, and its error against measured and published figures.

The error is a section of docs/simulator.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.gpu.markdown import number, paragraph, table
from bench.gpu.plan import Step
from loadgen.analysis.compare.external import Published, model_key, published
from loadgen.analysis.compare.row import CompareRow
from loadgen.errors import UsageError
from loadgen.measure.config import HEADROOM_SEQS
from loadgen.record.manifest import read_manifest
from loadgen.serving.launch import Launch
from loadgen.serving.process import ServerProcess, free_port
from loadgen.serving.simulated.cost import Model, Presets, closed_loop, load_presets

START_S = 60.0
_LEARNING = "h100-like"


@contextmanager
def servers(step: Step, options: dict[str, Any], preset: str, run_dir: Path, logs: Path) -> Iterator[dict[str, str]]:
    """Name -> address of a simulated server for each precision of the step, all at once: an idle one takes no time.

    A run that is gone on with finds its servers where they were.
    """
    presets = load_presets()
    model = preset_model(presets, str(step.model))
    ports = _ports(run_dir)
    seqs = max(options["concurrency"]) + HEADROOM_SEQS
    with ExitStack() as stack:
        processes = {}
        for name in step.serve:
            presets.cost(name, gpu=preset, model=model)
            port = ports.get(name) or free_port()
            argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", name, "--port", str(port)]
            argv += ["--gpu", preset, "--model", model, "--max-num-seqs", str(seqs)]
            launch = Launch(name=name, precision=name, argv=tuple(argv), port=port, simulated=True)
            processes[name] = stack.enter_context(ServerProcess(launch, logs / f"{name}.log"))
        for process in processes.values():
            process.wait_ready(START_S)
        yield {name: process.launch.url for name, process in processes.items()}


def _ports(run_dir: Path) -> dict[str, int]:
    if not (run_dir / "manifest.json").exists():
        return {}
    targets = read_manifest(run_dir).config.targets
    return {target.name: urlsplit(target.url).port for target in targets}


def preset_model(presets: Presets, name: str) -> str:
    """The preset of a model's shape. Raises UsageError when there is none."""
    key = model_key(name)
    if key not in presets.model:
        raise UsageError(f"the simulator has no model {key!r} for {name}; it has {', '.join(presets.model)}")
    return key


def preset_gpu(presets: Presets, name: str) -> str | None:
    """The preset of a GPU by the name that its driver gives it; None where there is none of it."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    fitting = [key for key in presets.gpu if key != _LEARNING and _stands_in(key.split("-"), words)]
    return max(fitting, key=len, default=None)


def _stands_in(part: list[str], words: list[str]) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words)))


SOURCE = "ML.ENERGY leaderboard"
WORKLOAD = "LMArena chat"
ANCHOR_HEAD = ("published", "B", "J/token", "ours", "J/token", "ours / published", "parameters, ours / theirs")
SIMULATED_HEAD = ("published", "B", "J/token", "preset", "J/token SIMULATED", "off", "parameters, preset / theirs")
PROMPT_TOKENS, ANSWER_TOKENS = 100, 500
"""Assumed of that chat: the leaderboard states neither."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)B")


def anchors(rows: Sequence[CompareRow]) -> list[list[str]]:
    """For each of our 16-bit targets and each batch: the published 16-bit model of one GPU that is nearest in size,
    unless it is larger or smaller by a factor of two."""
    known = [figure for figure in published() if _is_anchor(figure)]
    found = []
    for row in rows:
        same = [figure for figure in known if figure.batch == str(row.concurrency)]
        if row.precision not in ("fp16", "bf16") or row.energy_per_token_j is None or not row.parameters or not same:
            continue
        ours = row.parameters
        nearest = min(same, key=lambda figure: abs(_size(figure) - ours))
        if not 0.5 <= ours / _size(nearest) <= 2:
            continue
        found.append(
            [
                f"{nearest.model}, {nearest.gpu}", nearest.batch, number(nearest.value), f"{row.run} {row.target}",
                number(row.energy_per_token_j), number(row.energy_per_token_j / nearest.value, ".2f"),
                number(ours / _size(nearest), ".2f"),
            ]
        )  # fmt: skip
    return found


def simulated_anchors(presets: Presets) -> list[list[str]]:
    """For each published 16-bit figure of one GPU that has a preset: what the closed form says of the preset of the
    nearest model size."""
    found = []
    for figure in filter(_is_anchor, published()):
        gpu = preset_gpu(presets, figure.gpu)
        if gpu is None:
            continue
        theirs = _size(figure)
        key = min(presets.model, key=lambda name: abs(_parameters(presets.model[name]) - theirs))
        cost = presets.cost("bf16", gpu=gpu, model=key)
        said = closed_loop(cost, int(figure.batch), PROMPT_TOKENS, ANSWER_TOKENS).energy_per_token_j
        found.append(
            [
                f"{figure.model}, {figure.gpu}", figure.batch, number(figure.value), f"{key} on {gpu}",
                number(said, ".3g"), f"{round(100 * (said / figure.value - 1)):+d}%",
                number(_parameters(presets.model[key]) / theirs, ".2f"),
            ]
        )  # fmt: skip
    return found


def _parameters(model: Model) -> float:
    """With an embedding beside the head, which a step does not read."""
    return model.linear_params + 2 * model.head_params


def _is_anchor(figure: Published) -> bool:
    one_gpu = re.match(r"\d+x", figure.gpu) is None
    return (
        figure.source.startswith(SOURCE) and figure.dataset == WORKLOAD and one_gpu and bool(_SIZE.search(figure.model))
    )


def _size(figure: Published) -> float:
    found = _SIZE.search(figure.model)
    assert found is not None
    return float(found[1]) * 1e9


DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN = "<!-- Written by `python -m bench.gpu simulator-error` from docs/studies; not to be edited. -->\n"
END = "<!-- end of what is written by it -->\n"


class Pair(msgspec.Struct, frozen=True):
    """One precision at one batch: the simulator's figure over the measured one, less one."""

    model: str
    precision: str
    concurrency: int
    tokens_per_s: float
    power_w: float | None
    energy_per_token_j: float | None


def pairs(figures: Mapping[str, Any], presets: Presets) -> list[Pair]:
    """The rows of one study's figures.json. Empty where the simulator has no such GPU, model or precision."""
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
        speed = said.tokens_per_s / row["tokens_per_s"] - 1
        power = _off(said.power_w, row["power_w_mean"])
        energy = _off(said.energy_per_token_j, row["energy_per_token_j"])
        found.append(Pair(row["model"], row["precision"], int(row["concurrency"]), speed, power, energy))
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


ERROR_HEAD = ("model", "precision", "B", "tokens/s", "W", "J/token")


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
            table(ERROR_HEAD, rows_of(found)),
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
        "**No measurement of ours.** ML.ENERGY's leaderboard (BF16, LMArena chat, vLLM 0.11.1) compared with the "
        f"closed form of the preset nearest in size, for prompts of {PROMPT_TOKENS} and answers of {ANSWER_TOKENS} "
        "tokens (assumed of that chat). The GPU's preset was fitted to Llama-3.1-8B's watts and joules, so those rows "
        "show the fit; nothing was fitted to the others. Another size, chat and vLLM lie between the two."
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
