"""RunningBatch: how many requests the server ran at a time, by which of its figures, and why by that one.

A server can tell it twice. *Tokens per step*: the difference of its generated tokens over that of its engine's steps,
engine by engine, then summed. It is exact where every step brings each running request one token. Steps that bring some
requests none (chunked prefill, the micro-batches of pipeline parallelism) make it too small, steps that bring several
(speculative decoding) too large. The *gauge* of running requests is right in all of these. vLLM sets it at the end of
a step, after finished requests have left and before others came: it is too low by about one step per answer. One that
is seldom set can also lag behind. The client's own count of requests in flight is the third witness: of its
requests no more can run.

Prefix cache: which share of the prompts a server took from its cache, and whether comparisons are fair in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import gt
from statistics import fmean
from typing import Literal, Protocol

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Mask
from loadgen.serving.metrics import ServerSample

Source = Literal["counters", "gauge", "none"]

AGREEMENT = 0.03
"""Gauge and tokens per step that differ by less agree: a batch of B that one of them gives so much too low is still
within what `validity.RUNNING_SHARE` allows, so that the choice decides nothing."""
SURPLUS = 0.05
"""By how much a figure may exceed the requests in flight by chance: the ends of a window cut steps and answers."""
STANDARD_ERRORS = 3.0
"""Of the gauge's mean over its readings, that are noise."""
LARGEST_SLACK = 0.5
HELD_STEPS = 3.0
"""Steps per answer that a request in flight is not in the engine though nobody holds it back: the one it leaves by, the
way to the client and back, the wait for the next step."""
HELD_SHARE = 0.25
"""Share of the requests in flight that gaps of a slow server do not explain."""
PLATEAU_READINGS = 10
"""Readings from which on a gauge that stands at its own maximum at least half of the time shows a limit."""


LEAST_HELD = 2.0
"""Requests that must be missing at that limit where the gauge lags: the newest one may not be counted yet."""


class RunningBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The running batch of one window; None: not measured."""

    mean: float | None
    source: Source
    """`counters`: tokens per step; `gauge`: the mean of the gauge; `none`: the server tells neither."""
    note: str = ""
    """Which was taken where they disagree, and why; or why there is none."""
    slack: float = 0.0
    """Share by which `mean` may be too low: a gauge's step per answer."""
    noise: float = 0.0
    """Requests by which `mean` may be off by chance: that of a gauge which is read now and then."""


def running_batch(
    samples: Sequence[ServerSample],
    *,
    inflight: float | None = None,
    tokens_per_answer: float | None = None,
    open_loop: bool = False,
    lags: bool = False,
) -> RunningBatch:
    """Of the samples of a window.

    `inflight`: mean requests in flight; `tokens_per_answer`: mean length of an answer; `lags`: the gauge is set seldom,
    or before newcomers are in it (SGLang: at a prefill, and every 40 decode steps).
    """
    gauge = [s.running for s in samples if s.running is not None]
    steps = tokens_per_step(samples)
    if not gauge:
        return _without_gauge(steps, inflight)
    mean = float(np.mean(gauge))
    noise = STANDARD_ERRORS * float(np.std(gauge, ddof=1)) / math.sqrt(len(gauge)) if len(gauge) > 1 else math.inf
    length = max(tokens_per_answer or math.inf, 1.0)

    def by_gauge(note: str = "") -> RunningBatch:
        of_one = length * mean / steps if steps else length
        slack = min(1 / of_one, LARGEST_SLACK) if of_one else LARGEST_SLACK
        return RunningBatch(
            mean=mean, source="gauge", note=note, slack=slack, noise=noise if math.isfinite(noise) else 0.0
        )

    def by_counters(note: str = "") -> RunningBatch:
        return RunningBatch(mean=steps, source="counters", note=note)

    waiting = [s.waiting for s in samples if s.waiting is not None]
    in_engine = (inflight or 0.0) - (float(np.mean(waiting)) if waiting else 0.0)
    if steps is None:
        found = by_gauge()
        low = mean < in_engine * (1 - AGREEMENT) * (1 - found.slack)
        limited = _stands_at_a_limit(gauge) and in_engine - max(gauge) >= LEAST_HELD
        if not lags or not low or limited or open_loop:
            return found
        return RunningBatch(
            mean=None,
            source="none",
            note=f"the gauge shows {mean:.2f} of {in_engine:.2f} requests, but it is set too seldom to tell what ran",
        )
    said = f"the gauge shows {mean:.2f} running requests, a step makes {steps:.2f} tokens"
    behind = f"{said}, and {inflight or 0:.2f} are in flight: the gauge lags behind; tokens per step are taken"
    several = f"{said}: speculative decoding, or engines that take turns; the gauge is taken"
    if open_loop or inflight is None:  # in idle time there are no steps, and the gauge shows 0
        return by_gauge(several) if steps > max(gauge) * (1 + SURPLUS) else by_counters()
    most = inflight * (1 + SURPLUS)
    if steps > most and mean <= most + noise:
        return by_gauge(several)
    least = in_engine * (1 - AGREEMENT - 1 / length)
    witnessed = least <= steps <= in_engine * (1 + SURPLUS)
    if steps - mean > steps * (AGREEMENT + 1 / length) + noise:
        late = max(gauge) >= least or not any(gauge)
        return by_counters(behind) if witnessed and late else by_gauge(several)
    if mean - steps > steps * AGREEMENT + noise:
        if witnessed and mean > most + noise:
            return by_counters(behind)
        return by_gauge(
            f"{said}: steps that bring some requests no token, as with chunked prefill or pipeline parallelism; "
            "the gauge is taken"
        )
    return by_counters()


def _stands_at_a_limit(readings: Sequence[float]) -> bool:
    return len(readings) >= PLATEAU_READINGS and 2 * list(readings).count(max(readings)) >= len(readings)


def _without_gauge(steps: float | None, inflight: float | None) -> RunningBatch:
    """Tokens per step alone, unless they cannot be requests."""
    if steps is None:
        return RunningBatch(mean=None, source="none")
    if inflight is not None and steps > inflight * (1 + SURPLUS):
        return RunningBatch(
            mean=None,
            source="none",
            note=f"a step makes {steps:.2f} tokens, {inflight:.2f} requests are in flight, and no gauge counts them",
        )
    return RunningBatch(mean=steps, source="counters")


def tokens_per_step(samples: Sequence[ServerSample]) -> float | None:
    """Tokens generated per step of an engine, summed over the engines; None where a counter is missing or went back.

    An engine that made no step in between adds nothing.
    """
    known = [s for s in samples if s.iterations is not None and s.generation_tokens is not None]
    if len(known) < 2:
        return None
    counts = [
        {engine.engine: (engine.generation_tokens or 0.0, engine.iterations or 0.0) for engine in s.engines}
        or {"": (s.generation_tokens or 0.0, s.iterations or 0.0)}
        for s in known
    ]
    if any(before.keys() != after.keys() for before, after in pairwise(counts)):
        return None
    shares = []
    for engine in counts[0]:
        readings = [count[engine] for count in counts]
        if any(gt(before[k], after[k]) for before, after in pairwise(readings) for k in (0, 1)):
            return None
        tokens, steps = (readings[-1][k] - readings[0][k] for k in (0, 1))
        if steps:
            shares.append(tokens / steps)
    return math.fsum(shares) if any(shares) else None


def increase(readings: Sequence[float | None]) -> float | None:
    """What a counter gained: its last reading less the first; None where there are not two, or it went back."""
    told = [reading for reading in readings if reading is not None]
    return told[-1] - told[0] if len(told) > 1 and not any(map(gt, told, told[1:])) else None


def held_back(
    samples: Sequence[ServerSample],
    running: RunningBatch,
    *,
    concurrency: int,
    inflight: float | None,
    tokens_per_answer: float | None,
) -> bool:
    """Whether requests in flight are neither running nor in the engine's queue: something before it keeps them.

    More must be missing than gaps between answers and a slow server explain, or the engine's own count must stand at a
    limit; and never may it have had all B at once.
    """
    waiting = [s.waiting for s in samples if s.waiting is not None]
    if running.mean is None or inflight is None:
        return False
    missing = inflight - running.mean - (float(np.mean(waiting)) if waiting else 0.0)
    least = AGREEMENT * concurrency
    had = [s.running + (s.waiting or 0.0) for s in samples if s.running is not None]
    if missing <= least or (had and max(had) >= concurrency - least):
        return False
    gaps = HELD_STEPS * inflight / tokens_per_answer if tokens_per_answer else 0.0
    return missing > max(gaps, HELD_SHARE * inflight) or _stands_at_a_limit(had)


FAIR_POINTS = 2.0
"""Percentage points by which hit shares may differ between two arms, or two repeats, that are compared."""


class CachedCell(Protocol):
    """The columns of a cell that matter here."""

    @property
    def target(self) -> str: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def repeat(self) -> int: ...
    @property
    def load(self) -> str: ...
    @property
    def cache_hit_share(self) -> float | None: ...


def hit_share(samples: Sequence[ServerSample], data: CellData, ended: Mask) -> float | None:
    """The share of prompt tokens that came from a prefix cache, 0 to 1; None where nothing tells.

    From the server's counters over `samples`: hits over queries, both in tokens (vLLM's `prefix_cache_hits_total` and
    `prefix_cache_queries_total`; queries stay 0 where caching is off). Where a server has no such counters: cached
    over prompt tokens of the `ended` requests, from `usage.prompt_tokens_details.cached_tokens`.
    """
    queries = increase([s.prefix_cache_queries for s in samples])
    if queries is not None:
        hits = increase([s.prefix_cache_hits for s in samples]) or 0.0
        return hits / queries if queries else 0.0
    told = [data.exchanges[place] for place in np.flatnonzero(ended).tolist()]
    cached = [e.cached_tokens for e in told if e.cached_tokens is not None]
    prompts = sum(e.prompt_tokens or 0 for e in told)
    return sum(cached) / prompts if cached and prompts else None


def hit_warnings(cells: Sequence[CachedCell]) -> list[str]:
    """One sentence about hits that the requests' own salts should have prevented."""
    hit = [cell for cell in cells if cell.cache_hit_share]
    if not hit:
        return []
    most = max(hit, key=lambda cell: cell.cache_hit_share or 0.0)
    return [
        f"prefix cache: {len(hit)} cells had hits although every request has its own cache_salt, at most "
        f"{most.cache_hit_share or 0.0:.1%} of the prompt tokens ({most.target}, {most.load}, repeat {most.repeat}); "
        "the server does not honour cache_salt: switch its prefix cache off (vLLM: --no-enable-prefix-caching)"
    ]


def share_marks(cells: Sequence[CachedCell], reference: str) -> dict[str, list[str]]:
    """Target -> what marks its comparison with the reference: hit shares that differ by more than `FAIR_POINTS`.

    Compared are, at each load, the repeats of one arm, and the means of the target and the reference. Uneven repeats of
    the reference mark every target.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.cache_hit_share is not None:
            shares.setdefault((cell.target, cell.load), []).append(100 * cell.cache_hit_share)
    marks: dict[str, list[str]] = {target: [] for target, _ in shares}
    for (target, load), ours in shares.items():
        if max(ours) - min(ours) > FAIR_POINTS:
            marks[target].append(
                f"{target}, {load}: its repeats took {min(ours):.1f} to {max(ours):.1f}% of their prompt tokens from "
                "the prefix cache"
            )
        theirs = shares.get((reference, load), ours)
        if abs(fmean(ours) - fmean(theirs)) > FAIR_POINTS:
            marks[target].append(
                f"{load}: {target} took {fmean(ours):.1f}% of its prompt tokens from the prefix cache, {reference} "
                f"{fmean(theirs):.1f}%"
            )
    of_reference = marks.get(reference, [])
    return {target: ours if target == reference else [*ours, *of_reference] for target, ours in marks.items()}
