"""Pair: what a token cost on both sides of a comparison, one observation per cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.models.candidate import Axis, Bools

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of both sides at the concurrencies that both have; every array has one entry per cell."""

    log_cost: Floats
    """ln of joules or seconds per token."""
    batch: Floats
    """The measured running batch, mean over the repeats of its side and concurrency."""
    of_target: Bools
    concurrency: Ints
    repeat: Ints
    bits: Mapping[bool, int] | None
    """Bits per weight by `of_target`; None if either side's are unknown."""

    @property
    def axis(self) -> Axis:
        """Where the observations lie."""
        return Axis(batch=self.batch, of_target=self.of_target)

    @property
    def concurrencies(self) -> list[int]:
        """Distinct, ascending."""
        return sorted(set(self.concurrency.tolist()))

    @property
    def cell(self) -> Ints:
        """Number of the observation's side and concurrency, from 0."""
        return np.unique(2 * self.concurrency + self.of_target, return_inverse=True)[1]

    @property
    def start(self) -> Ints:
        """Number of the server's start (side and repeat) that the observation was made on, from 0."""
        return np.unique(2 * self.repeat + self.of_target, return_inverse=True)[1]

    def only(self, kept: Bools) -> Pair:
        """The observations where `kept`."""
        return Pair(
            log_cost=self.log_cost[kept],
            batch=self.batch[kept],
            of_target=self.of_target[kept],
            concurrency=self.concurrency[kept],
            repeat=self.repeat[kept],
            bits=self.bits,
        )


def pair_of(
    cells: Sequence[CellSummary],
    cost: Callable[[CellSummary], float | None],
    *,
    target: str,
    reference: str,
    bits: Mapping[str, int],
) -> Pair:
    """Of the cells that have a (valid) cost; where no running batch was measured, requests in flight stand for it."""
    costs = {
        (cell.target, cell.concurrency, cell.repeat): (value, cell.batch or float(cell.concurrency))
        for cell in cells
        if cell.target in (target, reference) and (value := cost(cell))
    }
    shared = {b for name, b, _ in costs if name == target} & {b for name, b, _ in costs if name == reference}
    kept = [key for key in costs if key[1] in shared]
    batches: dict[tuple[str, int], list[float]] = {}
    for name, b, repeat in kept:
        batches.setdefault((name, b), []).append(costs[name, b, repeat][1])
    return Pair(
        log_cost=np.log(np.array([costs[key][0] for key in kept])),
        batch=np.array([float(np.mean(batches[name, b])) for name, b, _ in kept]),
        of_target=np.array([name == target for name, _, _ in kept], dtype=np.bool_),
        concurrency=np.array([b for _, b, _ in kept], dtype=np.int64),
        repeat=np.array([repeat for _, _, repeat in kept], dtype=np.int64),
        bits={True: bits[target], False: bits[reference]} if {target, reference} <= bits.keys() else None,
    )
