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
from loadgen.analysis.compare.external import PRECISIONS, Published, model_key, published
from loadgen.analysis.compare.row import CompareRow, model_size
from loadgen.errors import UsageError
from loadgen.measure.config import HEADROOM_SEQS
from loadgen.record.manifest import read_manifest
from loadgen.serving.launch import Launch
from loadgen.serving.process import ServerProcess, free_port
from loadgen.serving.simulated.cost import Presets, SteadyState, closed_loop, decode_only, load_presets

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


_ALIKE = {"a800": "a100"}
"""An A800 is an A100 with a slower NVLink."""


def preset_gpu(presets: Presets, name: str) -> str | None:
    """The preset of a GPU by the name that its driver gives it; None where there is none of it."""
    words = [_ALIKE.get(word, word) for word in re.findall(r"[a-z0-9]+", name.lower())]
    fitting = [key for key in presets.gpu if key != _LEARNING and _stands_in(key.split("-"), words)]
    return max(fitting, key=len, default=None)


def _stands_in(part: list[str], words: list[str]) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words)))


SOURCE = "ML.ENERGY leaderboard"
WORKLOAD = "LMArena chat"
ANCHOR_HEAD = ("published", "B", "J/token", "ours", "J/token", "ours / published", "parameters, ours / theirs")


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


def _is_anchor(figure: Published) -> bool:
    return (
        figure.source.startswith(SOURCE) and figure.dataset == WORKLOAD and figure.precision == "bf16"
        and figure.metric == "energy_per_token" and _gpus(figure) == 1 and _parameters(figure) is not None
    )  # fmt: skip


def _size(figure: Published) -> float:
    found = _parameters(figure)
    assert found is not None
    return found


def _parameters(figure: Published) -> float | None:
    return model_size(figure.model, None, {}, figure.model).parameters


def _gpus(figure: Published) -> int:
    found = re.match(r"(\d+)x", figure.gpu)
    return int(found[1]) if found else 1


PROMPT_TOKENS, ANSWER_TOKENS = 100, 400
"""Where the source states none."""
CURVE_HEAD = ("published by", "of what", "B", "J/token", "preset", "J/token SIMULATED, off", "tokens/s SIMULATED, off")
_OF_A_CURVE = ("energy_per_token", "tps")
_DECODING = "decoding alone"


class Curve(msgspec.Struct, kw_only=True):
    """What one source published of one model, format and GPU, and how far off the closed form of its preset is."""

    source: str
    of: str
    preset: str
    batches: list[int] = []
    joules: list[float] = []
    """Published, per output token."""
    energy: list[float] = []
    """Ours over theirs, less one."""
    speed: list[float] = []


def curves(presets: Presets) -> list[Curve]:
    """One for each published curve of joules per token or tokens/s over a stated batch whose GPU, model and format a
    preset knows."""
    found: dict[tuple[str, ...], Curve] = {}
    for figure in published():
        if _left_out(presets, figure) is not None:
            continue
        gpu, model = str(preset_gpu(presets, figure.gpu)), model_key(figure.model)
        key = (figure.source, figure.dataset, figure.model, figure.gpu, figure.precision)
        names = [re.split(r" \(| @", figure.source)[0], *([_DECODING] if _DECODING in figure.source else [])]
        curve = found.setdefault(
            key,
            Curve(
                source=", ".join([*names, *([figure.dataset] if figure.dataset not in ("", "not stated") else [])]),
                of=f"{figure.model}, {figure.precision}, {figure.gpu}",
                preset=f"{model} on {gpu}",
            ),
        )
        said = _said(presets, figure, gpu, model)
        batch = int(figure.batch)
        if batch not in curve.batches:
            curve.batches.append(batch)
        if figure.metric == "tps":
            curve.speed.append(said.tokens_per_s / figure.value - 1)
        else:
            curve.joules.append(figure.value)
            curve.energy.append(said.energy_per_token_j / figure.value - 1)
    return list(found.values())


def _said(presets: Presets, figure: Published, gpu: str, model: str) -> SteadyState:
    cost = presets.cost(_precision(presets, figure), gpu=gpu, model=model)
    slots = round(float(figure.running or figure.batch))
    prompt, answer = float(figure.prompt_tokens or PROMPT_TOKENS), float(figure.answer_tokens or ANSWER_TOKENS)
    if _DECODING in figure.source:
        return decode_only(cost, slots, prompt + answer / 2)
    return closed_loop(cost, slots, prompt, answer)


def _precision(presets: Presets, figure: Published) -> str:
    return next((name for name in PRECISIONS.get(figure.precision, ()) if name in presets.precision), "")


_NO_CURVE, _NO_BATCH, _NO_GPU, _GPUS, _NO_MODEL = "no curve", "B", "GPU", "GPUs", "model"


def _left_out(presets: Presets, figure: Published) -> str | None:
    """Why a figure is in no curve; None where it is in one."""
    if figure.metric not in _OF_A_CURVE or not _precision(presets, figure):
        return _NO_CURVE
    if preset_gpu(presets, _one(figure.gpu)) is None:
        return _NO_GPU
    if _gpus(figure) > 1:
        return _GPUS
    if model_key(figure.model) not in presets.model:
        return _NO_MODEL
    return None if figure.batch.isdigit() else _NO_BATCH


def _one(gpu: str) -> str:
    return re.sub(r"^\d+x", "", gpu)


def _curve_row(curve: Curve) -> list[str]:
    batches = [*curve.batches[:1], *curve.batches[1:][-1:]]
    joules = [number(value) for value in (*curve.joules[:1], *curve.joules[1:][-1:])]
    return [
        curve.source, curve.of, " to ".join(map(str, batches)), " to ".join(joules), curve.preset,
        _range(curve.energy), _range(curve.speed),
    ]  # fmt: skip


def _range(off: Sequence[float]) -> str:
    """In the geometric mean, and the least and greatest."""
    if len(off) < 2:
        return "".join(map(_percent, off))
    return f"{_percent(_typical(off))} ({_percent(min(off))} to {_percent(max(off))})"


def _typical(off: Sequence[float]) -> float:
    return geometric_mean([1 + value for value in off]) - 1


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
    presets = load_presets()
    found = curves(presets)
    served = [curve for curve in found if curve.source.startswith(SOURCE)]
    energy = [value for curve in served for value in curve.energy]
    speed = [value for curve in served for value in curve.speed]
    words = (
        "**No measurement of ours.** A line is one published curve whose GPU, model and format have a preset, compared "
        "with the preset's closed form at the same B: the geometric mean, the least and the greatest. ML.ENERGY's "
        f"leaderboard is of vLLM 0.11.1: joules per token are {_range(energy)}, tokens/s {_range(speed)}. The h100 "
        "preset was fitted to Llama-3.1-8B's watts and "
        f"joules, to nothing else. Where a source states no lengths, prompts have {PROMPT_TOKENS} and answers "
        f"{ANSWER_TOKENS} tokens (the leaderboard states answers only). Zenodo's and its author's are of transformers, "
        "which launches each kernel from Python; the simulator stands for vLLM, so its tokens/s are higher there in "
        "every format. An A800 counts as an A100."
    )
    left = {
        reason: sorted({word(figure) for figure in published() if _left_out(presets, figure) == reason})
        for reason, word in (
            (_NO_GPU, lambda figure: _one(figure.gpu)),
            (_NO_MODEL, lambda figure: figure.model),
            (_GPUS, lambda figure: figure.gpu),
            (_NO_BATCH, lambda figure: f"{figure.model} on {figure.gpu}"),
        )
    }
    out = (
        f"Left out: GPUs without a preset ({', '.join(left[_NO_GPU])}); models without one "
        f"({', '.join(left[_NO_MODEL])}); several GPUs ({', '.join(left[_GPUS])}); figures whose B is not stated "
        f"({', '.join(left[_NO_BATCH])})."
    )
    rows = table(CURVE_HEAD, map(_curve_row, found))
    return f"### Beside published figures\n\n{paragraph(words)}\n\n{rows}\n\n{paragraph(out)}"


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
