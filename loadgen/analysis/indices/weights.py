"""WeightSpace: for which weights of T, E and S each precision is the best choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.drawn import TAIL, Drawn, derive
from loadgen.analysis.indices.formulas import clamped
from loadgen.analysis.indices.standing import Standing
from loadgen.analysis.intervals import CONFIDENCE

WEIGHTS = 20_000
"""Drawn from the simplex: a share is known to 0.7 pp (95%)."""
UNCERTAIN_WEIGHTS = 2_000
UNCERTAIN_DRAWS = 500

Pillars = tuple[Drawn, Drawn, Drawn]


class WeightShare(msgspec.Struct, frozen=True, kw_only=True):
    """Shares (0 to 1) of all weights that a precision wins, with the highest linear SI."""

    target: str
    share: float
    lo: float | None = None
    hi: float | None = None
    """95% over the joint draws."""
    established: float | None = None
    """Of weights that it wins in at least 95% of the draws."""


class WeightSpace(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency; `clamped` with S as it enters SI, `raw` with S above 1 counted. Ties go to the reference."""

    concurrency: int
    clamped: tuple[WeightShare, ...]
    raw: tuple[WeightShare, ...]
    left_out: tuple[str, ...]
    """Precisions without T, E or S."""


def weight_space(concurrency: int, standings: Sequence[Standing], *, seed: int = 0) -> WeightSpace:
    """Of the standings with all three pillars, the reference's (`reference_standing`) first; weights uniform on the
    simplex, Dirichlet(1, 1, 1)."""
    raw = {s.target: (s.t, s.e, s.s) for s in standings if s.t and s.e and s.s}
    held = {target: (t, e, derive(clamped, s)) for target, (t, e, s) in raw.items()}
    return WeightSpace(
        concurrency=concurrency,
        clamped=_shares(held, seed),
        raw=_shares(raw, seed),
        left_out=tuple(s.target for s in standings if s.target not in raw),
    )


def _shares(pillars: Mapping[str, Pillars], seed: int) -> tuple[WeightShare, ...]:
    weights = np.random.default_rng([seed, 2]).dirichlet((1, 1, 1), WEIGHTS)
    values = np.array([[figure.value for figure in ours] for ours in pillars.values()])
    share = _wins(weights, values).mean(axis=0)
    draws = _stacked(pillars)
    if draws is None:
        return tuple(WeightShare(target=name, share=float(won)) for name, won in zip(pillars, share, strict=True))
    wins = np.stack([_wins(weights[:UNCERTAIN_WEIGHTS], draw) for draw in draws])
    lo, hi = np.quantile(wins.mean(axis=1), [TAIL, 1 - TAIL], axis=0)
    established = (wins.mean(axis=0) >= CONFIDENCE).mean(axis=0)
    ends = zip(pillars, share, lo, hi, established, strict=True)
    return tuple(
        WeightShare(target=name, share=float(won), lo=float(low), hi=float(high), established=float(sure))
        for name, won, low, high, sure in ends
    )


def _stacked(pillars: Mapping[str, Pillars]) -> Floats | None:
    """Draw x precision x pillar; None where one has no draws. Draws without a value are left out."""
    columns = [figure.draws for ours in pillars.values() for figure in ours]
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    table = np.stack(np.broadcast_arrays(*known), axis=1)
    table = table[np.isfinite(table).all(axis=1)][:UNCERTAIN_DRAWS]
    return table.reshape(len(table), len(pillars), 3) if len(table) > 1 else None


def _wins(weights: Floats, values: Floats) -> NDArray[np.bool_]:
    """Weight x precision: which one has the highest SI."""
    wins: NDArray[np.bool_] = np.argmax(weights @ values.T, axis=1)[:, None] == np.arange(len(values))
    return wins
