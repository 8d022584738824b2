"""OperatingPoint: what was measured of a target at one concurrency, repeat by repeat and item by item.

ItemFigures: accuracy and answer lengths of targets against one reference, over the items that both completed.

Spans: a word per batch size, said in one sentence for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.formulas import Drawn, Estimate
from loadgen.analysis.intervals import too_wide
from loadgen.analysis.trust.pairing import PairedItems, PairedLengths, influence, pair_lengths, paired
from loadgen.analysis.trust.significance import TrustRatio, ratio_draws, trust_ratio
from loadgen.errors import UsageError

UNEQUAL_BATCH = 0.03
"""Running batches further apart than this share are not the same B."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One valid cell; None: not measured. Raises UsageError for a figure that is no number above 0."""

    repeat: int
    running_mean: float | None = None
    """Measured running batch."""
    tokens_per_s: float | None = None
    """Aggregate over all slots."""
    energy_per_query_j: float | None = None
    """Measured: counter or integral of the power."""
    energy_hli_per_query_j: float | None = None
    """Board power x time: a bound."""
    tokens_per_query: float | None = None
    memory_needed_bytes: float | None = None
    """Weights and the KV cache in use at its peak."""
    memory_peak_bytes: float | None = None
    """NVML's peak, a server's reservation included."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[1:]:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} of repeat {self.repeat} is {value}, give a number above 0 or None")


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Repeats of several targets with the same number ran next to each other: they are compared pairwise."""

    target: str
    concurrency: int
    repeats: tuple[Repeat, ...] = ()
    scores: Mapping[str, float] = {}
    """Item -> share of correct answers (0 to 1), in the order asked; empty: not graded, or not comparable."""
    lengths: Mapping[str, float] = {}
    """Item -> mean output tokens of its answers. Joules per query are then compared over the items of both sides;
    empty: not known, each side's `energy_per_query_j` is taken unchanged."""

    def by_repeat(self, figure: str) -> dict[int, float]:
        """The repeats in which `figure`, a field of Repeat, was measured."""
        return {repeat.repeat: value for repeat in self.repeats if (value := getattr(repeat, figure)) is not None}

    def alone(self, repeat: int) -> OperatingPoint:
        """The same point as if this repeat were the only one."""
        return msgspec.structs.replace(self, repeats=tuple(r for r in self.repeats if r.repeat == repeat))

    def joules_per_token(self, figure: str) -> dict[int, float]:
        """`figure`, joules per query, over the mean length of the same cell's answers; by repeat."""
        tokens = self.by_repeat("tokens_per_query")
        return {at: joules / tokens[at] for at, joules in self.by_repeat(figure).items() if at in tokens}

    @property
    def running_mean(self) -> float | None:
        """Mean over repeats; None where no repeat has it."""
        known = self.by_repeat("running_mean")
        return sum(known.values()) / len(known) if known else None


def batch_refusal(target: OperatingPoint, reference: OperatingPoint) -> str | None:
    """Why speed and energy of the two cannot be compared (paper: equal B), in one sentence; None if they can."""
    if target.concurrency != reference.concurrency:
        return (
            f"not compared: {target.target} was asked at B = {target.concurrency}, {reference.target} at "
            f"B = {reference.concurrency}; measure both at the same B"
        )
    ours, theirs = target.running_mean, reference.running_mean
    if ours is None or theirs is None or abs(ours / theirs - 1) <= UNEQUAL_BATCH:
        return None
    return (
        f"not compared: {ours:.4g} sequences of {target.target} ran at a time, {theirs:.4g} of {reference.target}, "
        f"more than {UNEQUAL_BATCH:.0%} apart at B = {target.concurrency}; find out why the batch was not full"
    )


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


def spanned(batches: Collection[int], measured: Collection[int]) -> str:
    """Those of the `measured` batches, neighbours joined: "B = 64", "B ≤ 16" from 1 on, "B = 1, 16–64"."""
    runs = [list(run) for inside, run in groupby(sorted(measured), key=lambda b: b in batches) if inside]
    if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == 1:
        return f"B \N{LESS-THAN OR EQUAL TO} {runs[0][-1]}"
    ends = (dict.fromkeys((str(run[0]), str(run[-1]))) for run in runs)
    return "B = " + ", ".join("\N{EN DASH}".join(end) for end in ends)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What is said at one concurrency, and of which figure."""

    concurrency: int
    word: str
    estimate: Estimate | None
    decided: bool
    """Else the interval is told too: it says why not."""
    why: str = ""
    """Instead of the figure, where there is none."""


def by_span(said: Sequence[Said], figure: str, *, briefly: bool = False) -> str:
    """Neighbouring concurrencies with the same word together: "no at B ≤ 16 (SI 1.21), yes at B = 128 (SI 0.88)".
    Without the figures where `briefly`."""
    ordered = sorted(said, key=lambda s: s.concurrency)
    spans = [list(span) for _, span in groupby(ordered, key=lambda s: s.word)]
    if len(spans) == 1 and len(ordered) > 1:
        where = [f"at every B measured, {_range(ordered)}"]
    else:
        measured = [s.concurrency for s in ordered]
        where = [f"at {spanned([s.concurrency for s in span], measured)}" for span in spans]
    if briefly:
        return ", ".join(f"{span[0].word} {place}" for span, place in zip(spans, where, strict=True))
    return ", ".join(f"{s[0].word} {place} ({_said_figures(s, figure)})" for s, place in zip(spans, where, strict=True))


def _range(span: Sequence[Said]) -> str:
    ends = dict.fromkeys((str(span[0].concurrency), str(span[-1].concurrency)))
    return "\N{EN DASH}".join(ends)


def _said_figures(span: Sequence[Said], figure: str) -> str:
    """Of the whole span; where the reasons for having none differ, one after the other with its batches."""
    parts = [list(part) for _, part in groupby(span, key=lambda s: s.why)]
    if len(parts) == 1:
        return _of_one(span, figure)
    asked = [s.concurrency for s in span]
    return "; ".join(f"{spanned([s.concurrency for s in part], asked)}: {_of_one(part, figure)}" for part in parts)


def _of_one(span: Sequence[Said], figure: str) -> str:
    known = [s.estimate for s in span if s.estimate is not None]
    if not known:
        return span[0].why
    values = sorted(estimate.value for estimate in known)
    ends = dict.fromkeys((_number(values[0]), _number(values[-1])))
    text = f"{figure} {' to '.join(ends)}"
    only = known[0]
    if not span[0].decided and len(known) == 1 and only.lo is not None and only.hi is not None:
        wide = too_wide(only.lo, only.hi, floor=-1.0 if figure == "COR" else 0.0)
        text += ", not known: the repeats differ too much" if wide else f", {_number(only.lo)} to {_number(only.hi)}"
    return f"{text}; {span[0].why}" if span[0].why else text


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
