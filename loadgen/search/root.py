"""Root: where a curve crosses 0, from repeats at one batch below and one above it. Fieller's set, and what it assumes.

Each repeat starts both servers again and measures one of the two batches, so that the repeats are independent of each
other. Sources: E. C. Fieller, "Some problems in interval estimation", JRSS B 16 (1954), 175-185; C. Stein, "A
two-sample test for a linear hypothesis whose power is independent of the variance", Ann. Math. Stat. 16 (1945),
243-258; Y. S. Chow and H. Robbins, "On the asymptotic theory of fixed-width sequential confidence intervals", Ann.
Math. Stat. 36 (1965), 457-462.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import NORMAL_95

ALPHA = 0.045
"""The error of one look, without `BEND`. The interval is looked at after every repeat, and the search stops when it is
narrow. With `BEND` it then covers B* in at least 95% even where the slope changes as much as that allows, because this
takes up the margin of one end only (bench/find.py)."""
FEWEST = 6
"""Repeats before the first look, three on each side of B*: Student's t with four degrees."""
SPACING = 1.25
"""Ratio of the batch above to the estimate of B*, and of that to the batch below."""
BEND = 0.3
"""Widening of the interval, times the square of half of ln(above / below). A curve whose slope changes by a share k per
factor e of B leaves its chord by so much that the root moves by k / 2 times that square: k may be 0.6."""


class Noise(msgspec.Struct, frozen=True):
    """What an earlier run tells of the noise of one repeat."""

    sd: float
    """Standard deviation of a log-advantage between starts of both servers."""
    degrees: float
    """Of freedom; `inf` where it is stated, not measured."""


class Point(msgspec.Struct, frozen=True):
    """One repeat's reading at one batch."""

    batch: float
    """ln of the running batch."""
    advantage: float
    """Log-advantage of the target."""
    item_error: float = 0.0
    """Its standard error by the choice of items, which all repeats share."""


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of where the chord through the points crosses 0, on the axis of ln(batch)."""

    at: float
    lo: float | None
    """95% interval, bend included; None: it is not closed, the curve may be level."""
    hi: float | None
    bend: float
    """What the interval was widened by on each side."""
    shared: float
    """Half of the 95% interval of the log-advantage by the choice of items, which no repeat makes narrower."""
    apart: float
    """Standard deviation of the batches of the repeats, on ln(batch)."""
    slope: float
    """Change of the log-advantage per factor e of the batch."""
    sd: float
    """Standard deviation of one repeat's log-advantage."""
    degrees: float

    @property
    def width(self) -> float:
        """How far the farther end of the interval is; infinite where it is not closed."""
        return math.inf if self.lo is None or self.hi is None else max(self.hi - self.at, self.at - self.lo)

    def needed(self, within: float, slope: float) -> float:
        """How many repeats an interval of +-`within` takes at that slope, with B* in the middle of both batches;
        infinite where no number is enough.

        Half of Fieller's set of n repeats is t s / (slope sqrt(n)) there, and wider by the uncertainty of the slope;
        Student's t falls to the normal quantile.
        """
        room = within - BEND * self.apart**2
        left = (room * slope) ** 2 - self.shared**2
        if room <= 0 or left <= 0:
            return math.inf
        return (quantile(ALPHA, math.inf) * self.sd) ** 2 * (1 + (room / self.apart) ** 2) / left


def quantile(alpha: float, degrees: float) -> float:
    """Student's, two-sided."""
    return float(-special.ndtri(alpha / 2) if math.isinf(degrees) else -special.stdtrit(degrees, alpha / 2))


def root_of(points: Sequence[Point], known: Noise | None = None, item_error: float = 0.0) -> Root | None:
    """Fieller's set of the root of a straight line through the points; None without a slope or a measure of noise.

    Assumed: independent normal errors of equal variance, a curve that is nearly straight between the batches (see
    `BEND`). The set holds every r for which mean + slope (r - x) does not differ from 0 at `ALPHA`:
    (mean + slope u)^2 <= t^2 s^2 (1 / n + u^2 / Sxx) with u = r - x; an interval if the slope differs from 0.

    `known`: noise of an earlier run, pooled with the scatter of the points; it is ignored where they scatter more than
    it allows (F test at 1%). `item_error`: standard error of every log-advantage that all repeats share, because they
    ask the same items; its 95% half width is added in quadrature.
    """
    if len({point.batch for point in points}) < 2:
        return None
    x, y = (np.array([getattr(point, of) for point in points]) for of in ("batch", "advantage"))
    n, spread = len(x), float(((x - x.mean()) ** 2).sum())
    middle, level = float(x.mean()), float(y.mean())
    slope = float((x - middle) @ (y - level)) / spread
    rest = float(((y - level - slope * (x - middle)) ** 2).sum())
    degrees, square = n - 2.0, rest / (n - 2) if n > 2 else 0.0
    if known is not None and not _exceeds(square, degrees, known):
        both = degrees + known.degrees
        square = known.sd**2 if math.isinf(both) else (rest + known.degrees * known.sd**2) / both
        degrees = both
    if degrees <= 0 or slope == 0:
        return None
    t = quantile(ALPHA, degrees)
    error = t * t * square
    shared = NORMAL_95 * item_error
    a, b, c = slope**2 - error / spread, level * slope, level**2 - error / n - shared**2
    at = middle - level / slope
    apart, away = float(np.ptp(x)) / 2, abs(at - middle)
    bend = BEND * max(apart**2, away**2 - apart**2)
    lo = hi = None
    if a > 0:
        reach = math.sqrt(max(b * b - a * c, 0.0)) / a
        lo, hi = middle - b / a - reach - bend, middle - b / a + reach + bend
    return Root(
        at=at,
        lo=lo,
        hi=hi,
        bend=bend,
        shared=shared,
        apart=math.sqrt(spread / n),
        slope=slope,
        sd=math.sqrt(square),
        degrees=degrees,
    )


def _exceeds(square: float, degrees: float, known: Noise) -> bool:
    if degrees <= 0:
        return False
    ratio = square / known.sd**2
    if math.isinf(known.degrees):
        return bool(special.chdtrc(degrees, degrees * ratio) < 0.01)
    return bool(special.fdtrc(degrees, known.degrees, ratio) < 0.01)


def beside(b: float, low: int, high: int) -> tuple[int, int]:
    """The batches below and above an estimate of B*, `SPACING` away from it as far as whole batches of the range
    allow."""
    below = max(low, min(round(b / SPACING), math.ceil(b) - 1))
    above = min(high, max(round(b * SPACING), math.floor(b) + 1))
    return min(below, high - 1), max(above, low + 1)


def changes_of(advantage: Floats) -> list[int]:
    """The places after which the sign changes; 0 counts as negative."""
    return [int(place) for place in np.flatnonzero((advantage[:-1] > 0) != (advantage[1:] > 0))]


def crossing_in(batch: Floats, advantage: Floats, place: int) -> float:
    """Where, on the axis of `batch`, a monotone cubic (PCHIP) through all points crosses 0 between `place` and the next
    point."""
    from scipy.interpolate import PchipInterpolator

    curve = PchipInterpolator(batch, advantage)
    roots = [root for root in curve.roots(extrapolate=False) if batch[place] <= root <= batch[place + 1]]
    return float(roots[len(roots) // 2]) if roots else float(batch[place : place + 2].mean())


def proven(readings: Sequence[float], sign: int, root: Root, tests: int) -> bool:
    """Whether the mean of these log-advantages of one batch has that sign, one-sided at 2.5% over so many tests, with
    the noise of the repeats beside the root."""
    t = quantile(0.05 / tests, root.degrees)
    return sign * float(np.mean(readings)) > math.hypot(t * root.sd / math.sqrt(len(readings)), root.shared)
