"""Curve: one metric of one target over the batch; and two of them paired, repeat by repeat.

Metric: a figure that two precisions are compared by, and the words for winning and losing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.errors import UsageError
from loadgen.words import spanned


class Metric(msgspec.Struct, frozen=True):
    """One of the six metrics of a crossover; `wins` and `loses` go between the target's name and the reference's."""

    name: str
    higher_is_better: bool
    wins: str
    loses: str
    wins_briefly: str
    loses_briefly: str

    @property
    def sign(self) -> int:
        """Turns log(target / reference) into a log-advantage: above 0 where the target is better."""
        return 1 if self.higher_is_better else -1


_ENERGIES = {
    "energy_per_token_j": "token",
    "energy_per_query_j": "query",
    "energy_hli_per_query_j": "query by the HLI bound",
    "energy_per_correct_j": "correct answer",
}
METRICS = {
    "tokens_per_s": Metric("tokens_per_s", True, "is faster than", "is slower than", "faster", "slower"),
    **{
        name: Metric(
            name, False, f"uses less energy per {per} than", f"uses more energy per {per} than", "less", "more"
        )
        for name, per in _ENERGIES.items()
    },
    "si": Metric("si", True, "has a higher SI than", "has a lower SI than", "higher", "lower"),
}
"""By name, in the order of reports."""


def metric_of(name: str) -> Metric:
    """The metric of that name; raises UsageError if there is none."""
    if name not in METRICS:
        raise UsageError(f"no crossover metric {name!r}; choose from {', '.join(METRICS)}")
    return METRICS[name]


UNKNOWN_WINDOW = "the noise inside its windows is not known: measure longer (energy_interval_note in cells.csv)"


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A metric at one concurrency."""

    concurrency: int
    """As asked for."""
    running: float | None
    """The measured running batch, mean over the valid repeats; where it is not verified, the requests in flight."""
    values: tuple[float | None, ...]
    """By repeat, positive; None: not measured, or the cell is invalid."""
    verified: bool = True
    """`running` is the server's word, in every valid repeat."""
    window_errors: tuple[float | None, ...] = ()
    """Relative standard error of each value from inside its own window, None: not known. Repeats show this noise too;
    it is used only with one repeat and a stated noise between starts. Without any entry that statement contains it."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one target over the concurrencies, in any order."""

    target: str
    points: tuple[CurvePoint, ...]


class PairedCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Log-advantage of a target over the reference by batch and repeat, batches ascending."""

    concurrency: tuple[int, ...]
    batch: Floats
    """Geometric mean of the two sides' running batches; shape (points,)."""
    advantage: Floats
    """Shape (points, repeats), NaN where either side has no value; every point has at least one."""
    window_error: Floats | None
    """Standard errors of the log-advantages of points with one repeat, from inside their windows; NaN: not known. None
    if no side's are estimated."""
    item_error: Floats
    """Standard errors of the points' log-advantages that all repeats and all points share; 0 if there is none."""
    notes: tuple[str, ...]
    batch_verified: bool = True
    """Every batch is the servers' word."""
    values: tuple[tuple[float, float], ...] = ()
    """By point, target's and reference's figure in the metric's unit: geometric means over the repeats of both."""

    @property
    def mean(self) -> Floats:
        """Log-advantage per point, mean over its repeats."""
        return np.asarray(np.nanmean(self.advantage, axis=1))

    @property
    def repeated(self) -> bool:
        """Whether any point has two repeats."""
        return bool((~np.isnan(self.advantage)).sum() > len(self.advantage))

    @property
    def windows_known(self) -> PairedCurve:
        """Without the points whose windows should know their noise and do not, and with a note on each."""
        unknown = np.zeros(len(self.batch), bool) if self.window_error is None else np.isnan(self.window_error)
        if self.window_error is None or not unknown.any():
            return self
        left = tuple(b for b, missing in zip(self.concurrency, unknown, strict=True) if missing)
        return msgspec.structs.replace(
            self,
            concurrency=tuple(b for b in self.concurrency if b not in left),
            batch=self.batch[~unknown],
            advantage=self.advantage[~unknown],
            window_error=self.window_error[~unknown],
            item_error=self.item_error[~unknown],
            notes=(*self.notes, *(f"B = {b}: left out, {UNKNOWN_WINDOW}" for b in left)),
        )


def pair(
    target: Curve, reference: Curve, metric: Metric, item_errors: Mapping[int, float] | None = None
) -> PairedCurve:
    """The points that both curves have, repeat k of one with repeat k of the other.

    `item_errors`: by concurrency, the standard error of log(target / reference) that comes from the choice of items:
    the same items are asked in every repeat and at every batch, so no repeat shows it. A point whose batch does not
    exceed the one before it is left out, with a note. Raises UsageError for values that are not positive.
    """
    ours, theirs = _by_concurrency(target), _by_concurrency(reference)
    kept: list[tuple[int, float, list[float], float, float]] = []
    values, notes, missing, assumed = [], [], [], []
    shared = ours.keys() & theirs.keys()
    for b in sorted(shared):
        a, r = ours[b], theirs[b]
        both = {
            k: (x, y)
            for k, (x, y) in enumerate(zip(a.values, r.values, strict=False))
            if x is not None and y is not None
        }
        if not both:
            missing.append(b)
            continue
        ratios = {k: x / y for k, (x, y) in both.items()}
        logs = [metric.sign * math.log(ratios[k]) if k in ratios else math.nan for k in range(max(ratios) + 1)]
        if a.running is None or r.running is None:
            assumed.append(b)
            batch = float(b)
        else:
            batch = math.sqrt(a.running * r.running)
        if kept and batch <= kept[-1][1]:
            notes.append(f"B = {b}: left out, it ran at a batch of {batch:.3g}, no larger than B = {kept[-1][0]} did")
            continue
        error = _window_error(a, r, max(ratios)) if len(ratios) == 1 else math.nan
        kept.append((b, batch, logs, error, (item_errors or {}).get(b, 0.0)))
        ours_mean, theirs_mean = np.exp(np.log(list(both.values())).mean(axis=0)).tolist()
        values.append((ours_mean, theirs_mean))
    if missing:
        notes.insert(0, f"{spanned(missing, shared)}: no repeat has this figure on both sides")
    if assumed:
        of = spanned(assumed, shared)
        notes.append(f"{of}: the running batch was not measured; the requested concurrency is used instead")
    repeats = max((len(logs) for _, _, logs, _, _ in kept), default=0)
    return PairedCurve(
        concurrency=tuple(b for b, *_ in kept),
        batch=np.array([batch for _, batch, *_ in kept]),
        advantage=np.array([logs + [math.nan] * (repeats - len(logs)) for _, _, logs, _, _ in kept]),
        window_error=np.array([error for *_, error, _ in kept]) if _estimated(ours, theirs) else None,
        item_error=np.array([item for *_, item in kept]),
        notes=tuple(notes),
        batch_verified=all(ours[b].verified and theirs[b].verified for b, *_ in kept),
        values=tuple(values),
    )


def _by_concurrency(curve: Curve) -> dict[int, CurvePoint]:
    points = {point.concurrency: point for point in curve.points}
    for point in curve.points:
        if bad := [value for value in point.values if value is not None and not 0 < value < math.inf]:
            raise UsageError(
                f"{curve.target} at B = {point.concurrency} has the value {bad[0]:g}; give positive figures, or None "
                "for what was not measured"
            )
    return points


def _estimated(*sides: Mapping[int, CurvePoint]) -> bool:
    return any(point.window_errors for side in sides for point in side.values())


def _window_error(a: CurvePoint, r: CurvePoint, repeat: int) -> float:
    """Standard error of the log ratio of one repeat: both windows' in quadrature; NaN unless both are known."""
    errors = [point.window_errors[repeat] for point in (a, r) if repeat < len(point.window_errors)]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == 2 else math.nan
