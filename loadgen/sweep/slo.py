"""Slo: what a request has to keep to be a good one."""

from __future__ import annotations

import math
import re
from typing import Literal, get_args

import msgspec

from loadgen.errors import UsageError

Latency = Literal["ttft", "tpot", "e2e"]
_LIMIT = re.compile(r"(?P<number>[0-9.]+)(?P<unit>ms|s)")


class Slo(msgspec.Struct, frozen=True):
    """Most seconds of each latency, in the order given; prints as `--slo` takes it."""

    limits_s: tuple[tuple[Latency, float], ...]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Of `ttft:200ms,tpot:50ms,e2e:2s`, each at most once. Raises UsageError."""
        limits: dict[Latency, float] = {}
        for part in text.split(","):
            name, _, limit = part.strip().partition(":")
            known: tuple[Latency, ...] = get_args(Latency)
            latency = next((one for one in known if one == name), None)
            if latency is None:
                raise UsageError(
                    f"--slo {text}: {name!r} is no latency of a request; write {', '.join(known)} with a limit, "
                    "as in ttft:200ms,tpot:50ms"
                )
            if latency in limits:
                raise UsageError(f"--slo {text}: {name} stands there twice; give it one limit")
            limits[latency] = _seconds(limit, f"--slo {text}: {name}")
        return cls(tuple(limits.items()))

    def __str__(self) -> str:
        return ",".join(f"{name}:{_shown(limit_s)}" for name, limit_s in self.limits_s)


def _seconds(limit: str, asked: str) -> float:
    found = _LIMIT.fullmatch(limit)
    try:
        number = float(found["number"]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not 0 < number < math.inf:
        raise UsageError(f"{asked} is given {limit!r}; write a time above 0 with its unit, as in 200ms or 2s")
    return number / 1e3 if found["unit"] == "ms" else number


def _shown(limit_s: float) -> str:
    return f"{limit_s:.10g}s" if limit_s >= 1 else f"{limit_s * 1e3:.10g}ms"
