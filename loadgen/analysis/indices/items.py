"""ItemFigures: accuracy and answer lengths of targets against one reference, over the items that both completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.drawn import Drawn
from loadgen.analysis.indices.point import OperatingPoint
from loadgen.analysis.trust.pairing import PairedItems, PairedLengths, influence, pair_lengths, paired
from loadgen.analysis.trust.ratio import TrustRatio, ratio_draws, trust_ratio


class ItemFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one target, with joint draws: items vary together for all figures of all targets."""

    t_si: TrustRatio | None = None
    t: Drawn | None = None
    """T_SI (Eq. 2); None without shared items, or where the reference has none of them right."""
    tokens: tuple[Drawn, Drawn] | None = None
    """Mean output tokens per answer of target and reference; None where no length is known, or where `refusal`."""
    refusal: str | None = None
    """Why lengths, and so joules per query, cannot be compared."""


def item_figures(
    targets: Sequence[OperatingPoint], reference: OperatingPoint, *, resamples: int, seed: int
) -> dict[str, ItemFigures]:
    """By target. Draws are those of a sum over items, each with a normal deviate of its own that all figures share
    (delta method on logarithms), so that a figure keeps its own interval and its correlation with the others."""
    pairs = {target.target: paired(target.scores, reference.scores) for target in targets}
    lengths = {target.target: pair_lengths(target.lengths, reference.lengths) for target in targets}
    columns: dict[tuple[str, str], tuple[tuple[str, ...], Floats]] = {}
    for name, items in pairs.items():
        if items is not None:
            columns[name, "t"] = items.item_ids, influence(items.target) - influence(items.reference)
    for name, found in lengths.items():
        if found is not None and found.refusal is None:
            columns[name, "target"] = found.item_ids, influence(found.target)
            columns[name, "reference"] = found.item_ids, influence(found.reference)
    deviates = _deviates(columns, resamples=resamples, seed=seed)
    return {
        name: _figures(items, lengths[name], {what: drawn for (of, what), drawn in deviates.items() if of == name})
        for name, items in pairs.items()
    }


def _figures(
    items: PairedItems | None, lengths: PairedLengths | None, deviates: Mapping[str, tuple[float, Floats]]
) -> ItemFigures:
    ratio = trust_ratio(items) if items is not None else None
    t = None
    if ratio is not None and ratio.value is not None:
        t = Drawn(value=ratio.value, draws=ratio_draws(ratio, deviates["t"][1]))
    if lengths is None or lengths.refusal is not None:
        return ItemFigures(t_si=ratio, t=t, refusal=lengths.refusal if lengths is not None else None)

    def mean(what: str, side: Floats) -> Drawn:
        error, normal = deviates[what]
        value = float(side.mean())
        return Drawn(value=value, draws=value * np.exp(error * normal))

    return ItemFigures(t_si=ratio, t=t, tokens=(mean("target", lengths.target), mean("reference", lengths.reference)))


def _deviates(
    columns: Mapping[tuple[str, str], tuple[tuple[str, ...], Floats]], *, resamples: int, seed: int
) -> dict[tuple[str, str], tuple[float, Floats]]:
    """Standard error of each column's sum, and its draws in units of it: standard normal, correlated as the columns
    are. A column without variance gets independent ones."""
    places: dict[str, int] = {}
    for items, _ in columns.values():
        for item in items:
            places.setdefault(item, len(places))
    table = np.zeros((len(columns), len(places)))
    for row, (items, values) in zip(table, columns.values(), strict=True):
        row[[places[item] for item in items]] = values
    errors = np.sqrt((table**2).sum(axis=1))
    scaled = table / np.where(errors > 0, errors, 1.0)[:, None]
    correlation = np.einsum("ik,jk->ij", scaled, scaled)
    correlation[errors == 0, errors == 0] = 1.0
    values, vectors = np.linalg.eigh(correlation)
    normal = np.random.default_rng([seed, 3]).standard_normal((resamples, len(columns)))
    drawn = np.einsum("dk,ik->di", normal * np.sqrt(np.maximum(values, 0.0)), vectors)
    return {key: (float(errors[place]), drawn[:, place]) for place, key in enumerate(columns)}
