"""SweepConfig: what a sweep does, as manifest.json holds it; and the plan that follows: which cell is measured when.

Slo: what a request has to keep to be a good one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from loadgen.bounds import MOST_CELLS, Amount, Count, Text
from loadgen.errors import UsageError
from loadgen.load.openloop import CLOSED, Arrivals
from loadgen.notation import did_you_mean, entries, number
from loadgen.options import MAX_ERROR_RATE
from loadgen.workload.protocol import Thinking
from loadgen.workload.traffic import shapes_of

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
    arrival: Text | None = None
    """Its own arrivals, as `SweepConfig.arrival`; `none`: it is not measured; None: those of the run."""


Phase = Literal["locate", "repeat"]
"""What a step of a search is for: to find about where B* is, or to narrow its interval."""
_Batch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class Start(msgspec.Struct, frozen=True):
    """One fresh start of a side's server, and the batch sizes that are measured on it, in this order."""

    side: TargetName
    concurrency: tuple[_Batch, ...]


class Step(msgspec.Struct, frozen=True):
    """What a search for B* (`--find`) decided to measure next: at most one start of each side."""

    phase: Phase
    repeat: Count
    """Which of the search's steps, from 1; that of its cells."""
    starts: tuple[Start, ...]
    """In the order in which they are measured."""
    why: str = ""
    """Where the search stands, and why this is next: one sentence."""


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
    shape: Text | None = None
    """Tokens of prompts and answers, as `128/1024`, in a run with several shapes."""
    phase: Phase | None = None
    """Of the search for B* that it belongs to, whose step is `repeat`; None: of a grid."""

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
        """What it holds: "B = 16", in an open loop "poisson:20"; with its shape where a run has several."""
        return level(self.concurrency, self.arrival, self.shape)

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


def level(concurrency: float, arrival: str | None, shape: str | None = None) -> str:
    """What a cell's load is called: "B = 16", of an open loop "poisson:20", of a shape "B = 16, 128/1024"."""
    load = f"B = {concurrency:g}" if arrival in (None, CLOSED) else str(arrival)
    return load if shape is None else f"{load}, {shape}"


NOT_MEASURED = "none"
"""In place of a target's own arrivals."""


def rates_of(arrival: str) -> tuple[str, ...]:
    """The arrival of each cell: `poisson:5` and `poisson:10` of `poisson:5,10`; none of `none`."""
    if arrival == NOT_MEASURED:
        return ()
    return tuple(map(str, Arrivals.parse_each(arrival))) or (arrival,)


def plan_blocks(
    targets: Sequence[TargetSpec],
    concurrency: Sequence[int],
    repeats: int,
    arrival: str = CLOSED,
    shapes: Sequence[str] = (),
) -> list[Block]:
    """Blocks in the order they run: repeats outermost, targets and concurrencies reversed in every second repeat.

    For targets A and B: A B, B A, A B, ... (ABBA), so that slow drift (heat, other load) hits both alike. Several rates
    of an `arrival`, or of a target's own, and several shapes, are a cell each.
    """
    blocks: list[Block] = []
    indices = itertools.count(1)
    for repeat in range(1, repeats + 1):
        forward = repeat % 2 == 1
        for target in targets if forward else list(reversed(targets)):
            rates = rates_of(target.arrival or arrival)
            loads = [(b, rate, shape) for rate in rates for b in concurrency for shape in shapes or (None,)]
            loads = loads if forward else loads[::-1]
            cells = tuple(
                Cell(
                    index=next(indices),
                    target=target.name,
                    precision=target.precision,
                    concurrency=b,
                    repeat=repeat,
                    arrival=rate,
                    shape=shape,
                )
                for b, rate, shape in loads
            )
            blocks.append(Block(target=target, repeat=repeat, cells=cells))
    return [block for block in blocks if block.cells]


def check_steps(where: str, targets: Sequence[TargetSpec], steps: Sequence[Step]) -> None:
    """Raises UsageError, which begins with `where` the steps are from, for one of an unknown target, and for more than
    MOST_CELLS cells."""
    names = {target.name for target in targets}
    starts = [start for step in steps for start in step.starts]
    if unknown := [start.side for start in starts if start.side not in names]:
        raise UsageError(f"{where}: a step measures {unknown[0]!r}, which is not a target; put that file back")
    if sum(len(start.concurrency) for start in starts) > MOST_CELLS:
        raise UsageError(f"{where}: its steps have more than {MOST_CELLS:,} cells; put that file back")


def step_blocks(targets: Sequence[TargetSpec], steps: Sequence[Step]) -> list[Block]:
    """Blocks of a search's steps, in the order they run."""
    specs = {target.name: target for target in targets}
    blocks: list[Block] = []
    index = itertools.count(1)
    for step in steps:
        for start in step.starts:
            spec = specs[start.side]
            cells = tuple(
                Cell(
                    index=next(index),
                    target=spec.name,
                    precision=spec.precision,
                    concurrency=b,
                    repeat=step.repeat,
                    phase=step.phase,
                )
                for b in start.concurrency
            )
            blocks.append(Block(target=spec, repeat=step.repeat, cells=cells))
    return blocks


Latency = Literal["ttft", "tpot", "e2e"]


class Slo(msgspec.Struct, frozen=True):
    """Most seconds of each latency, in the order given; prints as `--slo` takes it."""

    limits_s: tuple[tuple[Latency, float], ...]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads `ttft:200ms,tpot:50ms,e2e:2s`, each at most once. Raises UsageError."""
        limits: dict[Latency, float] = {}
        known: tuple[Latency, ...] = get_args(Latency)
        for part in entries(text):
            name, _, limit = part.replace("=", ":", 1).partition(":")
            latency = next((one for one in known if one == name.strip().lower()), None)
            if latency is None:
                raise UsageError(
                    f"--slo {text}: {name!r} is not a latency of a request; {did_you_mean(name, known)}write "
                    f"{', '.join(known)} with a limit, as in ttft:200ms,tpot:50ms"
                )
            if latency in limits:
                raise UsageError(f"--slo {text}: {name} is listed twice; give it one limit")
            limits[latency] = _seconds(limit, f"--slo {text}: {name}")
        return cls(tuple(limits.items()))

    def __str__(self) -> str:
        return ",".join(f"{name}:{_shown(limit_s)}" for name, limit_s in self.limits_s)


def _seconds(limit: str, where: str) -> float:
    try:
        limit_s = 0.0 if limit.strip()[-1:].isdecimal() else number(limit, "s")
    except ValueError:
        limit_s = 0.0
    if not 0 < limit_s < math.inf:
        raise UsageError(f"{where} is given {limit!r}; write a time above 0 with its unit, as in 200ms or 2s")
    return limit_s


def _shown(limit_s: float) -> str:
    return f"{limit_s:.10g}s" if limit_s >= 1 else f"{limit_s * 1e3:.10g}ms"


Mode = Literal["target", "serve", "compose", "simulated"]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


ON_RAY = "ray:"


class SweepConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep does. Made by `loadgen.measure.config.configure` and written into the manifest unchanged.

    Defaults are those of runs by versions that did not have the field yet.
    """

    mode: Mode = "simulated"
    targets: Annotated[tuple[TargetSpec, ...], msgspec.Meta(min_length=1)]
    compose: Text | None = None
    """The folder of the Docker Compose project whose services are started."""
    model: Text | None
    device: Text = ""
    vllm: Text | None = None
    max_num_seqs: Count = 0
    concurrency: Annotated[tuple[_Batch, ...], msgspec.Meta(min_length=1)]
    dataset: Text = ""
    data_file: Text | None = None
    platinum_file: Text | None = None
    protocol: Text = ""
    shots_file: Text | None = None
    answer_regex: Text | None = None
    """The user's pattern of an answer: its last match is graded."""
    limit: Count | None = None
    duration_s: _Positive | None
    requests: Count | None
    repeats: Count
    find: tuple[Text, ...] = ()
    """Metrics whose B* is searched for, between the first and the last of `concurrency`; empty: a grid is measured."""
    within: _Positive = 0.1
    """How far the ends of the interval of B* may be from it, as a share of it."""
    most_s: _Positive | None = None
    """The most time that a search may take, of which its last step may exceed some."""
    start_sd: _Positive | None = None
    """Relative standard deviation of a figure between two starts of one server, as the user states it."""
    warmup_s: Amount | None = None
    max_tokens: Count | None = None
    fixed_length: Count | None = None
    arrival: Text = CLOSED
    """`closed`, or one kind with its rates: `poisson:5,10`, `constant:20`, `trace:3.5`; those of all targets together,
    where each has its own."""
    slo: Text | None = None
    """What goodput asks of a request, as `Slo` prints it."""
    api: Text | None = None
    thinking: Thinking | None = None
    prefix_cache: bool = False
    """Requests of a cell share the server's prefix cache; else each has its own `cache_salt`."""
    quantize_missing: bool = False
    """Checkpoints that did not exist were made before anything was measured; `--resume` makes none."""
    reasoning_parser: Text | None = None
    max_model_len: Count | None = None
    """Tokens of prompt and answer together that launched servers take; None: loadgen's choice."""
    same_kv: Text | None = None
    """Launched servers get KV caches of so many tokens, or of the `smallest` of theirs; None: each its own."""
    same_card: bool = False
    """Nothing but the GPU limits their KV caches: the user asked for it."""
    vllm_args: tuple[Text, ...] = ()
    """Further arguments of every vLLM that is launched."""
    transport: Text = "raw"
    workers: Count | Text | None = None
    """Client processes, `ray:N`: on the nodes of a Ray cluster; None: as many as are needed."""
    reference: Text
    out: Text | None = None
    seed: int = 0
    extra_body: dict[str, Any] = {}
    """Merged into every request: objects are merged, null removes a field (RFC 7396)."""
    timeout_s: Amount = 600.0
    start_timeout_s: Amount = 900.0
    """How long a launched server may start without its log or its downloads growing."""
    wait_ready_s: Amount = 0.0
    """How long servers that still load are waited for."""
    drain_s: Amount | None = None
    """How long the last requests of a cell may take after its window; None: `loadgen.load.load` says."""
    max_error_rate: Amount = MAX_ERROR_RATE
    """The share of a cell's requests that may fail; beyond it the cell is invalid and its answers are not graded."""
    api_key_env: Text | None = None
    power: Text = "none"
    """`auto`, `nvml`, `rapl`, `simulated`, `none` or `exporter=URL`."""
    gpus: tuple[Text, ...] | None = None
    exclusive: bool = False
    """Refuse GPUs that another process uses."""
    tdp_w: _Positive | None = None
    carbon_kg_per_kwh: _Positive | None = None
    metrics_port: int | None = None
    metrics_host: Text = "127.0.0.1"
    """The address on which this run's own /metrics listens."""

    @property
    def client_processes(self) -> int | None:
        """None: as many as are needed."""
        return int(self.workers.removeprefix(ON_RAY)) if isinstance(self.workers, str) else self.workers

    @property
    def on_ray(self) -> bool:
        """The client processes run on the nodes of a Ray cluster."""
        return isinstance(self.workers, str)

    @property
    def sides(self) -> tuple[str, ...]:
        """The targets' names, the reference first."""
        others = (target.name for target in self.targets if target.name != self.reference)
        return (self.reference, *others)

    @property
    def load(self) -> str:
        """What every cell holds: "B 1,16", of an open loop "poisson:20, at most 1024 in flight"; what a search looks
        for."""
        if self.find:
            return f"B* by {', '.join(self.find)} from B = {self.concurrency[0]} to {self.concurrency[-1]}"
        b = ",".join(map(str, self.concurrency))
        load = f"B {b}" if self.arrival == CLOSED else f"{self.asked_arrival}, at most {b} in flight"
        return f"{load} × {len(self.shapes)} shapes" if self.shapes else load

    @property
    def asked_arrival(self) -> str:
        """What `--arrival` takes: `poisson:5,10`, or `fp16=poisson:5,awq=poisson:10`."""
        own = [f"{target.name}={target.arrival}" for target in self.targets if target.arrival is not None]
        return ",".join(own) or self.arrival

    @property
    def levels(self) -> int:
        """Cells of a target in one repeat, at most: batch sizes, or rates, of each shape."""
        return len(self.concurrency) * len(rates_of(self.arrival)) * max(1, len(self.shapes))

    @property
    def shapes(self) -> tuple[str, ...]:
        """As from `shapes_of`."""
        return shapes_of(self.dataset)
