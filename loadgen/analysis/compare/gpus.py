"""The GPU as a factor of pooled runs: what a precision changes on every GPU, and how far the GPUs themselves differ.

Logarithm of a figure = GPU and repeat + precision. A precision is compared with the reference within each repeat, so
within one GPU: a difference between two GPUs is in no comparison of precisions. Whether a precision changes more on one
GPU than on another is tested (F test of the GPUs' means over the scatter of repeats within a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.estimate import ROUNDING, Estimate
from loadgen.analysis.run import Run
from loadgen.load.openloop import CLOSED
from loadgen.record.cell import level

METRICS = ("tokens_per_s", "energy_per_token_j", "energy_per_query_j")
ALPHA = 0.05


class GpuRatio(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio on one GPU: the geometric mean over its repeats."""

    gpu: str
    ratio: float
    repeats: int


class PrecisionEffect(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a target over the reference's, at one B, over all GPUs."""

    run: str
    target: str
    concurrency: int
    arrival: str = CLOSED
    metric: str
    change: Estimate
    """Geometric mean of the GPUs' ratios, each GPU counted once. Where the ratio `differs`, its interval is over GPUs,
    else over repeats within the GPUs: it holds for the mean of these GPUs."""
    gpus: tuple[GpuRatio, ...]
    differs: bool | None
    """Between the GPUs, at 5% over all of the run's tests of this metric; None: no GPU has two repeats."""

    @property
    def level(self) -> str:
        """ "B = 16"."""
        return level(self.concurrency, self.arrival)


class GpuEffect(msgspec.Struct, frozen=True, kw_only=True):
    """One metric on a GPU over that on the run's first GPU: all precisions and B, each compared with itself."""

    run: str
    gpu: str
    first: str
    metric: str
    change: Estimate
    pairs: int
    """Targets and B on which it rests; without an interval if it is one."""


class GpuFactor(msgspec.Struct, frozen=True, kw_only=True):
    """What is found of the GPUs of all pooled runs."""

    precisions: tuple[PrecisionEffect, ...] = ()
    gpus: tuple[GpuEffect, ...] = ()


Key = tuple[str, int, str]
"""Target, B and arrival."""
Logs = Mapping[Key, Mapping[int, float]]
"""The figure's logarithm by repeat."""


def gpu_factor(runs: Mapping[str, Run]) -> GpuFactor:
    """The GPU as a factor of the runs that were pooled from several GPUs; by label."""
    precisions: list[PrecisionEffect] = []
    gpus: list[GpuEffect] = []
    for label, run in runs.items():
        places = _gpus(run)
        if len(set(places.values())) > 1:
            for metric in METRICS:
                logs = _logs(run, metric, places)
                precisions += _precisions(label, metric, logs, places, run.manifest.config.reference)
                gpus += _levels(label, metric, logs, places)
    return GpuFactor(precisions=tuple(precisions), gpus=tuple(gpus))


def _gpus(run: Run) -> dict[int, str]:
    """The GPUs of each repeat that was measured."""
    parts = run.manifest.pooled
    repeats = sorted({int(repeat) for repeat in run.cells["repeat"]}) if parts else []
    return {repeat: "+".join(part.gpus) for repeat in repeats for part in parts if part.first <= repeat <= part.last}


def _logs(run: Run, metric: str, places: Mapping[int, str]) -> Logs:
    found: dict[Key, dict[int, float]] = {}
    for cell in run.valid_cells(metric).to_dict("records"):
        value = cell.get(metric)
        if isinstance(value, int | float) and 0 < value < math.inf and cell["repeat"] in places:
            arrival = str(cell.get("arrival") or CLOSED) if isinstance(cell.get("arrival"), str) else CLOSED
            key = str(cell["target"]), int(cell["concurrency"]), arrival
            found.setdefault(key, {})[int(cell["repeat"])] = math.log(value)
    return found


def _precisions(
    label: str, metric: str, logs: Logs, places: Mapping[int, str], reference: str
) -> Iterator[PrecisionEffect]:
    found = []
    for (target, b, arrival), ours in logs.items():
        theirs = logs.get((reference, b, arrival), {})
        by_gpu: dict[str, list[float]] = {}
        for repeat in sorted(ours.keys() & theirs.keys()) if target != reference else ():
            by_gpu.setdefault(places[repeat], []).append(ours[repeat] - theirs[repeat])
        if by_gpu:
            found.append(((target, b, arrival), by_gpu))
    for (target, b, arrival), by_gpu in found:
        differs = _differs(list(by_gpu.values()), len(found))
        yield PrecisionEffect(
            run=label, target=target, concurrency=b, arrival=arrival, metric=metric,
            change=_estimate(list(by_gpu.values()), over_gpus=bool(differs)), differs=differs,
            gpus=tuple(
                GpuRatio(gpu=gpu, ratio=math.exp(float(np.mean(values))), repeats=len(values))
                for gpu, values in by_gpu.items()
            ),
        )  # fmt: skip


def _within(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance of repeats within a GPU, and its degrees of freedom."""
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return (squares / degrees if degrees else 0.0), degrees


def _differs(groups: Sequence[Sequence[float]], tests: int) -> bool | None:
    variance, degrees = _within(groups)
    if not degrees or len(groups) < 2:
        return None
    centre = float(np.mean(np.concatenate(groups)))
    between = sum(len(group) * (float(np.mean(group)) - centre) ** 2 for group in groups) / (len(groups) - 1)
    if variance <= ROUNDING**2:
        return bool(between > ROUNDING**2)
    return bool(special.fdtrc(len(groups) - 1, degrees, between / variance) < ALPHA / tests)


def _estimate(groups: Sequence[Sequence[float]], *, over_gpus: bool) -> Estimate:
    """The mean of the groups' means, with Student's interval."""
    means = [float(np.mean(group)) for group in groups]
    variance, degrees = _within(groups)
    error = math.sqrt(variance * sum(1 / len(group) for group in groups)) / len(groups)
    if over_gpus or not degrees:  # without a second repeat, the GPUs themselves are the repeats
        degrees = len(means) - 1
        error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if degrees else 0.0
    centre = float(np.mean(means))
    if not degrees:
        return Estimate(value=math.exp(centre))
    half = float(special.stdtrit(degrees, 0.975)) * error
    return Estimate(value=math.exp(centre), lo=math.exp(centre - half), hi=math.exp(centre + half))


def _levels(label: str, metric: str, logs: Logs, places: Mapping[int, str]) -> Iterator[GpuEffect]:
    means: dict[str, dict[Key, float]] = {}
    for key, by_repeat in logs.items():
        for gpu in dict.fromkeys(places.values()):
            values = [value for repeat, value in by_repeat.items() if places[repeat] == gpu]
            if values:
                means.setdefault(gpu, {})[key] = float(np.mean(values))
    first = next(iter(dict.fromkeys(places.values())))
    for gpu, known in means.items():
        shared = [known[key] - means[first][key] for key in known if key in means.get(first, {})]
        if gpu != first and shared:
            change = _estimate([[value] for value in shared], over_gpus=True)
            yield GpuEffect(run=label, gpu=gpu, first=first, metric=metric, change=change, pairs=len(shared))
