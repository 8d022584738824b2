"""What memory is left for keys and values buys: how many requests a target's KV cache holds, and what was compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Ints
from loadgen.record.manifest import KvCache, Manifest

PREEMPTED = 0.01
"""The share of time that a batch may need more tokens than the KV cache holds: vLLM then preempts a request."""
NORMAL_QUANTILE = 2.326
"""Of a normal distribution: `PREEMPTED` lies above it."""
AGES = 16
"""Into so many equal parts an answer is cut to look at its need while it grows."""
SAME = 0.01
"""Sizes that differ by no more count as one."""


def largest_batch(cache: KvCache, prompts: Ints, outputs: Ints) -> int | None:
    """The most requests of these lengths in tokens, at least one, that the cache holds at once for all but `PREEMPTED`
    of the time; None where a request's need does not follow from its length.

    Requests that began together end together: B of them need B whole lengths. Else a slot holds a request at a random
    time of its life, a long answer more often: its prompt and a uniform share of its answer. The sum of B is taken as
    normal, and the larger of both needs counts. Each request takes whole blocks, and vLLM keeps one for itself.
    """
    block = cache.block_tokens
    if not block or not len(prompts):
        return None
    room, p, o = float(cache.most_tokens - block), prompts.astype(float), np.maximum(outputs, 1).astype(float)
    whole = np.ceil((p + o) / block) * block
    weight = o / o.sum()
    mean = square = 0.0
    for age in range(AGES):
        size = np.ceil((p + o * (age + 0.5) / AGES) / block) * block
        mean += float(weight @ size) / AGES
        square += float(weight @ (size * size)) / AGES
    together = _held(room, float(whole.mean()), float(whole.std()))
    apart = _held(room, mean, math.sqrt(max(square - mean * mean, 0.0)))
    return max(min(together, apart), 1)


def _held(room: float, mean: float, deviation: float) -> int:
    """The largest B with B mean + `NORMAL_QUANTILE` sqrt(B) deviation within the room."""
    spread = NORMAL_QUANTILE * deviation
    root = (math.sqrt(spread**2 + 4 * mean * max(room, 0.0)) - spread) / (2 * mean)
    return math.floor(root**2 + 1e-9)


def mean_batch(cells: Iterable[tuple[float | None, float]]) -> int | None:
    """One figure of several cells' largest batches, each with its number of requests; None where none is known."""
    known = [(batch, requests) for batch, requests in cells if batch is not None and batch == batch and requests]
    total = sum(requests for _, requests in known)
    return math.floor(sum(batch * requests for batch, requests in known) / total + 1e-9) if total else None


class KvCaches(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of all targets' KV caches in tokens, the smallest of each one's starts."""

    rule: Literal["same KV cache", "same card", "sizes as given"]
    """What limited them: one size for all, which compares kernels; the card alone, which compares purchases."""
    reference: str
    tokens: dict[str, int]
    card_tokens: dict[str, int]
    """Those of targets whose servers tell what the whole card would hold."""

    @property
    def sentence(self) -> str:
        """One line, as in "same card: KV caches of awq 2.1, gptq 2 times fp16's 65,536 tokens"."""
        ours = self.tokens[self.reference]
        if self.rule == "same card":
            return f"{self.rule}: KV caches of {self._times(self.tokens)} {self.reference}'s {ours:,} tokens"
        if self.rule == "sizes as given":
            return f"KV caches in tokens: {', '.join(f'{name} {tokens:,}' for name, tokens in self.tokens.items())}"
        known = len(self.card_tokens) > 1 and self.reference in self.card_tokens
        more = f"; the whole card would give {self._times(self.card_tokens)} {self.reference}'s" if known else ""
        return f"{self.rule}: {ours:,} tokens for every target{more}"

    def _times(self, tokens: dict[str, int]) -> str:
        """Each other target's cache as a multiple of the reference's, equal ones together: "awq and gptq 2.1"."""
        names: dict[str, list[str]] = {}
        for name, held in tokens.items():
            if name != self.reference:
                names.setdefault(f"{held / tokens[self.reference]:.2g}", []).append(name)
        parts = [" and ".join(filter(None, (", ".join(alike[:-1]), alike[-1]))) for alike in names.values()]
        return ", ".join(f"{part} {times}" for part, times in zip(parts, names, strict=True)) + " times"


def kv_caches(manifest: Manifest) -> KvCaches | None:
    """The KV caches of a run with several targets; None where not all of them are known."""
    held: dict[str, list[KvCache]] = {}
    for server in manifest.servers:
        if server.kv_cache is not None:
            held.setdefault(server.name, []).append(server.kv_cache)
    names = [target.name for target in manifest.config.targets if target.name in held]
    if len(names) < 2 or len(names) < len(manifest.config.targets) or manifest.config.reference not in names:
        return None
    tokens = {name: min(cache.tokens for cache in held[name]) for name in names}
    whole = {name: [cache.card_tokens for cache in held[name] if cache.card_tokens is not None] for name in names}
    card = {name: min(found) for name, found in whole.items() if found}
    gpus = {server.workers for server in manifest.servers if server.workers is not None}
    rule: Literal["same KV cache", "same card", "sizes as given"] = "sizes as given"
    if max(tokens.values()) <= (1 + SAME) * min(tokens.values()):
        rule = "same KV cache"
    elif card == tokens and len(gpus) < 2:
        rule = "same card"
    return KvCaches(rule=rule, reference=manifest.config.reference, tokens=tokens, card_tokens=card)
