"""AccuracyVerdict: worse, better, equivalent, or inconclusive and how many more items would decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from loadgen.analysis.trust.comparison import AccuracyComparison
from loadgen.analysis.trust.holm import holm
from loadgen.analysis.trust.planning import (
    ALPHA,
    MARGIN,
    detectable_difference,
    fewest_changes,
    items_for_difference,
    items_for_equivalence,
)
from loadgen.analysis.trust.score import equivalence_p

TRUNCATION_TOLERANCE = 0.01
"""Truncation rates further apart than 1 pp: the comparison is (also) one of answer lengths."""


class AccuracyVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the data prove about one comparison of a family."""

    verdict: Literal["worse", "better", "equivalent", "inconclusive"]
    margin: float
    """The equivalence margin, as a proportion."""
    within_margin: bool
    """The difference is proven smaller than the margin; beside worse or better: real, but small."""
    p: float
    """McNemar's, Holm-adjusted over the family."""
    equivalence_p: float
    """Of the two one-sided tests, Holm-adjusted over the family."""
    more_items: int | None
    """With so many more items the answer would be clear at 80% power, if difference and flips stay what they are; None
    unless inconclusive."""
    detectable: float | None
    """Smallest difference (proportion) that these items show at 80% power with the flips seen; None if none."""
    confounded: bool
    """Truncation rates differ by more than 1 pp."""


def judge(
    comparisons: Sequence[AccuracyComparison], *, margin: float = MARGIN, alpha: float = ALPHA
) -> list[AccuracyVerdict]:
    """One verdict per comparison, in order; the comparisons are one family for Holm's correction.

    A proven difference is `worse` or `better` even if it is smaller than the margin. At most `alpha` of families
    without any true difference get a false `worse` or `better`; at most `alpha` of those without any difference inside
    the margin get a false `equivalent`.
    """
    family = len(comparisons)
    differences = holm([comparison.mcnemar_p for comparison in comparisons])
    equivalences = holm([equivalence_p(c.changes, margin) for c in comparisons])
    return [
        _verdict(comparison, p, equivalence_p, margin, alpha, family)
        for comparison, p, equivalence_p in zip(comparisons, differences, equivalences, strict=True)
    ]


def _verdict(
    comparison: AccuracyComparison, p: float, equivalence_p: float, margin: float, alpha: float, family: int
) -> AccuracyVerdict:
    within_margin = equivalence_p <= alpha
    verdict: Literal["worse", "better", "equivalent", "inconclusive"]
    if p <= alpha:
        verdict = "worse" if comparison.difference < 0 else "better"
    else:
        verdict = "equivalent" if within_margin else "inconclusive"
    truncated, reference_truncated = comparison.truncated_rate, comparison.reference_truncated_rate
    return AccuracyVerdict(
        verdict=verdict,
        margin=margin,
        within_margin=within_margin,
        p=p,
        equivalence_p=equivalence_p,
        more_items=_more_items(comparison, margin, alpha / family) if verdict == "inconclusive" else None,
        detectable=detectable_difference(
            comparison.items, comparison.changes.supposed_discordance, alpha=alpha / family
        ),
        confounded=(
            truncated is not None
            and reference_truncated is not None
            and abs(truncated - reference_truncated) > TRUNCATION_TOLERANCE
        ),
    )


def _more_items(comparison: AccuracyComparison, margin: float, alpha: float) -> int:
    """Up to the cheaper proof: of the difference seen, or of its being smaller than the margin."""
    delta, discordance = abs(comparison.difference), comparison.changes.supposed_discordance
    ways = []
    if delta > 0:
        missing = math.ceil(fewest_changes(alpha) - comparison.changes.won - comparison.changes.lost)
        ways.append(max(items_for_difference(delta, discordance, alpha=alpha), comparison.items + missing))
    if delta < margin:
        ways.append(items_for_equivalence(margin, discordance, delta=delta, alpha=alpha))
    return max(1, min(ways) - comparison.items)
