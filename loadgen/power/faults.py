"""Faults that a simulated GPU shows on request, as real ones show them through NVML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from loadgen.errors import UsageError

FORMS = "reset@T, lost@T, gap@T:SECONDS, throttle@T:SECONDS, foreign@T:SECONDS:WATTS"
_PARTS = {"reset": 1, "lost": 1, "gap": 2, "throttle": 2, "foreign": 3}
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: the counter starts again at 0, the GPU is gone for good, no field can be read, heat lowers the
    clocks, or somebody else's work draws power."""

    kind: Literal["reset", "lost", "gap", "throttle", "foreign"]
    at_s: float
    """Seconds after the GPU's start."""
    duration_s: float = 0.0
    watts: float = 0.0

    def is_on(self, elapsed_s: float) -> bool:
        """Whether a fault that lasts is under way."""
        return self.at_s <= elapsed_s < self.at_s + self.duration_s

    def joules(self, elapsed_s: float) -> float:
        """What the fault has added to the energy so far."""
        return self.watts * min(max(elapsed_s - self.at_s, 0.0), self.duration_s)


def parse_faults(texts: Iterable[str]) -> tuple[Fault, ...]:
    """The faults of `KIND@T[:SECONDS[:WATTS]]` texts; raises UsageError for any other form."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Fault:
    kind, _, numbers = text.partition("@")
    parts = numbers.split(":")
    if len(parts) != _PARTS.get(kind) or not all(map(_NUMBER.fullmatch, parts)):
        raise UsageError(f"--fault {text} is none of {FORMS}")
    at_s, duration_s, watts = [*map(float, parts), 0.0, 0.0][:3]
    return msgspec.convert({"kind": kind, "at_s": at_s, "duration_s": duration_s, "watts": watts}, Fault)
