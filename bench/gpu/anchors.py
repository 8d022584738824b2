"""Anchors: published joules per output token beside those of the nearest model size, measured or of the simulator."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.gpu.markdown import number
from bench.gpu.simulated import preset_gpu
from loadgen.analysis.compare.published import Published, published
from loadgen.analysis.compare.row import CompareRow
from loadgen.serving.simulated.cost import Model
from loadgen.serving.simulated.presets import Presets
from loadgen.serving.simulated.steadystate import closed_loop

SOURCE = "ML.ENERGY leaderboard"
WORKLOAD = "LMArena chat"
HEAD = ("published", "B", "J/token", "ours", "J/token", "ours / published", "parameters, ours / theirs")
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
