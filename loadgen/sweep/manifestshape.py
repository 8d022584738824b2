"""ManifestShape: the keys of manifest.json that anything reads, and of what kind each is.

Those without which there is no report have no default; others may be missing, and more may be there.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from loadgen.bounds import Amount, Count, Nanoseconds
from loadgen.client.arrivals import CLOSED
from loadgen.power.owners import Owners
from loadgen.power.sample import Scope
from loadgen.sweep.plan import TargetName

_Text = Annotated[str, msgspec.Meta(max_length=20_000)]
"""Longer ones take seconds to lay out in a table."""
_Batch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


class _Named(msgspec.Struct):
    name: TargetName


class _Config(msgspec.Struct):
    reference: _Text
    targets: Annotated[list[_Named], msgspec.Meta(min_length=1)]
    concurrency: Annotated[list[_Batch], msgspec.Meta(min_length=1)]
    repeats: Annotated[int, msgspec.Meta(ge=0)]
    model: _Text | None
    duration_s: _Positive | None
    requests: Count | None
    mode: _Text = ""
    device: _Text = ""
    arrival: _Text = CLOSED
    slo: _Text | None = None
    answer_regex: _Text | None = None
    fixed_length: Count | None = None
    start_sd: _Positive | None = None
    tdp_w: _Positive | None = None
    carbon_kg_per_kwh: _Positive | None = None
    max_error_rate: Amount = 0.0


class _Dataset(msgspec.Struct):
    name: _Text
    sha256: _Text
    published: bool
    items: Count


class _Protocol(msgspec.Struct):
    name: _Text
    sha256: _Text
    api: _Text
    max_tokens: Count


class _Client(msgspec.Struct):
    loadgen: _Text
    python: _Text = ""
    packages: dict[_Text, _Text] = {}
    workers: dict[_Text, Count] = {}
    selftest: list[dict[_Text, object]] = []


class _Host(msgspec.Struct):
    cpu: _Text | None
    cpus: Count | None
    cpu_vectors: list[_Text] = []


class _Server(msgspec.Struct):
    name: _Text
    repeat: Count
    version: _Text | None
    session: Count = 1
    url: _Text | None = None
    model: _Text | None = None
    argv: list[_Text] | None = None
    pid: int | None = None
    note: str | None = None
    remarks: list[str] = []
    kernels: list[_Text] | None = None
    quantization: _Text | None = None
    kv_cache_dtype: _Text | None = None
    eager: bool | None = None
    graph_sizes: list[Count] | None = None
    model_bytes: Amount | None = None
    kv_cache_bytes: Amount | None = None


class _Failure(msgspec.Struct):
    target: _Text
    repeat: Count
    error: str


class _Session(msgspec.Struct):
    session: Count
    warnings: list[str]


class _Anchor(msgspec.Struct):
    monotonic_ns: Nanoseconds
    unix_ns: Nanoseconds
    session: Count = 1


class _Device(msgspec.Struct):
    """A GPU, as GpuInfo."""

    uuid: _Text
    name: _Text = ""
    index: int = 0
    driver: _Text | None = None
    vbios: _Text | None = None
    power_limit_enforced_w: Amount | None = None
    power_limit_max_w: Amount | None = None
    scope: Scope = "gpu"
    supported: dict[_Text, bool] = {}
    simulated: bool = False


class _Gpu(_Device, kw_only=True):
    memory_total_bytes: Amount | None
    power_limit_default_w: Amount | None
    mig: bool


class _AnyGpu(_Device, kw_only=True):
    """Of runs whose power was not measured, as of earlier versions, which say less."""

    uuid: _Text = ""
    memory_total_bytes: Amount | None = None
    power_limit_default_w: Amount | None = None
    mig: bool = False


class _Power(msgspec.Struct):
    kind: _Text | None = None
    reason: _Text | None = None
    url: _Text | None = None
    gpus: list[_Text] | None = None


class _PowerBlock(msgspec.Struct):
    target: _Text
    repeat: Count
    session: Count = 1
    gpus: list[_Gpu] = []
    rest_w: dict[_Text, Amount | None] = {}
    owners: Owners | None = None
    samples_lost: Count | None = None


class _Attempt(msgspec.Struct):
    file: _Text


class _BodyChanges(msgspec.Struct):
    """Nothing but what loadgen changes on its own: a field left out, or a temperature near 0."""

    refused: dict[_Text, float | dict[_Text, None] | None] = {}
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class ManifestShape(msgspec.Struct):
    """To be converted to: what is missing, or of another kind, raises msgspec.ValidationError with its path."""

    simulated: bool
    config: _Config
    dataset: _Dataset
    protocol: _Protocol
    graded: bool
    client: _Client
    host: _Host
    servers: list[_Server]
    failures: list[_Failure]
    sessions: list[_Session] = []
    clock_anchors: list[_Anchor] = []
    power_blocks: list[_PowerBlock] = []
    gpu: list[_AnyGpu] | None = None
    power: _Power = msgspec.field(default_factory=_Power)
    recipes: dict[_Text, _Text] = {}
    attempts: list[_Attempt] = []
    body_changes: _BodyChanges = msgspec.field(default_factory=_BodyChanges)
