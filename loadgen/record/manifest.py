"""manifest.json: what was run, by what, on what; rewritten whole (and atomically) as facts come in.

ManifestShape: the keys of manifest.json that anything reads, and of what kind each is.

Those without which there is no report have no default; others may be missing, and more may be there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Annotated, Any, Literal

import msgspec

from loadgen._version import __version__
from loadgen.bounds import Amount, Count, Nanoseconds
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.load.openloop import CLOSED
from loadgen.power.feed import PowerFacts, boot_id
from loadgen.power.owners import Owners
from loadgen.power.sample import Scope
from loadgen.power.trace import Rest
from loadgen.record.cell import Cell, TargetName, check_size
from loadgen.secret import error_text
from loadgen.serving.facts import Target

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


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What the sweep counted in the model's local folder."""

    parameters: Count | None
    """Elements of all tensors; None: a mixture of experts, packed weights, or no safetensors that can be read."""
    experts: bool
    """config.json says that it is a mixture of experts."""


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
    weights: Weights | None = None


SCHEMA = 1
FILE = "manifest.json"
VECTORS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
"""Flags of /proc/cpuinfo that decide how fast a CPU multiplies which numbers."""
_PACKAGES = ("aiohttp", "httptools", "msgspec", "numpy", "openai", "pandas", "pyarrow", "uvloop")


class Manifest:
    """The manifest of a running sweep."""

    def __init__(self, run_dir: Path, content: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.content = content
        self.session = 0
        """Which of the run's sessions this is, from 1; set by `begin`."""

        self.resumed = False
        """This process did not begin the run."""

    def begin(self) -> None:
        """A session begins: the first, or one that resumes. Monotonic stamps of two sessions may be of two boots."""
        self.resumed = bool(self.content.get("sessions"))
        self._begin()

    def relaunch(self, why: str) -> None:
        """A server died and is launched again: with it begins a session, since its counters and its power do."""
        self._begin()
        self.warn(why)

    def _begin(self) -> None:
        sessions = self.content.setdefault("sessions", [])
        self.session = len(sessions) + 1
        about = {"session": self.session, "boot_id": boot_id(), "client": client_facts(), "host": host_facts()}
        sessions.append(about | {"warnings": []})
        self._anchor()
        self.write()

    def warn(self, sentence: str) -> None:
        """What is different in this session from the ones before."""
        self.content["sessions"][-1]["warnings"].append(sentence)
        self.write()

    def set_aside(self, cell: Cell, path: Path, why: str) -> None:
        """An unfinished cell is measured again; the file of its first attempt is to be found at `path`."""
        name = str(path.relative_to(self.run_dir))
        attempts = [entry for entry in self.content.get("attempts", []) if entry["file"] != name]
        attempts.append({"cell": cell.label, "file": name, "why": why, "resumed_in_session": self.session})
        self.content["attempts"] = attempts
        self.write()

    def add_server(self, repeat: int, target: Target, facts: dict[str, Any]) -> None:
        """A server came up: who it is and, if loadgen launched it, its argv, version and kernels."""
        entry = {"repeat": repeat, "session": self.session, **msgspec.to_builtins(target), **facts}
        self.content["servers"].append(entry)
        self.write()

    def add_idle(self, rest: Rest) -> None:
        """Power (W) and sensors before this session's first server started."""
        idle = {"idle_w": rest.power_w, "idle_calibration": msgspec.to_builtins(rest.calibration)}
        self.content["sessions"][-1] |= idle
        self.content["power"] = idle | self.content["power"]
        self.write()

    def add_power(self, repeat: int, target: str, facts: PowerFacts, rest: Rest, owners: Owners) -> dict[str, Any]:
        """The sensors beside one server: GPUs, clock offset, calibration and power (W) at rest with the model loaded,
        and whose the processes on the GPUs are."""
        self.content["gpu"] = self.content["gpu"] or msgspec.to_builtins(facts.gpus)
        entry = {"repeat": repeat, "target": target, "session": self.session}
        entry |= msgspec.to_builtins(facts) | {"rest_w": rest.power_w}
        entry |= {"calibration": msgspec.to_builtins(rest.calibration), "owners": msgspec.to_builtins(owners)}
        self.content.setdefault("power_blocks", []).append(entry)
        self.write()
        return entry

    def add_failure(self, repeat: int, target: str, error: str) -> None:
        """A server failed and its cells of this repeat are missing."""
        failure = {"repeat": repeat, "target": target, "session": self.session, "error": error}
        self.content["failures"].append(failure)
        self.write()

    def close(self) -> None:
        """A second clock anchor shows the wall clock's drift over the session."""
        self._anchor()
        self.write()

    def _anchor(self) -> None:
        self.content.setdefault("clock_anchors", []).append({"session": self.session, **clock_anchor()})

    def write(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.content), indent=2)
        Folder(self.run_dir).write(FILE, text + b"\n", durable=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest's content. Raises UsageError if there is none, it is of another schema, or it lacks what every
    report needs."""
    path = run_dir / FILE
    try:
        content: dict[str, Any] = read_json(run_dir, FILE, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} is no run directory: it has no manifest.json") from None
    except ValueError as error:
        raise UsageError(
            f"{path} is no manifest ({error_text(error)}); name a run directory of loadgen sweep"
        ) from None
    Folder(run_dir).check()
    if content.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {content.get('schema')}, this version reads {SCHEMA}")
    try:
        shape = msgspec.convert(content, ManifestShape)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not as loadgen sweep wrote it ({error_text(error)}); put that file back") from None
    config, sessions = shape.config, max(1, len(shape.sessions))
    check_size(str(path), len(config.targets), max(1, len(config.concurrency)), config.repeats, sessions)
    return content


def clock_anchor() -> dict[str, int]:
    """The same instant on CLOCK_MONOTONIC and on the wall clock, and how far apart the two readings may be."""
    before_ns = monotonic_ns()
    wall_ns = time_ns()
    after_ns = monotonic_ns()
    return {"monotonic_ns": (before_ns + after_ns) // 2, "unix_ns": wall_ns, "uncertainty_ns": after_ns - before_ns}


def host_facts() -> dict[str, Any]:
    """The machine the client ran on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_line("model name") or platform.processor() or None,
        "cpu_vectors": sorted(set(_cpu_line("flags").split()).intersection(VECTORS)),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": os.getloadavg()[0],
    }


def client_facts() -> dict[str, Any]:
    """Versions of everything that touches a stamp."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"loadgen": __version__, "python": sys.version.split()[0], "packages": versions}


def _cpu_line(name: str) -> str:
    """The first CPU's line of /proc/cpuinfo, empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
