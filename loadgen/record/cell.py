"""The plan of a sweep: which cell is measured when.

Slo: what a request has to keep to be a good one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from loadgen.bounds import MOST_CELLS, Count
from loadgen.errors import UsageError
from loadgen.load.openloop import CLOSED, Arrivals

CellState = Literal["valid", "partly_valid", "invalid", "unjudged"]
"""Partly valid: batch and load are valid, and latency, energy or answers are not."""


class CellVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the figures of an ended cell may be believed, quantity by quantity, as cells.csv will say."""

    valid: bool | None
    """Batch and load, and so throughput; None: not judged while the sweep runs."""
    latency_valid: bool | None = None
    energy_valid: bool | None = None
    """None: also where energy was not measured."""
    answers_valid: bool | None = None
    """None: also where answers are not graded."""
    reasons: str = ""
    """Why a quantity is invalid, named where the load is valid; or why the cell was not judged."""
    figures: Mapping[str, Any] = {}
    """Its row of cells.csv, but for the answers; empty where it was not judged."""

    @property
    def state(self) -> CellState:
        """What the cell is counted as."""
        if self.valid is None:
            return "unjudged"
        others = (self.latency_valid, self.energy_valid, self.answers_valid)
        return "invalid" if not self.valid else "partly_valid" if False in others else "valid"


TargetName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=200)]
"""A part of files' names."""


class TargetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked to be measured under one name."""

    name: TargetName
    precision: str = ""
    url: str | None = None
    """Where it runs already; None: loadgen starts it."""
    metrics_urls: tuple[str, ...] = ()
    """Where its /metrics are, if not on its own address."""
    checkpoint: str | None = None
    """The checkpoint to serve instead of the recipe's choice."""
    tensor_parallel: Annotated[int, msgspec.Meta(ge=1, lt=2**15)] | None = None
    """GPUs that share its model; None: the recipe's number."""
    service: str | None = None
    """The service of a Docker Compose project that serves it."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Target x concurrency (or rate) x repeat: what one row of cells.csv is about."""

    index: Count
    target: TargetName
    precision: str
    concurrency: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    """B, held; in an open loop the most requests in flight."""
    repeat: Count
    arrival: str = CLOSED
    """As `--arrival` takes it."""

    @property
    def arrivals(self) -> Arrivals | None:
        """None in a closed loop."""
        return Arrivals.parse(self.arrival)

    @property
    def rate_asked_per_s(self) -> float | None:
        """Requests a second; None in a closed loop."""
        return self.arrivals.rate_per_s if self.arrivals is not None else None

    @property
    def held(self) -> float:
        """B; in an open loop the rate. Cells of a target with the same are repeats of each other."""
        return held_of(self.concurrency, self.arrival)

    @property
    def level(self) -> str:
        """What it holds: "B = 16", in an open loop "poisson:20"."""
        return level(self.concurrency, self.arrival)

    @property
    def label(self) -> str:
        return f"{self.index:03d}-{self.target}-b{self.concurrency}-r{self.repeat}"


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Cells that one start of a server measures."""

    target: TargetSpec
    repeat: int
    cells: tuple[Cell, ...]


def check_size(where: str, targets: int, levels: int, repeats: int, sessions: int = 1) -> None:
    """Raises UsageError, which begins with `where` the plan is from, if a run would have more than MOST_CELLS cells."""
    if targets * levels * repeats * sessions > MOST_CELLS:
        of_sessions = f" in {sessions:,} sessions" if sessions > 1 else ""
        raise UsageError(
            f"{where}: {repeats:,} repeats of {targets:,} targets at {levels:,} batch sizes{of_sessions} are more than "
            f"{MOST_CELLS:,} cells; give fewer repeats"
        )


def held_of(concurrency: float, arrival: object) -> float:
    """B, or the rate of an open loop in requests a second; `arrival` may be the empty field of a table."""
    arrivals = Arrivals.parse(arrival) if isinstance(arrival, str) else None
    return concurrency if arrivals is None else arrivals.rate_per_s


def level(concurrency: float, arrival: str | None) -> str:
    """What a cell's load is called: "B = 16", of an open loop "poisson:20"."""
    return f"B = {concurrency:g}" if arrival in (None, CLOSED) else str(arrival)


def rates_of(arrival: str) -> tuple[str, ...]:
    """The arrival of each cell: `poisson:5` and `poisson:10` of `poisson:5,10`."""
    return tuple(map(str, Arrivals.parse_each(arrival))) or (arrival,)


def plan_blocks(
    targets: Sequence[TargetSpec], concurrency: Sequence[int], repeats: int, arrival: str = CLOSED
) -> list[Block]:
    """Blocks in the order they run: repeats outermost, targets and concurrencies reversed in every second repeat.

    For targets A and B: A B, B A, A B, ... (ABBA), so that slow drift (heat, other load) hits both alike. Several rates
    of an `arrival` are a cell each.
    """
    arrivals = rates_of(arrival)
    blocks: list[Block] = []
    for repeat in range(1, repeats + 1):
        forward = repeat % 2 == 1
        for target in targets if forward else list(reversed(targets)):
            loads = [(b, rate) for rate in arrivals for b in concurrency]
            loads = loads if forward else loads[::-1]
            cells = tuple(
                Cell(
                    index=index,
                    target=target.name,
                    precision=target.precision,
                    concurrency=b,
                    repeat=repeat,
                    arrival=rate,
                )
                for index, (b, rate) in enumerate(loads, start=len(blocks) * len(loads) + 1)
            )
            blocks.append(Block(target=target, repeat=repeat, cells=cells))
    return blocks


Latency = Literal["ttft", "tpot", "e2e"]
_LIMIT = re.compile(r"(?P<number>[0-9.]+)(?P<unit>ms|s)")


class Slo(msgspec.Struct, frozen=True):
    """Most seconds of each latency, in the order given; prints as `--slo` takes it."""

    limits_s: tuple[tuple[Latency, float], ...]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads `ttft:200ms,tpot:50ms,e2e:2s`, each at most once. Raises UsageError."""
        limits: dict[Latency, float] = {}
        known: tuple[Latency, ...] = get_args(Latency)
        for part in text.split(","):
            name, _, limit = part.strip().partition(":")
            latency = next((one for one in known if one == name), None)
            if latency is None:
                raise UsageError(
                    f"--slo {text}: {name!r} is not a latency of a request; write {', '.join(known)} with a limit, "
                    "as in ttft:200ms,tpot:50ms"
                )
            if latency in limits:
                raise UsageError(f"--slo {text}: {name} is listed twice; give it one limit")
            limits[latency] = _seconds(limit, f"--slo {text}: {name}")
        return cls(tuple(limits.items()))

    def __str__(self) -> str:
        return ",".join(f"{name}:{_shown(limit_s)}" for name, limit_s in self.limits_s)


def _seconds(limit: str, where: str) -> float:
    found = _LIMIT.fullmatch(limit)
    try:
        number = float(found["number"]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not 0 < number < math.inf:
        raise UsageError(f"{where} is given {limit!r}; write a time above 0 with its unit, as in 200ms or 2s")
    return number / 1e3 if found["unit"] == "ms" else number


def _shown(limit_s: float) -> str:
    return f"{limit_s:.10g}s" if limit_s >= 1 else f"{limit_s * 1e3:.10g}ms"
