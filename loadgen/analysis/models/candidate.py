"""Candidate: a cost model of a token, written for a reference and a target at once.

Every candidate is linear in its parameters, none of which may be below 0. The roofline is so once it is known which
batches lie above the roof.

Pair: what a token cost on both sides of a comparison, one observation per cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats, Ints
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.estimate import Direction

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Bits = Mapping[bool, int]
"""Bits per weight, of the reference under False and of the target under True."""


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """Places at which a model says what a token costs."""

    batch: Floats
    of_target: Bools


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    name: str
    words: str
    terms: Mapping[str, Literal["token", "step", "bit·step"]]
    """The parameters, each with what it is paid per; its unit is that of the cost (J or s) over it."""
    design: Callable[[Axis, Bits | None, float], Floats]
    """Costs per token are design(axis, bits, roof) @ parameters; shape (places, terms)."""
    b_star: Callable[[Floats, Bits | None], tuple[float, Direction] | None]
    """Where target and reference cost the same by the parameters; None: nowhere."""
    needs_bits: bool = False
    has_roof: bool = False
    """`roof`, the batch from which on the reference computes longer than it reads weights, is to be fitted too."""
    contains: tuple[str, ...] = ()
    """Models that are special cases of this one."""


def _crossing(per_token: float, per_step: float) -> tuple[float, Direction] | None:
    """Zero of per_token + per_step / B, the target's cost less the reference's."""
    if per_token * per_step >= 0:
        return None
    return -per_step / per_token, "wins_below" if per_step < 0 else "wins_above"


def _known(bits: Bits | None) -> Bits:
    assert bits is not None
    return bits


def _eq19(axis: Axis, bits: Bits | None, roof: float) -> Floats:
    wide = np.where(axis.of_target, _known(bits)[True], _known(bits)[False])
    return np.column_stack([np.ones(len(axis.batch)), wide / axis.batch, axis.of_target])


def _eq23(axis: Axis, bits: Bits | None, roof: float) -> Floats:
    return np.column_stack([~axis.of_target, axis.of_target, axis.of_target / axis.batch])


def _amortized(axis: Axis, bits: Bits | None, roof: float) -> Floats:
    step = 1 / axis.batch
    return np.column_stack([~axis.of_target, ~axis.of_target * step, axis.of_target, axis.of_target * step])


def _one_floor(axis: Axis, bits: Bits | None, roof: float) -> Floats:
    step = 1 / axis.batch
    return np.column_stack([np.ones(len(step)), ~axis.of_target * step, axis.of_target * step])


def _roofline(axis: Axis, bits: Bits | None, roof: float) -> Floats:
    step = 1 / axis.batch
    share = np.where(axis.of_target, _known(bits)[True] / _known(bits)[False], 1.0)
    computes = axis.batch > share * roof
    reads = np.where(computes, 0.0, share * step)
    return np.column_stack([step, reads, computes, np.ones(len(step)), axis.of_target * step])


def _roofline_b_star(theta: Floats, bits: Bits | None) -> tuple[float, Direction] | None:
    """The target's step has reached its roof, the reference's reads weights still: dequant + compute * B = weights."""
    _, weights, compute, _, dequant = theta
    saved = weights * (1 - _known(bits)[True] / _known(bits)[False])
    if not 0 < dequant < saved or compute == 0:
        return None
    return float((weights - dequant) / compute), "wins_below"


_ALL = (
    Candidate(
        name="M1",
        words="Eq 19: weight reads shared by the batch, overhead paid per token",
        terms={"gamma": "token", "alpha": "bit·step", "phi": "token"},
        design=_eq19,
        b_star=lambda theta, bits: _crossing(theta[2], theta[1] * (_known(bits)[True] - _known(bits)[False])),
        needs_bits=True,
    ),
    Candidate(
        name="M2",
        words="Eq 23: overhead shared by the batch, no weight reads",
        terms={"e_comp reference": "token", "e_comp target": "token", "e_cast": "step"},
        design=_eq23,
        b_star=lambda theta, bits: _crossing(theta[1] - theta[0], theta[2]),
    ),
    Candidate(
        name="M3",
        words="both shared by the batch, and a cost per token of each precision",
        terms={"c0 reference": "token", "c1 reference": "step", "c0 target": "token", "c1 target": "step"},
        design=_amortized,
        b_star=lambda theta, bits: _crossing(theta[2] - theta[0], theta[3] - theta[1]),
        contains=("M1", "M2", "M3c"),
    ),
    Candidate(
        name="M3c",
        words="both shared by the batch, and the same cost per token: B cancels",
        terms={"c0": "token", "c1 reference": "step", "c1 target": "step"},
        design=_one_floor,
        b_star=lambda theta, bits: None,
    ),
    Candidate(
        name="M4",
        words="roofline: weight reads or compute, whichever is longer, and overheads per step",
        terms={"launch": "step", "weights": "step", "compute": "token", "sequence": "token", "dequant": "step"},
        design=_roofline,
        b_star=_roofline_b_star,
        needs_bits=True,
        has_roof=True,
    ),
)
CANDIDATES = {candidate.name: candidate for candidate in _ALL}
"""By name, in the order of reports."""
TIME_ONLY = ("M4",)
"""Reading and computing hide each other's time, not each other's energy."""


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
        arrays = ("log_cost", "batch", "of_target", "concurrency", "repeat")
        return msgspec.structs.replace(self, **{name: getattr(self, name)[kept] for name in arrays})


def pair_of(
    cells: Sequence[CellSummary],
    cost: Callable[[CellSummary], float | None],
    *,
    target: str,
    reference: str,
    bits: Mapping[str, int],
) -> Pair:
    """The cells that have a (valid) cost; where no running batch was measured, requests in flight are used instead."""
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
