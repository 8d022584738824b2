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

_Batch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


class _Named(msgspec.Struct):
    name: TargetName


class _Config(msgspec.Struct):
    reference: str
    targets: Annotated[list[_Named], msgspec.Meta(min_length=1)]
    concurrency: Annotated[list[_Batch], msgspec.Meta(min_length=1)]
    repeats: Annotated[int, msgspec.Meta(ge=0)]
    model: str | None
    duration_s: _Positive | None
    requests: Count | None
    mode: str = ""
    device: str = ""
    arrival: str = CLOSED
    slo: str | None = None
    answer_regex: str | None = None
    fixed_length: Count | None = None
    start_sd: _Positive | None = None
    tdp_w: _Positive | None = None
    carbon_kg_per_kwh: _Positive | None = None
    max_error_rate: Amount = 0.0


class _Dataset(msgspec.Struct):
    name: str
    sha256: str
    published: bool
    items: Count


class _Protocol(msgspec.Struct):
    name: str
    sha256: str
    api: str
    max_tokens: Count


class _Client(msgspec.Struct):
    loadgen: str
    python: str = ""
    packages: dict[str, str] = {}
    workers: dict[str, Count] = {}
    selftest: list[dict[str, object]] = []


class _Host(msgspec.Struct):
    cpu: str | None
    cpus: Count | None
    cpu_vectors: list[str] = []


class _Server(msgspec.Struct):
    name: str
    repeat: Count
    version: str | None
    session: Count = 1
    url: str | None = None
    model: str | None = None
    argv: list[str] | None = None
    pid: int | None = None
    note: str | None = None
    remarks: list[str] = []
    kernels: list[str] | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    eager: bool | None = None
    graph_sizes: list[Count] | None = None
    model_bytes: Amount | None = None
    kv_cache_bytes: Amount | None = None


class _Failure(msgspec.Struct):
    target: str
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

    uuid: str
    name: str = ""
    index: int = 0
    driver: str | None = None
    vbios: str | None = None
    power_limit_enforced_w: Amount | None = None
    power_limit_max_w: Amount | None = None
    scope: Scope = "gpu"
    supported: dict[str, bool] = {}
    simulated: bool = False


class _Gpu(_Device, kw_only=True):
    memory_total_bytes: Amount | None
    power_limit_default_w: Amount | None
    mig: bool


class _AnyGpu(_Device, kw_only=True):
    """Of runs whose power was not measured, as of earlier versions, which say less."""

    uuid: str = ""
    memory_total_bytes: Amount | None = None
    power_limit_default_w: Amount | None = None
    mig: bool = False


class _Power(msgspec.Struct):
    kind: str | None = None
    reason: str | None = None
    url: str | None = None
    gpus: list[str] | None = None


class _PowerBlock(msgspec.Struct):
    target: str
    repeat: Count
    session: Count = 1
    gpus: list[_Gpu] = []
    rest_w: dict[str, Amount | None] = {}
    owners: Owners | None = None
    samples_lost: Count | None = None


class _Attempt(msgspec.Struct):
    file: str


class _BodyChanges(msgspec.Struct):
    """Nothing but what loadgen changes on its own: a field left out, or a temperature near 0."""

    refused: dict[str, float | dict[str, None] | None] = {}
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
    recipes: dict[str, str] = {}
    attempts: list[_Attempt] = []
    body_changes: _BodyChanges = msgspec.field(default_factory=_BodyChanges)
