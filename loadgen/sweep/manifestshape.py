"""ManifestShape: the keys of manifest.json that a report cannot do without; others may be missing, or be there too."""

from __future__ import annotations

from typing import Annotated

import msgspec


class _Named(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    """A part of files' names."""


class _Config(msgspec.Struct):
    reference: str
    targets: list[_Named]
    concurrency: list[int]
    repeats: Annotated[int, msgspec.Meta(ge=0)]
    model: str | None
    duration_s: float | None
    requests: int | None


class _Dataset(msgspec.Struct):
    name: str
    sha256: str
    published: bool
    items: int


class _Protocol(msgspec.Struct):
    name: str
    sha256: str
    api: str
    max_tokens: int


class _Client(msgspec.Struct):
    loadgen: str


class _Host(msgspec.Struct):
    cpu: str | None
    cpus: int | None


class _Server(msgspec.Struct):
    name: str
    repeat: int
    version: str | None


class _Failure(msgspec.Struct):
    target: str
    repeat: int
    error: str


class _Session(msgspec.Struct):
    session: int
    warnings: list[str]


class _Anchor(msgspec.Struct):
    monotonic_ns: int
    unix_ns: int


class _Gpu(msgspec.Struct):
    uuid: str
    memory_total_bytes: int | None
    power_limit_default_w: float | None
    mig: bool


class _PowerBlock(msgspec.Struct):
    target: str
    repeat: int
    gpus: list[_Gpu] = []


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
