"""RunningBatch: how many requests the server ran at a time, by which of its figures, and why by that one.

A server can tell it twice. *Tokens per step*: the difference of its generated tokens over that of its engine's steps,
engine by engine, then summed. It is exact where every step brings each running request one token. Steps that bring some
requests none (chunked prefill, the micro-batches of pipeline parallelism) make it too small, steps that bring several
(speculative decoding) too large. The *gauge* of running requests is right in all of these. vLLM sets it at the end of
a step, after finished requests have left and before others came: it is too low by about one step per answer. One that
is seldom set can also lag behind. The client's own count of requests in flight is the third witness: of its
requests no more can run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import gt
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from loadgen.analysis.celldata import CellData, Mask
from loadgen.serving.exposition import ServerSample

Source = Literal["counters", "gauge", "none"]

AGREEMENT = 0.03
"""Gauge and tokens per step that differ by less agree: a batch of B that one of them gives so much too low is still
within what `validity.RUNNING_SHARE` allows, so that the choice decides nothing."""
SURPLUS = 0.05
"""By how much a figure may exceed the requests in flight by chance: the ends of a window cut steps and answers."""
STANDARD_ERRORS = 3.0
"""Standard errors of the gauge's mean over its readings that are noise."""
LARGEST_SLACK = 0.5
HELD_STEPS = 3.0
"""Steps per answer that a request in flight is not in the engine though nobody holds it back: the one it leaves by, the
way to the client and back, the wait for the next step."""
HELD_SHARE = 0.25
"""Share of the requests in flight that gaps of a slow server do not explain."""
PLATEAU_READINGS = 10
"""Readings from which on a gauge that is at its own maximum at least half of the time shows a limit."""
LEAST_HELD = 2.0
"""Requests that must be missing at that limit where the gauge lags: the newest one may not be counted yet."""


class Note(msgspec.Struct, frozen=True):
    """What must be known of a running batch; empty where nothing is in doubt."""

    why: str = ""
    """The same in all cells of a kind: which figure was taken, or why there is none."""
    figures: str = ""
    """Those that disagree in this cell."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.figures, self.why)))


class RunningBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The running batch of one window; None: not measured."""

    mean: float | None
    source: Source
    """`counters`: tokens per step; `gauge`: the mean of the gauge; `none`: the server reports neither."""
    note: Note = Note()
    slack: float = 0.0
    """Share by which `mean` may be too low: a gauge's step per answer."""
    noise: float = 0.0
    """Requests by which `mean` may be off by chance: that of a gauge which is read now and then."""


_LAGS = "the gauge lags behind; tokens per step are taken"
_SEVERAL = "speculative decoding, or engines that take turns; the gauge is taken"
_FEWER = "steps that bring some requests no token, as with chunked prefill or pipeline parallelism; the gauge is taken"


def running_batch(
    samples: Sequence[ServerSample],
    *,
    inflight: float | None = None,
    tokens_per_answer: float | None = None,
    open_loop: bool = False,
    lags: bool = False,
) -> RunningBatch:
    """The running batch over the samples of a window.

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
    step_per_answer = length * mean / steps if steps else length
    by_gauge = RunningBatch(
        mean=mean,
        source="gauge",
        slack=min(1 / step_per_answer, LARGEST_SLACK) if step_per_answer else LARGEST_SLACK,
        noise=noise if math.isfinite(noise) else 0.0,
    )
    in_engine = (inflight or 0.0) - (mean_of(samples, "waiting") or 0.0)
    if steps is None:
        low = mean < in_engine * (1 - AGREEMENT) * (1 - by_gauge.slack)
        limited = _is_at_a_limit(gauge) and in_engine - max(gauge) >= LEAST_HELD
        if not lags or not low or limited or open_loop:
            return by_gauge
        why = f"the gauge shows {mean:.2f} of {in_engine:.2f} requests, but it is set too seldom to tell what ran"
        return RunningBatch(mean=None, source="none", note=Note(why))
    by_counters = RunningBatch(mean=steps, source="counters")
    figures = f"the gauge shows {mean:.2f} running requests, a step makes {steps:.2f} tokens"
    lagging = replace(by_counters, note=Note(_LAGS, f"{figures}, and {inflight or 0:.2f} are in flight"))
    several = replace(by_gauge, note=Note(_SEVERAL, figures))
    if open_loop or inflight is None:  # in idle time there are no steps, and the gauge shows 0
        return several if steps > max(gauge) * (1 + SURPLUS) else by_counters
    most = inflight * (1 + SURPLUS)
    if steps > most and mean <= most + noise:
        return several
    least = in_engine * (1 - AGREEMENT - 1 / length)
    witnessed = least <= steps <= in_engine * (1 + SURPLUS)
    if steps - mean > steps * (AGREEMENT + 1 / length) + noise:
        late = max(gauge) >= least or not any(gauge)
        return lagging if witnessed and late else several
    if mean - steps > steps * AGREEMENT + noise:
        if witnessed and mean > most + noise:
            return lagging
        return replace(by_gauge, note=Note(_FEWER, figures))
    return by_counters


def _is_at_a_limit(readings: Sequence[float]) -> bool:
    return len(readings) >= PLATEAU_READINGS and 2 * list(readings).count(max(readings)) >= len(readings)


def _without_gauge(steps: float | None, inflight: float | None) -> RunningBatch:
    """Tokens per step alone, unless they cannot be requests."""
    if steps is not None and inflight is not None and steps > inflight * (1 + SURPLUS):
        why = f"a step makes {steps:.2f} tokens, {inflight:.2f} requests are in flight, and no gauge counts them"
        return RunningBatch(mean=None, source="none", note=Note(why))
    return RunningBatch(mean=steps, source="none" if steps is None else "counters")


def mean_of(samples: Sequence[ServerSample], field: str) -> float | None:
    """The mean over the samples that have the field."""
    values = [value for s in samples if (value := getattr(s, field)) is not None]
    return float(np.mean(values)) if values else None


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
    known = [reading for reading in readings if reading is not None]
    return known[-1] - known[0] if len(known) > 1 and not any(map(gt, known, known[1:])) else None


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
    if running.mean is None or inflight is None:
        return False
    missing = inflight - running.mean - (mean_of(samples, "waiting") or 0.0)
    least = AGREEMENT * concurrency
    had = [s.running + (s.waiting or 0.0) for s in samples if s.running is not None]
    if missing <= least or (had and max(had) >= concurrency - least):
        return False
    gaps = HELD_STEPS * inflight / tokens_per_answer if tokens_per_answer else 0.0
    return missing > max(gaps, HELD_SHARE * inflight) or _is_at_a_limit(had)


def hit_share(samples: Sequence[ServerSample], data: CellData, ended: Mask) -> float | None:
    """The share of prompt tokens that came from a prefix cache, 0 to 1; None where nothing says so.

    From the server's counters over `samples`: hits over queries, both in tokens (vLLM's `prefix_cache_hits_total` and
    `prefix_cache_queries_total`; queries stay 0 where caching is off). Where a server has no such counters: cached
    over prompt tokens of the `ended` requests, from `usage.prompt_tokens_details.cached_tokens`.
    """
    queries = increase([s.prefix_cache_queries for s in samples])
    if queries is not None:
        hits = increase([s.prefix_cache_hits for s in samples]) or 0.0
        return hits / queries if queries else 0.0
    cached, prompts = data.exchanges.cached_tokens[ended], int(data.exchanges.prompt_tokens[ended].clip(0).sum())
    known = cached[cached >= 0]
    return int(known.sum()) / prompts if known.size and prompts else None
