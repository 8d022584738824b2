"""How many items a claim about accuracy needs, and what a number of items can show.

Proportions are 0 to 1 (0.01 = 1 pp). `discordance` is the share of items whose correctness changes between the two
sides. McNemar's power is exact, that of equivalence a normal approximation of the score test.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

from loadgen.analysis.trust.score import Changes, supposed_variance

MARGIN = 0.02
"""Default equivalence margin, 2 pp: below the smallest loss that the paper claims (2.28 pp on GSM8K), and as narrow as
the whole of GSM8K (1319 items) can prove while 6% of the answers flip."""
ALPHA = 0.05
POWER = 0.8
MANY_CHANGES = 1000
"""Changed items from which on the normal approximation is good to 0.3% of the items."""


def items_for_difference(delta: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """Fewest items for which exact McNemar, two-sided, finds an accuracy difference `delta` with this power.

    From `MANY_CHANGES` expected changes on by Connor's normal approximation (1987, eq. 3) with a correction for
    continuity: lost - won must exceed the normal limit by 1 on average. Without it the power is up to 4 points less.
    """
    delta = abs(delta)
    spread = math.sqrt(discordance) * _z(1 - alpha / 2) + math.sqrt(discordance - delta**2) * _z(power)
    low, high = 0, math.ceil(((spread + math.sqrt(spread**2 + 4 * delta)) / (2 * delta)) ** 2)
    if high * discordance > MANY_CHANGES:
        return high
    while power_of_mcnemar(high, delta, discordance, alpha=alpha) < power:
        low, high = high, math.ceil(1.1 * high)
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of_mcnemar(middle, delta, discordance, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def fewest_changes(alpha: float = ALPHA) -> int:
    """Changed items with which exact McNemar can prove a difference at all: if all changed one way, p is 2 / 2^changes,
    so 1 + log2(1 / alpha)."""
    return math.ceil(1 + math.log2(1 / alpha) - 1e-9)


def detectable_difference(
    items: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Smallest accuracy difference that `items` show with this power; None if not even the largest possible one,
    which is `discordance`."""

    def surplus(delta: float) -> float:
        return power_of_mcnemar(items, delta, discordance, alpha=alpha) - power

    if surplus(discordance) < 0:
        return None
    return float(optimize.brentq(surplus, 0.0, discordance))


def power_of_mcnemar(items: int, delta: float, discordance: float, *, alpha: float = ALPHA) -> float:
    """Exact power of the exact two-sided McNemar test: over the number of changed items (binomial; those within nine
    standard deviations) and, given that, over how many of them were lost (binomial)."""
    middle, reach = items * discordance, 9 * math.sqrt(items * discordance) + 9
    changed = np.arange(max(0, math.floor(middle - reach)), min(items, math.ceil(middle + reach)) + 1)
    weight = special.bdtr(changed, items, discordance)
    weight = np.diff(weight, prepend=special.bdtr(changed[0] - 1, items, discordance) if changed[0] else 0.0)
    limit = np.minimum(np.floor(changed / 2 + np.sqrt(changed) / 2 * _z(alpha / 2)) + 1, changed)
    while np.any(over := (limit >= 0) & (special.bdtr(np.maximum(limit, 0), changed, 0.5) > alpha / 2)):
        limit = limit - over
    share = (discordance + abs(delta)) / (2 * discordance)
    some = limit >= 0
    rejected = sum(special.bdtr(np.maximum(limit, 0), changed, side) for side in (share, 1 - share))
    return float(weight[some] @ np.asarray(rejected)[some])


def items_for_equivalence(
    margin: float, discordance: float, *, delta: float = 0.0, power: float = POWER, alpha: float = ALPHA
) -> int:
    """Items for which two one-sided score tests prove |difference| < `margin` when it truly is `delta` (Nam 1997).

    The test's variance is the one at the margin, which is larger than the true one. Raises ValueError if delta is not
    inside the margin: no number of items proves that then.
    """
    if abs(delta) >= margin:
        raise ValueError(f"a difference of {delta} is not inside the margin of {margin}")
    top = 1.0
    while _power_at_root(math.sqrt(top), margin, discordance, delta, alpha) < power:
        top *= 2
    root = optimize.brentq(
        lambda root: _power_at_root(root, margin, discordance, delta, alpha) - power, 0.0, math.sqrt(top), xtol=1e-9
    )
    return max(1, math.ceil(float(root) ** 2))


def power_of_equivalence(
    items: int, margin: float, discordance: float, *, delta: float = 0.0, alpha: float = ALPHA
) -> float:
    """Chance (normal approximation) that `items` prove |difference| < `margin` when it truly is `delta`."""
    return max(0.0, _power_at_root(math.sqrt(items), margin, discordance, delta, alpha))


def provable_margin(items: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """Smallest equivalence margin that `items` prove with this power when there is no difference."""

    def surplus(margin: float) -> float:
        return _power_at_root(math.sqrt(items), margin, discordance, 0.0, alpha) - power

    return float(optimize.brentq(surplus, 1e-9, 1 - 1e-9)) if surplus(1 - 1e-9) > 0 else 1.0


def minutes_at_concurrency(items: int, concurrency: int, seconds_per_query: float) -> float:
    """Minutes of one side to answer every item once: `concurrency` at a time, each for `seconds_per_query`."""
    return max(items / concurrency, 1.0) * seconds_per_query / 60


def minutes_at_rate(items: int, tokens_per_s: float, tokens_per_answer: float) -> float:
    """Minutes of one side to answer every item once, from the server's output rate."""
    return items * tokens_per_answer / tokens_per_s / 60


def _power_at_root(root: float, margin: float, discordance: float, delta: float, alpha: float) -> float:
    """Power at root^2 items; negative where even the sum of both tails does not reach it."""
    true = math.sqrt(discordance - delta**2)
    tails = []
    for sign in (-1, 1):
        expected = Changes(n=1, won=(discordance - sign * delta) / 2, lost=(discordance + sign * delta) / 2)
        supposed = math.sqrt(supposed_variance(expected, -margin))
        tails.append(((margin - sign * delta) * root - _z(1 - alpha) * supposed) / true)
    return float(special.ndtr(tails[0]) + special.ndtr(tails[1])) - 1


def _z(p: float) -> float:
    return float(special.ndtri(p))
