"""SweepConfig: what a sweep does, as manifest.json holds it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from loadgen.bounds import Amount, Count, Text
from loadgen.load.openloop import CLOSED
from loadgen.options import MAX_ERROR_RATE
from loadgen.record.cell import TargetSpec, rates_of
from loadgen.workload.protocol import Thinking

Mode = Literal["target", "serve", "compose", "simulated"]
_Batch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


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
    start_sd: _Positive | None = None
    """Relative standard deviation of a figure between two starts of one server, as the user states it."""
    warmup_s: Amount | None = None
    max_tokens: Count | None = None
    fixed_length: Count | None = None
    arrival: Text = CLOSED
    """`closed`, or one kind with its rates: `poisson:5,10`, `constant:20`, `trace:3.5`."""
    slo: Text | None = None
    """What goodput asks of a request, as `Slo` prints it."""
    api: Text | None = None
    thinking: Thinking | None = None
    prefix_cache: bool = False
    """Requests of a cell share the server's prefix cache; else each has a `cache_salt` of its own."""
    quantize_missing: bool = False
    """Checkpoints that did not exist were made before anything was measured; `--resume` makes none."""
    reasoning_parser: Text | None = None
    max_model_len: Count | None = None
    """Tokens of prompt and answer together that launched servers take; None: loadgen's choice."""
    vllm_args: tuple[Text, ...] = ()
    """Further arguments of every vLLM that is launched."""
    transport: Text = "raw"
    workers: Count | None = None
    """Client processes; None: as many as are needed."""
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
    def load(self) -> str:
        """What every cell holds: "B 1,16", of an open loop "poisson:20, at most 1024 in flight"."""
        b = ",".join(map(str, self.concurrency))
        return f"B {b}" if self.arrival == CLOSED else f"{self.arrival}, at most {b} in flight"

    @property
    def levels(self) -> int:
        """Cells of a target in one repeat: batch sizes, or rates."""
        return len(self.concurrency) * len(rates_of(self.arrival))
