"""Figures, units and intervals as text: one rule for digits, one minus sign, one way to write an interval."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import groupby
from typing import TypeGuard

STAMP = "SIMULATED"
SIMULATED = f"{STAMP}: a cost model's figures, no GPU's"
"""The first words of what a terminal shows of such a run."""
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
TOO_WIDE = 10.0
"""An interval whose upper end is more than so many times its lower one says only that the repeats differ."""
NOT_KNOWN = "not known"
"""Instead of an interval that is too wide."""
WHY_NOT_KNOWN = f"Not known: the repeats differ too much, the interval's ends by more than a factor of {TOO_WIDE:g}."


def stamped(name: str, *, simulated: bool) -> str:
    """The name, followed by SIMULATED where it was not measured."""
    return f"{name} {STAMP}" if simulated else name


def known(value: float | None) -> TypeGuard[float]:
    """Whether the value was measured: neither None nor nan."""
    return value is not None and not math.isnan(value)


def too_wide(low: float | None, high: float | None, *, floor: float = 0.0) -> bool:
    """Whether an interval over repeats of a figure above `floor` (COR: -1) is wider than `TOO_WIDE`. Text says "not
    known" then; files keep both ends."""
    return low is not None and high is not None and (low <= floor or high - floor > TOO_WIDE * (low - floor))


def number(value: float | None, digits: int | None = None, *, sign: bool = False) -> str:
    """The value with `digits` after the point, by default with three significant digits, final zeros included (from
    100 on without decimals), and with thousands separators; empty for None and nan. `sign`: + before what is not
    negative."""
    if not known(value):
        return ""
    if value == 0 and digits is None:
        return "0"
    form = "#.3g" if digits is None and abs(value) < 99.95 else f",.{digits or 0}f"
    return f"{value:{'+' if sign else ''}{form}}".replace("-", MINUS)


def count(value: float | None) -> str:
    """A count, which repeats that disagree make fractional, or a value that somebody chose: "20", "1.5", "7.6"; as
    `number`, but without final zeros."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def percent(share: float | None, digits: int | None = None, *, unit: str = "%", sign: bool = False) -> str:
    """A share in `unit`, hundredths: with `digits` after the point, by default as a `count`."""
    text = "" if share is None else count(100 * share) if digits is None else number(100 * share, digits, sign=sign)
    return text and text + unit


def interval(
    low: float | None, high: float | None, digits: int | None = None, *, floor: float | None = None, sign: bool = False
) -> str:
    """ "12 to 15"; empty without both ends, "not known" where it is `too_wide` for a figure above `floor`."""
    if not known(low) or not known(high):
        return ""
    if floor is not None and too_wide(low, high, floor=floor):
        return NOT_KNOWN
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def percents(low: float | None, high: float | None, digits: int = 1, *, unit: str = "%", sign: bool = False) -> str:
    """An interval of shares, "38.6 to 43.2%"."""
    text = "" if low is None or high is None else interval(100 * low, 100 * high, digits, sign=sign)
    return text and text + unit


def memory(count_bytes: float) -> str:
    """ "13.5 GiB"; below 0.1 GiB "27 MiB"."""
    if count_bytes >= 0.1 * 2**30:
        return f"{count_bytes / 2**30:.1f} GiB"
    return f"{count_bytes / 2**20:.3g} MiB"


def span(first: object, last: object) -> str:
    """A range of batch sizes or model sizes, "1–128"; one text where both are the same."""
    return DASH.join(dict.fromkeys((str(first), str(last))))


def batch(value: float) -> str:
    """A running batch, "4.1" or "61"; an interval of batches is a `span` of two."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def spanned(batches: Collection[int], measured: Collection[int], name: str = "B") -> str:
    """Those of the `measured` batches, neighbours joined: "B = 64", "B ≤ 16" from 1 on, "B = 1, 16–64"; without a
    `name` "64", "≤ 16", "1, 16–64"."""
    runs = [list(run) for inside, run in groupby(sorted(measured), key=lambda b: b in batches) if inside]
    if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == 1:
        return f"{name} \N{LESS-THAN OR EQUAL TO} {runs[0][-1]}".lstrip()
    return (f"{name} = " if name else "") + ", ".join(span(run[0], run[-1]) for run in runs)
