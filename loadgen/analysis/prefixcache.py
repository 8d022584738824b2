"""Prefix cache: which share of the prompts a server took from its cache, and whether comparisons are fair in it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Protocol

import numpy as np

from loadgen.analysis.batch import increase
from loadgen.analysis.celldata import CellData, Mask
from loadgen.serving.metrics import ServerSample

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
    return {
        target: ours if target == reference else [*ours, *of_reference] for target, ours in marks.items()
    }
