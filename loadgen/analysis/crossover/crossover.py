"""Crossover: is a target better or worse than the reference, and up to which batch; in numbers and in words.

A warning where the HLI bound and the measured energy decide differently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from loadgen.analysis.crossover.crossing import (
    Beyond,
    Crossing,
    GridPoint,
    band_of,
    beyond,
    crossings,
    grid_points,
    padded_from,
    padded_to,
    steep_brackets,
    suggested,
)
from loadgen.analysis.crossover.curve import UNKNOWN_WINDOW, Curve, Metric, PairedCurve, metric_of, pair
from loadgen.analysis.crossover.noise import Noise, Pooling, noise_of
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import batch, span, spanned, too_wide

Status = Literal["better", "worse", "crosses", "unresolved"]


FEWEST_DEGREES = 2
"""Degrees of freedom of the noise between repeats, below which no interval of B* is narrower than its bracket."""


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `crossovers`."""

    target: str
    reference: str
    metric: str
    status: Status
    """`better`, `worse`: proven at every measured batch; `crosses`: at least one crossing is established."""
    crossings: tuple[Crossing, ...] = ()
    """The established ones, by ascending batch."""
    suspected: tuple[Crossing, ...] = ()
    """Other sign changes of the means, which noise may have made."""
    beyond: tuple[Beyond, ...] = ()
    points: tuple[GridPoint, ...] = ()
    """By ascending batch."""
    left_out: tuple[int, ...] = ()
    """Asked concurrencies that were measured and are not compared: too few items were completed by both sides, or the
    noise inside a window is not known where the intervals rest on it."""
    pooling: Pooling | None = None
    """Over which the scatter of the repeats was taken together: `all` batches, or all with a variance that is a `power
    of the batch`; `none` (two batches); None without repeats."""
    apart: tuple[int, ...] = ()
    """Asked concurrencies whose repeats scatter unlike the others': their intervals rest on their own repeats."""
    batch_verified: bool = True
    """The axis is the running batch that the servers reported; else, somewhere, requests in flight take its place."""
    refusal: str | None = None
    """Why nothing can be said; then everything else is empty."""
    notes: tuple[str, ...] = ()
    sentence: str = ""
    """The result, one line without a full stop, such as "awq uses less energy per query than fp16 up to B = 32 and more
    from B = 64 on (B* = 61, 95% CI 52–75, if there is no step between)"."""
    brief: str = ""
    """The same where target, reference and metric are known: "less B ≤ 32, more B ≥ 64 (B* 61, CI 52–75)"."""

    @property
    def away(self) -> tuple[GridPoint, ...]:
        """The open points that no established crossing explains."""
        brackets = [crossing.bracket for crossing in self.crossings]
        return tuple(
            point
            for point in self.points
            if point.sign == "open" and not any(low < point.concurrency < high for low, high in brackets)
        )


def crossover(
    target: Curve,
    reference: Curve,
    metric: str,
    *,
    item_errors: Mapping[int, float] | None = None,
    start_sd: float | None = None,
    graph_sizes: Sequence[int] | None = None,
) -> Crossover:
    """Compares two curves of the metric (a key of METRICS), repeat k of one with repeat k of the other.

    `item_errors`: by concurrency, the standard error of log(target / reference) that comes from the choice of items
    (for energy per correct answer and SI: that of log T_SI); it is added in quadrature. `start_sd`: the relative
    standard deviation of a figure between two starts of one server, as the user states it. It is used where no batch
    has two repeats; without it such a comparison has no interval and is `unresolved`. `graph_sizes`: the
    batches that neither server pads (`shared_sizes`); intervals of B* are widened to them. At most 5% of comparisons
    without any difference get a status other than `unresolved`. Raises UsageError for an unknown metric or a value that
    is not positive.
    """
    paired = curve = pair(target, reference, metric_of(metric), item_errors)
    if start_sd is not None and not paired.repeated:
        curve = paired.windows_known
    left_out = tuple(b for b in paired.concurrency if b not in curve.concurrency)
    result = Crossover(
        target=target.target, reference=reference.target, metric=metric, status="unresolved", left_out=left_out
    )
    if len(curve.batch) < 2:
        refusal = _refusal(target, reference, curve, left_out)
        return worded(msgspec.structs.replace(result, refusal=refusal, notes=curve.notes))
    noise = noise_of(curve, start_sd)
    points = grid_points(curve, noise)
    band = None if noise is None else band_of(curve.batch, curve.mean, noise)
    opposite = {1, -1} <= {point.proven for point in points}
    firm = grid_points(curve, noise.cautious) if noise is not None and opposite else ()
    found = crossings(points, band, firm)
    if noise is not None:
        steep = steep_brackets(curve.batch, curve.mean, noise)
        found = [_stepped(crossing, points, steep, graph_sizes) for crossing in found]
        if noise.repeat_degrees < FEWEST_DEGREES:
            found = [_whole(crossing, points) for crossing in found]
    established = tuple(crossing for crossing in found if crossing.established)
    notes = curve.notes + _uneven(noise, points)
    notes += tuple(filter(None, (_advice(crossing, graph_sizes) for crossing in established)))
    if noise is None:
        single = "one repeat has no interval" if curve.advantage.shape[1] == 1 else "no B is valid in two repeats"
        notes += (f"{single}: measure three (--repeats 3), or state the noise between starts (--start-sd)",)
    elif not curve.repeated:
        notes += (f"no B is valid in two repeats: the intervals rest on the stated --start-sd {start_sd:.2%}",)
    result = msgspec.structs.replace(
        result,
        status=_status(points, established),
        crossings=established,
        suspected=tuple(crossing for crossing in found if not crossing.established),
        beyond=() if noise is None or band is None else beyond(points, band, noise),
        points=points,
        pooling=noise.pooling if noise is not None and curve.repeated else None,
        apart=() if noise is None else tuple(points[place].concurrency for place in noise.apart),
        batch_verified=curve.batch_verified,
        notes=notes,
    )
    return worded(result)


def _uneven(noise: Noise | None, points: Sequence[GridPoint]) -> tuple[str, ...]:
    """How the noise differs over the batches, if a test found that it does."""
    if noise is None:
        return ()
    notes = []
    if noise.pooling == "power of the batch":
        together = [place for place in range(len(points)) if place not in noise.apart]
        more = "more" if noise.rest_square[together[-1]] > noise.rest_square[together[0]] else "less"
        notes.append(f"repeats scatter {more} at larger B: their variance is taken as a power of B")
    if noise.apart:
        apart = spanned([points[at].concurrency for at in noise.apart], [point.concurrency for point in points])
        notes.append(f"repeats at {apart} scatter unlike those at other B: the interval rests on them alone")
    return tuple(notes)


def _stepped(
    crossing: Crossing, points: Sequence[GridPoint], steep: Collection[int], sizes: Sequence[int] | None
) -> Crossing:
    """With an interval that holds B* if the curve jumps where it may."""
    if crossing.lo is None or crossing.hi is None:
        return crossing
    low, high = crossing.lo, crossing.hi
    place = {point.concurrency: at for at, point in enumerate(points)}
    left, right = (place[b] for b in crossing.bracket)
    jumps = [gap for gap in steep if left <= gap < right and points[gap].batch < high and points[gap + 1].batch > low]
    if jumps:
        low, high = min(low, points[min(jumps)].batch), max(high, points[max(jumps) + 1].batch)
    if sizes:
        low, high = min(low, padded_from(sizes, low)), max(high, padded_to(sizes, high))
        low, high = max(low, points[left].batch), min(high, points[right].batch)
    if (low, high) == (crossing.lo, crossing.hi):
        return crossing
    return msgspec.structs.replace(crossing, lo=low, hi=high, step="measured" if jumps else "graphs")


def _whole(crossing: Crossing, points: Sequence[GridPoint]) -> Crossing:
    """With an interval of the whole bracket: what two repeats share is one difference, and where a crossing is proven
    that difference was small by chance."""
    if crossing.lo is None or crossing.hi is None:
        return crossing
    low, high = (next(point.batch for point in points if point.concurrency == b) for b in crossing.bracket)
    return msgspec.structs.replace(crossing, lo=min(low, crossing.lo), hi=max(high, crossing.hi))


def _advice(crossing: Crossing, sizes: Sequence[int] | None) -> str | None:
    """Which concurrencies place a B* whose interval is wide, or rests on where the curve may jump."""
    low, high = crossing.bracket
    if crossing.lo is None or crossing.hi is None or high - low < 2:
        return None
    grid = f"--concurrency {suggested(low, high, sizes)}"
    if crossing.step == "measured":
        return (
            f"between B = {low} and {high} the curve is much steeper than on both sides, it may jump there (a kernel "
            f"or CUDA graph changes): B* can be anywhere from {crossing.lo:.3g} to {crossing.hi:.3g}; measure {grid}"
        )
    if crossing.step == "graphs":
        return (
            f"batches between the sizes of CUDA graphs are padded to the next one: the interval of B* reaches to these "
            f"sizes ({crossing.lo:.3g} and {crossing.hi:.3g}); to place it, measure {grid}"
        )
    if crossing.hi > 2 * crossing.lo and high > 2 * low:
        return f"B* is somewhere between B = {low} and {high}: to place it, measure {grid}"
    return None


def _status(points: Sequence[GridPoint], established: Sequence[Crossing]) -> Status:
    if established:
        return "crosses"
    signs = {point.sign for point in points}
    if signs == {"wins"}:
        return "better"
    return "worse" if signs == {"loses"} else "unresolved"


def _refusal(target: Curve, reference: Curve, curve: PairedCurve, left_out: Sequence[int]) -> str:
    if left_out:
        return f"B = {', '.join(map(str, left_out))}: {UNKNOWN_WINDOW}; a curve needs 2 batches"
    shared = {p.concurrency for p in target.points} & {p.concurrency for p in reference.points}
    if len(shared) >= 2:
        return f"{len(curve.batch) or 'no'} concurrency has this figure on both sides, and a curve needs 2"
    return f"{len(shared) or 'no'} concurrency was measured on both sides, and a curve needs 2"


def worded(found: Crossover) -> Crossover:
    """The same with its `sentence` and `brief`: first what the measured batches prove."""
    return msgspec.structs.replace(found, sentence=_text(found, briefly=False), brief=_text(found, briefly=True))


def placed(crossing: Crossing) -> bool:
    """Whether B* is known closely enough to be named."""
    return crossing.step == "measured" or not too_wide(crossing.lo, crossing.hi)


def place(crossing: Crossing) -> str:
    """As "B* = 61", or what is known of one that is not placed: "a B* between 16 and 64"."""
    if not placed(crossing):
        return f"a B* between {crossing.bracket[0]} and {crossing.bracket[1]}"
    return f"B* = {crossing.b:.3g}"


def _text(found: Crossover, *, briefly: bool) -> str:
    metric = metric_of(found.metric)
    better, worse, question = metric.wins_briefly, metric.loses_briefly, "not decided"
    if not briefly:
        better, worse = (f"{found.target} {words} {found.reference}" for words in (metric.wins, metric.loses))
        question = f"not decided: whether {better}"
    if found.status == "unresolved":
        first, *details = _undecided(found, metric, question, briefly=briefly)
    elif found.status == "crosses":
        first = _crosses_briefly(found, metric) if briefly else _crosses(found, metric, better, worse)
        details = [f"not decided at {_listed(found, found.away)}"] if found.away else []
        details += _beyond(found, "another B*", briefly=briefly)
    else:
        first = f"{better if found.status == 'better' else worse} at every B {_compared(found)}"
        details = _beyond(found, "a B*", briefly=briefly)
    return "; ".join([first + ("" if found.batch_verified else f" ({UNVERIFIED})"), *details])


def _crosses(found: Crossover, metric: Metric, better: str, worse: str) -> str:
    words = (metric.loses_briefly, metric.wins_briefly)
    wins, several = found.crossings[0].direction == "wins_below", len(found.crossings) > 1
    text = f"{better if wins else worse} {_lowest(found, 'up to B = ', 'at B = ', 'from B = ', ' to ')}"
    for before, after in pairwise(found.crossings):
        wins = not wins
        first, last = before.bracket[1], after.bracket[0]
        text += f", {words[wins]} {f'from B = {first} to {last}' if first < last else f'at B = {first}'}"
    stars = " and ".join(f"B* {_b_star(found, crossing)}" for crossing in found.crossings)
    if _interpolated(found):
        stars += ", if there is no step between"
    return (
        f"{text}{',' if several else ''} and {words[not wins]} from B = {found.crossings[-1].bracket[1]} on ({stars})"
    )


def _crosses_briefly(found: Crossover, metric: Metric) -> str:
    words = (metric.loses_briefly, metric.wins_briefly)
    wins = found.crossings[0].direction == "wins_below"
    parts = [f"{words[wins]} {_lowest(found, 'B ≤ ', 'B = ', 'B = ', '–')}"]
    for before, after in pairwise(found.crossings):
        wins = not wins
        parts.append(f"{words[wins]} {span(before.bracket[1], after.bracket[0])}")
    parts.append(f"{words[not wins]} B ≥ {found.crossings[-1].bracket[1]}")
    stars = ", ".join(_b_star(found, crossing, briefly=True) for crossing in found.crossings)
    return f"{', '.join(parts)} (B* {stars}{', if no step' if _interpolated(found) else ''})"


def _undecided(found: Crossover, metric: Metric, question: str, *, briefly: bool) -> list[str]:
    if found.refusal:
        return [question, found.refusal]
    suspected = []
    if found.suspected:
        where = ", ".join(batch(crossing.b) for crossing in found.suspected)
        suspected = [
            f"a crossing at B = {where} is not proven"
            if briefly
            else f"the means cross at B = {where}, which noise may have made"
        ]
    if found.points[0].p is None:
        return [question, "one repeat has no interval", *suspected]
    groups = {sign: [point for point in found.points if point.sign == sign] for sign in ("wins", "loses", "open")}
    if len(groups["open"]) == len(found.points):
        if briefly:
            return [f"{question} at any B {_compared(found)}", *suspected]
        return [question, f"no difference is proven at any B {_compared(found)}", *suspected]
    words = {"wins": metric.wins_briefly, "loses": metric.loses_briefly, "open": question if briefly else "open"}
    parts = ", ".join(f"{words[sign]} at {_listed(found, points)}" for sign, points in groups.items() if points)
    whole = [] if briefly else [f"{question} at every B {_measured(found)}"]
    return [*whole, parts, *suspected, *_beyond(found, "a B*", briefly=briefly)]


def _beyond(found: Crossover, what: str, *, briefly: bool) -> list[str]:
    text = "{} only {} {}" if briefly else "if {} exists, it is {} {}"
    return [text.format(what, end.side, batch(end.batch)) for end in found.beyond]


def _interpolated(found: Crossover) -> bool:
    """Whether a B* is named that holds only if the curve has no step between the measured batches."""
    return any(placed(crossing) and crossing.step != "measured" for crossing in found.crossings)


def _b_star(found: Crossover, crossing: Crossing, *, briefly: bool = False) -> str:
    if not placed(crossing):
        two = max(point.repeats for point in found.points) == 2
        return f"not known: {'two' if two else 'the'} repeats differ too much"
    text = f"{'' if briefly else '= '}{batch(crossing.b)}"
    if crossing.lo is None or crossing.hi is None:
        return text
    if crossing.step == "measured":
        return f"anywhere from {batch(crossing.lo)} to {batch(crossing.hi)}, where the curve may jump"
    return f"{text}, {'' if briefly else '95% '}CI {span(batch(crossing.lo), batch(crossing.hi))}"


def _lowest(found: Crossover, up_to: str, at: str, begin: str, to: str) -> str:
    """The batches compared below the first crossing; open below only where B = 1 is one of them."""
    first, last = found.points[0].concurrency, found.crossings[0].bracket[0]
    if first == last:
        return f"{at}{last}"
    return f"{up_to}{last}" if first == 1 else f"{begin}{first}{to}{last}"


def _compared(found: Crossover) -> str:
    """As `measured (1–128)`; `compared` where a batch that was measured is left out."""
    return f"{_measured(found)} ({span(found.points[0].concurrency, found.points[-1].concurrency)})"


def _measured(found: Crossover) -> str:
    return "compared" if found.left_out else "measured"


def _listed(found: Crossover, points: Sequence[GridPoint]) -> str:
    """Neighbours among all that were measured joined: one that is left out is in no span."""
    measured = {*(point.concurrency for point in found.points), *found.left_out}
    return spanned([point.concurrency for point in points], measured)


def hli_disagreement(measured: Crossover, hli: Crossover) -> str | None:
    """A warning that names the B at which power limit times time proves the opposite of what the meter proves; None if
    there is no such B.

    `measured`: `energy_per_query_j`; `hli`: `energy_hli_per_query_j` of the same target and reference.
    """
    proven = {point.concurrency: point.proven for point in hli.points}
    against = {
        sign: [p.concurrency for p in measured.points if p.proven == sign and proven.get(p.concurrency) == -sign]
        for sign in (1, -1)
    }
    words, asked = metric_of(measured.metric), {*proven, *measured.left_out}
    parts = [
        f"{words.loses_briefly if sign > 0 else words.wins_briefly} at {spanned(batches, asked)}, "
        f"where the meter proves {words.wins_briefly if sign > 0 else words.loses_briefly}"
        for sign, batches in against.items()
        if batches
    ]
    if not parts:
        return None
    return (
        "the HLI bound (power limit times time) contradicts the measured energy per query: it has "
        f"{measured.target} use {' and '.join(parts)} than {measured.reference}; believe the meter"
    )
