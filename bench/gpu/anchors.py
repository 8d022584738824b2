"""Anchors: published joules per output token of the nearest model sizes, beside ours at the same batch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.gpu.markdown import number
from loadgen.analysis.compare.published import Published, published
from loadgen.analysis.compare.row import CompareRow

SOURCE = "ML.ENERGY leaderboard"
WORKLOAD = "LMArena chat"
HEAD = ("published", "B", "J/token", "ours", "J/token", "ours / published", "parameters, ours / theirs")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)B")


def anchors(rows: Sequence[CompareRow]) -> list[list[str]]:
    """For each of our 16-bit targets and each batch: the published 16-bit model of one GPU that is nearest in size."""
    known = [figure for figure in published() if _is_anchor(figure)]
    found = []
    for row in rows:
        same = [figure for figure in known if figure.batch == str(row.concurrency)]
        if row.precision not in ("fp16", "bf16") or row.energy_per_token_j is None or not row.parameters or not same:
            continue
        ours = row.parameters
        nearest = min(same, key=lambda figure: abs(_size(figure) - ours))
        found.append(
            [
                f"{nearest.model}, {nearest.gpu}", nearest.batch, number(nearest.value), f"{row.run} {row.target}",
                number(row.energy_per_token_j), number(row.energy_per_token_j / nearest.value, ".2f"),
                number(ours / _size(nearest), ".2f"),
            ]
        )  # fmt: skip
    return found


def _is_anchor(figure: Published) -> bool:
    one_gpu = re.match(r"\d+x", figure.gpu) is None
    return (
        figure.source.startswith(SOURCE) and figure.dataset == WORKLOAD and one_gpu and bool(_SIZE.search(figure.model))
    )


def _size(figure: Published) -> float:
    found = _SIZE.search(figure.model)
    assert found is not None
    return float(found[1]) * 1e9
