"""How many items a claim about accuracy needs, and what a number of items can show.

Proportions are 0 to 1 (0.01 = 1 pp). `discordance` is the share of items whose correctness changes between the two
sides. Numbers of items are rounded to the nearest: the normal approximation behind them is no closer.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

MARGIN = 0.02
"""Default equivalence margin, 2 pp: below the smallest loss that the paper claims (2.28 pp on GSM8K), and as narrow as
the whole of GSM8K (1319 items) can prove while 6% of the answers flip."""
ALPHA = 0.05
POWER = 0.8


def items_for_difference(delta: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """Items for which McNemar's two-sided test finds an accuracy difference `delta` (Connor 1987, eq. 3); never so few
    that the exact test could not prove anything."""
    delta = abs(delta)
    spread = math.sqrt(discordance) * _z(1 - alpha / 2) + math.sqrt(discordance - delta**2) * _z(power)
    return max(round((spread / delta) ** 2), math.ceil(fewest_changes(alpha) / discordance))


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
        spread = math.sqrt(discordance) * _z(1 - alpha / 2) + math.sqrt(discordance - delta**2) * _z(power)
        return math.sqrt(items) * delta - spread

    if surplus(discordance) < 0:
        return None
    return float(optimize.brentq(surplus, 0.0, discordance))


def power_of_mcnemar(items: int, delta: float, discordance: float, *, alpha: float = ALPHA) -> float:
    """Exact power of the exact two-sided McNemar test: over the number of changed items (binomial) and, given that,
    over how many of them were lost (binomial)."""
    from scipy import stats  # a second, which no report needs

    changed = np.arange(items + 1)
    weight = stats.binom.pmf(changed, items, discordance)
    changed, weight = changed[weight > 1e-12], weight[weight > 1e-12]
    limit = stats.binom.ppf(alpha / 2, changed, 0.5)
    limit = np.where(stats.binom.cdf(limit, changed, 0.5) > alpha / 2, limit - 1, limit)
    share = (discordance + abs(delta)) / (2 * discordance)
    rejected = stats.binom.cdf(limit, changed, share) + stats.binom.cdf(limit, changed, 1 - share)
    return float(weight @ rejected)


def items_for_equivalence(
    margin: float, discordance: float, *, delta: float = 0.0, power: float = POWER, alpha: float = ALPHA
) -> int:
    """Items for which two one-sided tests prove |difference| < `margin` when it truly is `delta`.

    At delta 0: discordance (z_(1-alpha) + z_((1+power)/2))^2 / margin^2. Raises ValueError if delta is not inside the
    margin: no number of items proves that then.
    """
    if abs(delta) >= margin:
        raise ValueError(f"a difference of {delta} is not inside the margin of {margin}")
    top = 1.0
    while _power_at_root(math.sqrt(top), margin, discordance, delta, alpha) < power:
        top *= 2
    root = optimize.brentq(
        lambda root: _power_at_root(root, margin, discordance, delta, alpha) - power, 0.0, math.sqrt(top), xtol=1e-9
    )
    return max(1, round(float(root) ** 2))


def power_of_equivalence(
    items: int, margin: float, discordance: float, *, delta: float = 0.0, alpha: float = ALPHA
) -> float:
    """Chance (normal approximation) that `items` prove |difference| < `margin` when it truly is `delta`."""
    return max(0.0, _power_at_root(math.sqrt(items), margin, discordance, delta, alpha))


def provable_margin(items: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """Smallest equivalence margin that `items` prove with this power when there is no difference."""
    return (_z(1 - alpha) + _z((1 + power) / 2)) * math.sqrt(discordance / items)


def minutes_at_concurrency(items: int, concurrency: int, seconds_per_query: float) -> float:
    """Minutes of one side to answer every item once: `concurrency` at a time, each for `seconds_per_query`."""
    return max(items / concurrency, 1.0) * seconds_per_query / 60


def minutes_at_rate(items: int, tokens_per_s: float, tokens_per_answer: float) -> float:
    """Minutes of one side to answer every item once, from the server's output rate."""
    return items * tokens_per_answer / tokens_per_s / 60


def _power_at_root(root: float, margin: float, discordance: float, delta: float, alpha: float) -> float:
    """Power at root^2 items; negative where even the sum of both tails does not reach it."""
    spread = math.sqrt(discordance - delta**2)
    tails = [(margin + sign * delta) * root / spread - _z(1 - alpha) for sign in (-1, 1)]
    return float(special.ndtr(tails[0]) + special.ndtr(tails[1])) - 1


def _z(p: float) -> float:
    return float(special.ndtri(p))
