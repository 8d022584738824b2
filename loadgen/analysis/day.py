"""Day: the hours of a day with their rates, and what a fleet saves that changes its precision with the traffic."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

import msgspec

from loadgen.analysis.estimate import Estimate
from loadgen.errors import UsageError


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a day with one rate."""

    from_h: float
    to_h: float
    rate_per_s: float


DIURNAL_STEPS = 24


def traffic_of(text: str) -> tuple[Step, ...]:
    """`diurnal:PEAK/TROUGH`, a cosine over 24 hours whose peak is at 12 h, or a CSV file of `hour,rate`: each rate, in
    requests a second, holds until the next hour, the last until 24. Raises UsageError."""
    if text.startswith("diurnal:"):
        peak, slash, trough = text.removeprefix("diurnal:").partition("/")
        try:
            high, low = float(peak), float(trough)
        except ValueError:
            high = low = math.nan
        if not slash or not 0 <= low <= high < math.inf or high == 0:
            raise UsageError(f"--traffic {text}: give the highest and the lowest rate, as in diurnal:40/5")
        hours = range(DIURNAL_STEPS)
        rates = [low + (high - low) * (1 - math.cos(2 * math.pi * (hour + 0.5) / 24)) / 2 for hour in hours]
        return tuple(Step(from_h=hour, to_h=hour + 1, rate_per_s=rate) for hour, rate in zip(hours, rates, strict=True))
    try:
        lines = [row for row in csv.reader(Path(text).expanduser().read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"--traffic {text}: cannot be read ({reason}); give diurnal:PEAK/TROUGH or a CSV file"
        ) from None
    head, *rows = lines or [[]]
    if [name.strip().lower() for name in head] != ["hour", "rate"] or not rows:
        raise UsageError(
            f"--traffic {text}: its first line must be `hour,rate`, and a line for each change must follow"
        )
    found = []
    for row in rows:
        try:
            hour, rate = map(float, row)
        except ValueError:
            raise UsageError(f"--traffic {text}: {','.join(row)!r} is not an hour and a rate, such as 8,40") from None
        found.append((hour, rate))
    ends = [*(hour for hour, _ in found), 24.0]
    if found[0][0] != 0 or any(not a < b for a, b in pairwise(ends)) or any(not 0 <= r < math.inf for _, r in found):
        raise UsageError(f"--traffic {text}: hours must begin at 0 and rise to below 24, and rates be 0 or more")
    if not any(rate for _, rate in found):
        raise UsageError(f"--traffic {text}: every rate is 0; give the requests a second of at least one hour")
    return tuple(
        Step(from_h=a, to_h=b, rate_per_s=rate) for (a, b), (_, rate) in zip(pairwise(ends), found, strict=True)
    )


class DayArm(msgspec.Struct, frozen=True, kw_only=True):
    """A day of one target, or of a fleet that changes targets; None: not known."""

    target: str
    refusal: str | None = None
    most_replicas: int | None = None
    most_gpus: int | None = None
    gpu_h: float | None = None
    kwh: Estimate | None = None
    cost: float | None = None
    co2_kg: float | None = None


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """A day's traffic, served with as many replicas in each step as it needs."""

    steps: tuple[Step, ...]
    chosen: tuple[str, ...]
    """The best target in each step; none where one of the steps has none."""
    arms: tuple[DayArm, ...]
    """Best first."""
    switching: DayArm | None = None
    """The fleet that serves each step with its best target."""
    saving: Estimate | None = None
    """The share of the best single target's cost, or joules without a price, that it saves."""
    simulated: bool = False
    kept_servers: bool = False
    """As `Advice.kept_servers`."""
