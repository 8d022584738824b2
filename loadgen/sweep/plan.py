"""The plan of a sweep: which cell is measured when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from loadgen.bounds import MOST_CELLS, Count
from loadgen.client.arrivals import CLOSED, Arrivals
from loadgen.errors import UsageError

TargetName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=200)]
"""A part of files' names."""


class TargetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked to be measured under one name."""

    name: TargetName
    precision: str
    url: str | None = None
    """Where it runs already; None: loadgen starts it."""
    metrics_urls: tuple[str, ...] = ()
    """Where its /metrics are, if not on its own address."""
    checkpoint: str | None = None
    """The checkpoint to serve instead of the recipe's choice."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Target x concurrency x repeat: what one row of cells.csv is about."""

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
    """Raises UsageError, which begins with `where` the plan stands, if a run would have more than MOST_CELLS cells."""
    if targets * levels * repeats * sessions > MOST_CELLS:
        of_sessions = f" in {sessions:,} sessions" if sessions > 1 else ""
        raise UsageError(
            f"{where}: {repeats:,} repeats of {targets:,} targets at {levels:,} batch sizes{of_sessions} are more than "
            f"{MOST_CELLS:,} cells; give fewer repeats"
        )


def level(concurrency: int, arrival: str | None) -> str:
    """What a cell's load is called: "B = 16", of an open loop "poisson:20"."""
    return f"B = {concurrency}" if arrival in (None, CLOSED) else str(arrival)


def plan_blocks(
    targets: Sequence[TargetSpec], concurrency: Sequence[int], repeats: int, arrival: str = CLOSED
) -> list[Block]:
    """Blocks in the order they run: repeats outermost, targets and concurrencies reversed in every second repeat.

    For targets A and B: A B, B A, A B, ... (ABBA), so that slow drift (heat, other load) hits both alike.
    """
    blocks: list[Block] = []
    index = 0
    for repeat in range(1, repeats + 1):
        forward = repeat % 2 == 1
        for target in targets if forward else list(reversed(targets)):
            cells = []
            for b in concurrency if forward else list(reversed(concurrency)):
                index += 1
                cells.append(
                    Cell(
                        index=index,
                        target=target.name,
                        precision=target.precision,
                        concurrency=b,
                        repeat=repeat,
                        arrival=arrival,
                    )
                )
            blocks.append(Block(target=target, repeat=repeat, cells=tuple(cells)))
    return blocks
