"""Arrivals: when the requests of an open loop are due."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal, get_args

import msgspec

from loadgen.errors import UsageError

Kind = Literal["poisson", "constant"]
CLOSED = "closed"
MOST_PER_S = 100_000.0
"""More than any client sends: a rate above it is a slip of the pen."""


class Arrivals(msgspec.Struct, frozen=True):
    """`rate_per_s` requests a second on average, whatever becomes of them; prints as `--arrival` takes it."""

    kind: Kind
    rate_per_s: float

    @classmethod
    def parse(cls, text: str) -> Arrivals | None:
        """Of `poisson:RATE` or `constant:RATE` in requests per second; None of `closed`. Raises UsageError."""
        if text == CLOSED:
            return None
        kind, colon, rate = text.partition(":")
        if kind not in get_args(Kind) or not colon:
            raise UsageError(f"--arrival {text}: write closed, poisson:RATE or constant:RATE, as in poisson:20")
        try:
            per_s = float(rate)
        except ValueError:
            per_s = math.nan
        if not 0 < per_s <= MOST_PER_S:
            raise UsageError(
                f"--arrival {text}: {rate!r} is no rate; give requests per second, above 0 and at most {MOST_PER_S:.0f}"
            )
        return cls("poisson" if kind == "poisson" else "constant", per_s)

    def __str__(self) -> str:
        return f"{self.kind}:{self.rate_per_s:.10g}"

    def offsets_ns(self, seed: str) -> Iterator[int]:
        """When arrivals 1, 2, ... are due, in ns from the beginning, without end; the first is one gap late.

        Constant: k / rate, each from the beginning, so that nothing adds up. Poisson: sums of independent exponential
        gaps of mean 1 / rate, the same for the same seed.
        """
        if self.kind == "constant":
            k = 0
            while True:
                k += 1
                yield round(k * 1e9 / self.rate_per_s)
        gap_s = random.Random(seed).expovariate
        t_s = 0.0
        while True:
            t_s += gap_s(self.rate_per_s)
            yield round(t_s * 1e9)
