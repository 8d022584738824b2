"""Accuracy ratios of several targets to one reference, their items drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadgen.analysis.indices.drawn import TAIL, Drawn
from loadgen.analysis.indices.point import OperatingPoint
from loadgen.analysis.trust.pairing import PairedItems
from loadgen.analysis.trust.resample import resampled_means


def paired(target: OperatingPoint, reference: OperatingPoint) -> PairedItems | None:
    """Items that both answered, in the reference's order; None if there is none."""
    shared = tuple(item for item in reference.scores if item in target.scores)
    if not shared:
        return None
    return PairedItems(
        item_ids=shared,
        reference=np.array([reference.scores[item] for item in shared]),
        target=np.array([target.scores[item] for item in shared]),
    )


def accuracy_ratios(
    targets: Sequence[OperatingPoint], reference: OperatingPoint, *, resamples: int, seed: int
) -> dict[str, Drawn]:
    """T_SI (Eq. 2) by target, of the items shared with the reference; a draw takes the same items for all targets.

    A target without shared items, or whose reference has none of them right, is left out.
    """
    columns, values = [], {}
    for target in targets:
        pairs = paired(target, reference)
        if pairs is None or not pairs.reference.any():
            continue
        places = [place for place, item in enumerate(reference.scores) if item in target.scores]
        for side in (pairs.target, pairs.reference):
            column = np.zeros(len(reference.scores))
            column[places] = side
            columns.append(column)
        values[target.target] = float(pairs.target.mean() / pairs.reference.mean())
    if not columns:
        return {}
    means = resampled_means(np.column_stack(columns), resamples=resamples, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means[:, 1::2] > 0, means[:, ::2] / means[:, 1::2], np.nan)
    return {
        name: Drawn(value=value, draws=draws if np.isnan(draws).mean() <= TAIL else None)
        for (name, value), draws in zip(values.items(), ratios.T, strict=True)
    }
