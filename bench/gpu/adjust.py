"""Adjust: the simulator's constants of one GPU as a measured study has them, in the form of a --cost-file.

The GPU's own constants are fitted to its 16-bit rows, tokens/s and watts together; then one constant of each other
precision to its tokens/s, with the GPU's held. A constant that the rows say nothing about stays near what it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import least_squares

from bench.gpu.simulator import pairs, preset_gpu, preset_model
from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import Activity, Cost, Gpu, Model, Precision, Presets, closed_loop, load_presets

DENSE = ("fp16", "bf16")
FREE = {
    "awq": "dequant_flops_per_weight",
    "gptq": "dequant_flops_per_weight",
    "bnb-nf4": "buffer_bytes_per_weight",
    "bnb-int8": "extra_s_per_layer",
    "fp8": "extra_s_per_layer",
    "int8": "extra_s_per_layer",
}
"""Precision -> the constant of it that is fitted: the term by which it differs from 16 bits."""
_GPU = ("bandwidth_share", "compute_share", "launch_s", "sequence_s")
_ACTIVITY = ("memory", "compute", "sequence")
_DATA = 0.03
"""How far a row may lie off, as a standard deviation of its logarithm: what one repeat on one machine scatters."""
_PRIOR = math.log(2)
"""How far a constant may move, likewise: a factor of two."""


class Row(msgspec.Struct, frozen=True):
    """A measured row, with the simulator's inputs for it."""

    model: Model
    precision: str
    slots: int
    prompt_tokens: float
    answer_tokens: float
    tokens_per_s: float
    power_w: float | None


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """Constants that differ from the presets', with the study that they are from."""

    study: str
    preset: str
    gpu: Gpu
    precisions: dict[str, float]
    """Precision -> its constant of FREE."""
    kernels: dict[str, str]
    """Precision -> the kernel that it was measured with, where the server named one."""


def adjust(figures: Mapping[str, Any], study: str, presets: Presets | None = None) -> Adjusted:
    """Fits the constants to a study's figures.json.

    Raises UsageError for simulated figures, a GPU without a preset, or too few 16-bit rows.
    """
    presets = presets or load_presets()
    if figures["simulated"]:
        raise UsageError(f"{study} is SIMULATED: nothing is adjusted to figures that the simulator made itself")
    name = preset_gpu(presets, figures["gpu"])
    if name is None:
        raise UsageError(f"{study} is of {figures['gpu']}, which has no preset; add one to presets.toml first")
    rows = _rows(figures, presets)
    dense = [row for row in rows if row.precision in DENSE]
    if len({(row.model.name, row.slots) for row in dense}) < len(_GPU):
        raise UsageError(f"{study} has {len(dense)} rows in 16 bits: at least {len(_GPU)} different ones are needed")
    begun = presets.gpu[name]
    known = {key: figures[key] for key in ("idle_w", "limit_w") if figures.get(key)}
    gpu = _fit_gpu(msgspec.structs.replace(begun, **known), dense, presets)
    found = {}
    for precision, constant in FREE.items():
        if theirs := [row for row in rows if row.precision == precision]:
            found[precision] = _fit_constant(gpu, presets.precision[precision], constant, theirs)
    kernels = {row["precision"]: row["kernel"] for row in figures["rows"] if row.get("kernel")}
    return Adjusted(study=study, preset=name, gpu=gpu, precisions=found, kernels=kernels)


def to_toml(found: Adjusted) -> str:
    """As presets.toml has them, each entry with its source."""
    gpu = found.gpu
    lines = [f"[gpu.{found.preset}]"]
    lines += [f"{name} = {getattr(gpu, name):.4g}" for name in (*_GPU, "limit_w", "idle_w")]
    shares = ", ".join(f"{name} = {getattr(gpu.activity, name):.3g}" for name in (*_ACTIVITY, "dequant"))
    lines += [f"activity = {{ {shares} }}", f'source = "data sheet; {", ".join(_GPU)}, watts: fitted to {found.study}"']
    for precision, value in found.precisions.items():
        kernel = f", {found.kernels[precision]}" if precision in found.kernels else ""
        source = f"{FREE[precision]}: fitted to {found.study}{kernel}"
        lines += ["", f"[precision.{precision}]", f"{FREE[precision]} = {value:.4g}", f'source = "{source}"']
    return "\n".join(lines) + "\n"


def report(file: Path) -> str:
    """The TOML, under a comment that says how far the simulator is off before and after."""
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{file} is not a study's figures.json; `study` writes it beside the figures") from None
    presets = load_presets()
    found = adjust(figures, f"docs/studies/{file.parent.name}.md", presets)
    after = laid_over(presets, found)
    lines = ["# The simulator's error, typical and largest:"]
    for name, which in (("before", presets), ("after", after)):
        off = [abs(pair.tokens_per_s) for pair in pairs(figures, which)]
        watts = [abs(pair.power_w) for pair in pairs(figures, which) if pair.power_w is not None]
        lines.append(f"#   {name}: tokens/s {_range(off)}" + (f"; watts {_range(watts)}" if watts else ""))
    return "\n".join(lines) + "\n" + to_toml(found)


def laid_over(presets: Presets, found: Adjusted) -> Presets:
    """The presets with the adjusted constants."""
    precisions = {
        name: msgspec.structs.replace(presets.precision[name], **{FREE[name]: value})
        for name, value in found.precisions.items()
    }
    return msgspec.structs.replace(
        presets, gpu=presets.gpu | {found.preset: found.gpu}, precision=presets.precision | precisions
    )


def _rows(figures: Mapping[str, Any], presets: Presets) -> list[Row]:
    found = []
    for row in figures["rows"]:
        try:
            model = presets.model[preset_model(presets, row["model"])]
        except UsageError:
            continue
        if row["tokens_per_s"] is None or row["precision"] not in (*DENSE, *FREE):
            continue
        prompt, answer = row["prompt_tokens_mean"], row["output_tokens_mean"]
        measured = row["tokens_per_s"], row["power_w_mean"]
        found.append(Row(model, row["precision"], int(row["concurrency"]), prompt, answer, *measured))
    return found


def _fit_gpu(begun: Gpu, rows: Sequence[Row], presets: Presets) -> Gpu:
    """Every constant on its logarithm."""
    start = np.log([*(getattr(begun, name) for name in _GPU), *(getattr(begun.activity, name) for name in _ACTIVITY)])

    def made(logs: np.ndarray) -> Gpu:
        values = [float(value) for value in np.exp(logs)]
        activity = Activity(dequant=begun.activity.dequant, **dict(zip(_ACTIVITY, values[len(_GPU) :], strict=True)))
        return msgspec.structs.replace(begun, **dict(zip(_GPU, values, strict=False)), activity=activity)

    def off(logs: np.ndarray) -> np.ndarray:
        gpu = made(logs)
        data = [part for row in rows for part in _off(row, Cost(gpu=gpu, model=row.model, precision=_dense(presets)))]
        return np.concatenate([np.array(data) / _DATA, (logs - start) / _PRIOR])

    most = np.full(len(start), np.inf)
    most[:2] = 0.0  # a share of a data sheet's rate
    return made(least_squares(off, np.minimum(start, most - 1e-6), bounds=(-np.inf, most)).x)


def _fit_constant(gpu: Gpu, precision: Precision, constant: str, rows: Sequence[Row]) -> float:
    scale = getattr(precision, constant)

    def off(share: np.ndarray) -> np.ndarray:
        changed = msgspec.structs.replace(precision, **{constant: float(share[0]) * scale})
        data = [_off(row, Cost(gpu=gpu, model=row.model, precision=changed))[0] for row in rows]
        return np.array(data) / _DATA

    return float(least_squares(off, [1.0], bounds=(0.0, np.inf)).x[0]) * scale


def _off(row: Row, cost: Cost) -> list[float]:
    """Logarithms of what the simulator says over what was measured: tokens/s, and watts where there are any."""
    said = closed_loop(cost, row.slots, row.prompt_tokens, row.answer_tokens)
    found = [math.log(said.tokens_per_s / row.tokens_per_s)]
    return [*found, math.log(said.power_w / row.power_w)] if row.power_w else found


def _dense(presets: Presets) -> Precision:
    return presets.precision["fp16"]


def _range(values: Sequence[float]) -> str:
    return f"{100 * float(np.median(values)):.1f}%, {100 * max(values):.1f}%"
