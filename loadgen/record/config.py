"""SweepConfig: what a sweep does, as manifest.json holds it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from loadgen.load.openloop import CLOSED
from loadgen.record.cell import TargetSpec
from loadgen.workload.protocol import Thinking

Mode = Literal["target", "serve", "simulated"]


class SweepConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep does. Made by `loadgen.measure.config.configure` and written into the manifest unchanged."""

    mode: Mode
    targets: tuple[TargetSpec, ...]
    model: str | None
    device: str
    vllm: str | None
    max_num_seqs: int
    concurrency: tuple[int, ...]
    dataset: str
    data_file: str | None
    platinum_file: str | None = None
    protocol: str
    shots_file: str | None
    answer_regex: str | None = None
    """The user's pattern of an answer: its last match is graded."""
    limit: int | None
    duration_s: float | None
    requests: int | None
    repeats: int
    start_sd: float | None = None
    """Relative standard deviation of a figure between two starts of one server, as the user states it."""
    warmup_s: float | None
    max_tokens: int | None
    fixed_length: int | None
    arrival: str
    """`closed`, `poisson:RATE` or `constant:RATE`."""
    slo: str | None
    """What goodput asks of a request, as `Slo` prints it."""
    api: str | None
    thinking: Thinking | None
    prefix_cache: bool
    """Requests of a cell share the server's prefix cache; else each has a `cache_salt` of its own."""
    reasoning_parser: str | None
    transport: str
    workers: int | None
    """Client processes; None: as many as are needed."""
    reference: str
    out: str | None
    seed: int
    extra_body: dict[str, Any]
    """Merged into every request: objects are merged, null removes a field (RFC 7396)."""
    timeout_s: float
    start_timeout_s: float
    """How long a launched server may start without its log or its downloads growing."""
    wait_ready_s: float
    """How long servers that still load are waited for."""
    drain_s: float | None
    """How long the last requests of a cell may take after its window; None: `loadgen.load.load` says."""
    max_error_rate: float
    """The share of a cell's requests that may fail; beyond it the cell is invalid and its answers are not graded."""
    api_key_env: str | None
    power: str
    """`auto`, `nvml`, `rapl`, `simulated`, `none` or `exporter=URL`."""
    gpus: tuple[str, ...] | None
    exclusive: bool = False
    """Refuse GPUs that another process uses."""
    tdp_w: float | None
    carbon_kg_per_kwh: float | None
    metrics_port: int | None
    metrics_host: str
    """The address on which this run's own /metrics listens."""

    @property
    def load(self) -> str:
        """What every cell holds: "B 1,16", of an open loop "poisson:20, at most 1024 in flight"."""
        b = ",".join(map(str, self.concurrency))
        return f"B {b}" if self.arrival == CLOSED else f"{self.arrival}, at most {b} in flight"
