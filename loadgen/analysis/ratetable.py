"""RateAdvice: the advice at one of many rates, worked out before a reader of the report chooses one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from loadgen.analysis.advise import Advice, Demand, Fleets
from loadgen.analysis.replica import Fleet
from loadgen.analysis.run import Run

MANTISSAS = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)
"""Of the rates, in each decade; fewer where many batches make each rate take long."""
FEWER = (MANTISSAS, (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5))
MOST_RATE_STATES = 24_000
"""Rates times the batches of all targets, as far as a report waits for it: less than half a second."""
MOST_RATES = 100
LEAST_IN_FLIGHT, MOST_REPLICAS = 0.1, 8
"""The rates begin where one replica of the slowest target is nearly idle, and end where the best target needs so
many."""


class RateAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """The advice at one rate."""

    rate_per_s: float
    by_joules: Advice
    by_gpus: Advice
    """With a price of 1 per GPU hour, so that `cost_per_1000` is in GPU hours."""


def rate_table(run: Run) -> tuple[RateAdvice, ...]:
    """By ascending rate; empty where no target has a valid cell, or so many batches were measured that it would take
    too long. Raises UsageError as `replicas_of`."""
    if 10 * run.cells.groupby("target")["concurrency"].max().sum() > MOST_RATE_STATES:
        return ()
    demand = Demand(rate_per_s=1.0)
    fleets, found = Fleets.of(run, demand.attainment), []
    for rate in rates_of(list(fleets.by_target.values())):
        here = msgspec.structs.replace(demand, rate_per_s=rate)
        by_joules, by_gpus = fleets.advise(here, msgspec.structs.replace(here, price_per_gpu_h=1.0))
        found.append(RateAdvice(rate_per_s=rate, by_joules=by_joules, by_gpus=by_gpus))
    return tuple(found)


def rates_of(fleets: Sequence[Fleet]) -> list[float]:
    """Round rates at about equal distances on a logarithmic scale."""
    replicas = [fleet.replica for fleet in fleets]
    if not replicas:
        return []
    states = sum(one.most for one in replicas)
    lowest = LEAST_IN_FLIGHT * min(float(one.rate_per_s[0, 0]) for one in replicas)
    best = max(fleet.capacity_per_s for fleet in fleets) or max(float(one.rate_per_s[0, -1]) for one in replicas)
    highest = MOST_REPLICAS * best
    decades = range(math.floor(math.log10(lowest)), math.floor(math.log10(highest)) + 1)
    for mantissas in FEWER:
        rates = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        rates = [rate for rate in rates if lowest <= rate <= highest]
        if len(rates) <= MOST_RATES and len(rates) * states <= MOST_RATE_STATES:
            return rates
    return []
