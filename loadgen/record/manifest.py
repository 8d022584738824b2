"""manifest.json: what was run, by what, on what. Manifest is what it holds; ManifestFile rewrites it as facts come in.

Keys without a default are needed for any report. Others may be missing in runs of earlier versions; unknown keys are
ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from loadgen.bounds import Amount, Bytes, Count, Nanoseconds, Text
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.power.sample import ClockOffset, GpuInfo, PowerSample, SourceKind
from loadgen.power.trace import Calibration, Owners, Rest
from loadgen.record.cell import Block, Cell, Step, SweepConfig, check_size, check_steps, plan_blocks, step_blocks
from loadgen.secret import error_text
from loadgen.workload.protocol import Thinking

SCHEMA = 1
FILE = "manifest.json"


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The questions that were asked."""

    name: Text
    sha256: Text
    published: bool
    """The file is the published one."""
    items: Count


class ProtocolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the questions were asked."""

    name: Text
    sha256: Text
    api: Text
    max_tokens: Count
    stops: tuple[Text, ...] = ()
    version: Text | None = None
    answer: Text | None = None
    """The kind of answer that is graded."""
    thinking: Thinking | None = None
    temperature: Any = None
    """As it was sent: a number unless `--extra-body` said something else; None: it was not sent."""
    seed: Any = None
    """Likewise."""


class BodyChangesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The changes to requests that loadgen made without being asked: omitted fields, or a temperature near 0."""

    refused: dict[Text, float | dict[Text, None] | None] = {}
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Versions of everything that touches a time stamp, and the client processes."""

    loadgen: Text
    python: Text = ""
    packages: dict[Text, Text] = {}
    workers: dict[Text, Count] = {}
    """Client processes by batch size."""
    selftest: tuple[dict[Text, Any], ...] = ()
    """The trials that decided how many."""


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that the client ran on."""

    cpu: Text | None
    cpus: Count | None
    cpu_vectors: tuple[Text, ...] = ()
    """Flags of /proc/cpuinfo that decide how fast a CPU multiplies which numbers."""
    system: Text | None = None
    memory_bytes: Bytes | None = None
    load_average_1min: Amount | None = None


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The texts that a quantizer ran through the model."""

    source: Text
    """`gsm8k train`, `sample`, or the file's path."""
    sha256: Text
    """The whole file's."""
    samples: Count
    seed: Count
    """The seed of the draw of the samples."""
    max_tokens: Count
    """Tokens of a sample; the rest of it is cut."""
    texts_sha256: Text
    """The drawn samples'."""


class QuantizeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How `loadgen quantize` made a checkpoint; it is in the checkpoint's folder."""

    format: Text
    model: Text
    """The 16-bit model, as it was named."""
    model_identity: Text | None
    """`checkpoint.checkpoint_identity` of it."""
    group_size: Count | None = None
    """Weights that share a scale; None: one scale per channel."""
    calibration: CalibrationRecord | None = None
    """None: the format needs no texts."""
    recipe: Text = ""
    """llm-compressor's own, as YAML."""
    device: Text = ""
    packages: dict[Text, Text] = {}
    loadgen: Text = ""
    duration_s: Amount | None = None
    files: dict[Text, Text] = {}
    """sha256 of every other file of the checkpoint."""

    def used(self, dataset: DatasetRecord) -> bool:
        """Whether it was calibrated on texts of the very file that the questions come from."""
        return self.calibration is not None and self.calibration.sha256 == dataset.sha256


class KvCache(msgspec.Struct, frozen=True, kw_only=True):
    """How much room a server has for keys and values, by its own figures; None: not known."""

    tokens: Count
    """Of all its engines together."""
    blocks: Count | None = None
    """Of one engine."""
    block_tokens: Count | None = None
    """A request gets room in whole blocks of so many tokens; None: layers keep different numbers of tokens."""
    card_tokens: Count | None = None
    """`tokens` with the share of the GPU that vLLM takes by default; None: it was restricted and does not tell."""

    @property
    def most_tokens(self) -> int:
        """`card_tokens`, or `tokens` where that is not known."""
        return self.tokens if self.card_tokens is None else self.card_tokens


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one start of a server reports about itself; None, or empty: not known, as of a server that loadgen did not
    launch."""

    name: Text
    precision: Text = ""
    argv: tuple[Text, ...] | None = None
    env: dict[Text, Text] = {}
    """The variables that loadgen added; secrets are masked."""
    pid: int | None = None
    version: Text | None
    """The answer to GET /version."""
    model: Text | None = None
    """The id that requests must name."""
    checkpoint_identity: Text | None = None
    """`checkpoint.checkpoint_identity`; None where this machine has no weights."""
    quantized: QuantizeRecord | None = None
    """How `loadgen quantize` made the checkpoint; None: it did not."""
    note: str | None = None
    """`loadgen_note` of the checkpoint's config.json."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together."""
    quantization: Text | None = None
    """How its weights are stored: `16-bit`, `awq int4 (group 128)`; None: no config.json was found."""
    kv_cache_dtype: Text | None = None
    """The dtype of keys and values: `float16`, `bfloat16`, `fp8`, ..."""
    eager: bool | None = None
    """Whether it runs without torch.compile and CUDA graphs, by vLLM's log."""
    graph_sizes: tuple[Count, ...] | None = None
    """Batches that CUDA graphs are captured for, by vLLM's log; empty without graphs."""
    workers: Count | None = None
    """Processes that each hold a part of the model, by vLLM's log or the command."""
    remarks: tuple[str, ...] = ()
    """Sentences that a reader of its figures needs."""
    kernels: tuple[Text, ...] | None = None
    """The kernels that were selected, by the log, in the order of their first mention."""
    model_bytes: Bytes | None = None
    """GPU memory of the weights of all workers, by vLLM's log; its CPU build does not log it."""
    kv_cache_bytes: Bytes | None = None
    """GPU memory of all workers for keys and values, likewise."""
    kv_cache: KvCache | None = None
    metric_names: tuple[Text, ...] = ()
    """Sample names under /metrics, sorted."""
    started_ns: Nanoseconds | None = None
    """Monotonic clock."""
    ready_ns: Nanoseconds | None = None
    """When GET /health first answered 200; monotonic clock."""


class ServerRecord(ServerFacts, frozen=True, kw_only=True):
    """One start of a server for one repeat of a target."""

    repeat: Count
    session: Count = 1
    url: Text | None = None
    metrics_urls: tuple[Text, ...] = ()
    simulated: bool = False
    model_note: str | None = None
    """What is odd about its model list."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A server failed and its cells of this repeat are missing."""

    target: Text
    repeat: Count
    session: Count = 1
    error: str


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of measuring: the first, a resumed one, or one with a server that was launched again."""

    session: Count
    """From 1."""
    warnings: tuple[str, ...]
    """What is different from the sessions before."""
    boot_id: Text | None = None
    client: ClientRecord | None = None
    host: HostRecord | None = None
    idle_w: dict[Text, Amount | None] | None = None
    """Power by GPU before its first server started; None: not measured."""
    idle_calibration: dict[Text, Calibration] | None = None


class ClockAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """One instant on CLOCK_MONOTONIC and on the wall clock; two of a session show how far they drifted."""

    monotonic_ns: Nanoseconds
    unix_ns: Nanoseconds
    uncertainty_ns: Nanoseconds | None = None
    """How far apart the two readings may be."""
    session: Count = 1


class PowerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The source of a run's power, settled before anything is created."""

    kind: Text | None = None
    """`nvml`, `rapl`, `simulated`, `exporter` or `none`."""
    url: Text | None = None
    gpus: tuple[Text, ...] | None = None
    placed: dict[Text, tuple[Text, ...]] = {}
    """The GPUs of each target whose container gets its own from a Compose project."""
    reason: Text | None = None
    """Why there is none."""
    required: bool = True
    """The sweep stops without it: it was named, not left to `auto`."""
    warnings: tuple[str, ...] = ()
    """What else uses the GPUs before the first server starts."""
    before: tuple[int, ...] = ()
    """Processes that used them then, where loadgen starts the servers."""
    idle_w: dict[Text, Amount | None] | None = None
    """Power by GPU before the first session's first server started; None: not measured."""
    idle_calibration: dict[Text, Calibration] | None = None


class PowerBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The sensors during one start of a server."""

    target: Text
    repeat: Count
    session: Count = 1
    source: SourceKind | None = None
    simulated: bool = False
    gpus: tuple[GpuInfo, ...] = ()
    calibration: dict[Text, Calibration | None] = {}
    """By GPU, as `rest_w`: from the seconds before the first request."""
    rest_w: dict[Text, Amount | None] = {}
    """Power with the model loaded and nothing asked."""
    clock: ClockOffset | None = None
    latest: dict[Text, PowerSample] = {}
    """By GPU: the newest full reading before the first sample, with the GPU's processes."""
    server_pid: int | None = None
    """The server that reads these sensors itself."""
    owners: Owners | None = None
    samples_lost: Count | None = None
    """Samples that the exporter forgot before they were pulled."""
    pulls_failed: Count | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The file of an unfinished cell that was measured again."""

    file: Text
    cell: Text = ""
    why: str = ""
    resumed_in_session: Count = 1


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What the sweep counted in the model's local folder."""

    parameters: Count | None
    """Elements of all tensors; None: a mixture of experts, packed weights, or no safetensors that can be read."""
    experts: bool
    """config.json says that it is a mixture of experts."""


class FoundCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A quantized checkpoint that loadgen chose on the hub, because neither the user nor the recipe names one."""

    id: Text
    downloads: Count | None
    """In the 30 days before, by the hub: the most of all that the recipe serves; None: it does not say."""
    quantization: Text
    """What its config.json says."""
    alike: Count
    """How many checkpoints of the model the recipe serves, this one included."""

    def __str__(self) -> str:
        chosen = f"{self.id} ({self.quantization}), chosen on the hub"
        if self.downloads is None:
            return f"{chosen}, which does not say how often it was downloaded"
        of = f", the most of {self.alike} that the recipe serves" if self.alike > 1 else ""
        return f"{chosen}: {self.downloads:,} downloads{of}"


class PooledRun(msgspec.Struct, frozen=True, kw_only=True):
    """One of the runs that a pooled run was made of (`loadgen.record.pool`)."""

    name: Text
    gpus: tuple[Text, ...] = ()
    """That its servers ran on."""
    node: Text = ""
    first: Count
    """Its first repeat in the pooled run."""
    last: Count
    sha256: Text
    """Of its receipt, or its manifest."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What manifest.json holds."""

    schema: int = SCHEMA
    simulated: bool
    config: SweepConfig
    """Without secrets."""
    given: dict[str, Any] | None = None
    """The options as they were given, without secrets; None: a run of an earlier version."""
    dataset: DatasetRecord
    protocol: ProtocolRecord
    recipes: dict[Text, Text] = {}
    """sha256 of each recipe that servers are launched from."""
    checkpoints: dict[Text, FoundCheckpoint] = {}
    """By target, those that were chosen on the hub."""
    kv_blocks: dict[Text, Count] = {}
    """By target, the blocks of each engine's KV cache where all hold as many tokens (`--same-kv`)."""
    body_changes: BodyChangesRecord = BodyChangesRecord()
    graded: bool
    weights: Weights | None = None
    client: ClientRecord
    host: HostRecord
    gpu: tuple[GpuInfo, ...] | None = None
    """The first server's; None: power was not measured."""
    power: PowerPlan = PowerPlan()
    clock_anchors: tuple[ClockAnchor, ...] = ()
    sessions: tuple[Session, ...] = ()
    steps: tuple[Step, ...] = ()
    """Of a search for B*, what it decided to measure, in order."""
    servers: tuple[ServerRecord, ...]
    failures: tuple[Failure, ...]
    attempts: tuple[Attempt, ...] = ()
    power_blocks: tuple[PowerBlock, ...] = ()
    pooled: tuple[PooledRun, ...] = ()
    """Of a run that was made of several, those."""

    @property
    def kept_servers(self) -> bool:
        """Whether it has repeats of servers that run already, so that no restart is between them."""
        return self.config.mode == "target" and (self.config.repeats > 1 or bool(self.config.find))

    @property
    def blocks(self) -> list[Block]:
        """Every block that was planned, measured or not; of a search those of its steps so far."""
        config = self.config
        if config.find:
            return step_blocks(config.targets, self.steps)
        return plan_blocks(config.targets, config.concurrency, config.repeats, config.arrival, config.shapes)


class ManifestFile:
    """The manifest of a running sweep; each change is written at once, atomically."""

    def __init__(self, run_dir: Path, manifest: Manifest) -> None:
        self.run_dir = run_dir
        self.manifest = manifest
        self.resumed = bool(manifest.sessions)
        """This process did not begin the run."""

    @property
    def session(self) -> int:
        """Which of the run's sessions this is, from 1; 0 before the first."""
        return len(self.manifest.sessions)

    def begin(self, client: ClientRecord, host: HostRecord, boot_id: str | None, anchor: ClockAnchor) -> None:
        """A session begins: the first, a resumed one, or one with a server that is launched again, whose counters and
        power begin again. Monotonic stamps of two sessions may be of two boots."""
        session = Session(session=self.session + 1, warnings=(), boot_id=boot_id, client=client, host=host)
        self.change(sessions=(*self.manifest.sessions, session))
        self.anchor(anchor)

    def anchor(self, anchor: ClockAnchor) -> None:
        """Adds an anchor of this session: one at its beginning, one at its end."""
        self.change(clock_anchors=(*self.manifest.clock_anchors, replace(anchor, session=self.session)))

    def warn(self, sentence: str) -> None:
        """What is different in this session from the ones before."""
        self._change_session(warnings=(*self.manifest.sessions[-1].warnings, sentence))

    def set_aside(self, cell: Cell, path: Path, why: str) -> None:
        """An unfinished cell is measured again; its first attempt's file is moved to `path`."""
        name = str(path.relative_to(self.run_dir))
        attempts = [attempt for attempt in self.manifest.attempts if attempt.file != name]
        attempts.append(Attempt(cell=cell.label, file=name, why=why, resumed_in_session=self.session))
        self.change(attempts=tuple(attempts))

    def add_step(self, step: Step) -> None:
        """A search decided what to measure next."""
        self.change(steps=(*self.manifest.steps, step))

    def add_server(self, server: ServerRecord) -> None:
        """A server came up."""
        self.change(servers=(*self.manifest.servers, server))

    def add_idle(self, rest: Rest) -> None:
        """Power (W) and sensors before this session's first server started."""
        self._change_session(idle_w=rest.power_w, idle_calibration=rest.calibration)
        if self.manifest.power.idle_w is None:
            power = replace(self.manifest.power, idle_w=rest.power_w, idle_calibration=rest.calibration)
            self.change(power=power)

    def add_power(self, block: PowerBlock) -> None:
        """The sensors of one server, before its first cell."""
        self.change(gpu=self.manifest.gpu or block.gpus, power_blocks=(*self.manifest.power_blocks, block))

    def end_power(self, samples_lost: int, pulls_failed: int) -> None:
        """What was lost of the latest server's samples."""
        *blocks, last = self.manifest.power_blocks
        last = replace(last, samples_lost=samples_lost, pulls_failed=pulls_failed)
        self.change(power_blocks=(*blocks, last))

    def add_failure(self, repeat: int, target: str, error: str) -> None:
        """A server failed and its cells of this repeat are missing."""
        failure = Failure(repeat=repeat, target=target, session=self.session, error=error)
        self.change(failures=(*self.manifest.failures, failure))

    def change(self, **fields: Any) -> None:
        """Other values of some of the manifest's fields."""
        self.manifest = replace(self.manifest, **fields)
        text = msgspec.json.format(msgspec.json.encode(self.manifest), indent=2)
        Folder(self.run_dir).write(FILE, text + b"\n", durable=True)

    def _change_session(self, **fields: Any) -> None:
        *sessions, last = self.manifest.sessions
        self.change(sessions=(*sessions, replace(last, **fields)))


def read_manifest(run_dir: Path) -> Manifest:
    """The manifest of a run. Raises UsageError if there is none, it is of another schema, or it lacks what every report
    needs."""
    path = run_dir / FILE
    try:
        content: dict[str, Any] = read_json(run_dir, FILE, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} is not a run directory: it has no manifest.json") from None
    except ValueError as error:
        raise UsageError(
            f"{path} is not a manifest ({error_text(error)}); name a run directory of loadgen sweep"
        ) from None
    Folder(run_dir).check()
    if content.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {content.get('schema')}, this version reads {SCHEMA}")
    try:
        manifest = msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not as loadgen sweep wrote it ({error_text(error)}); put that file back") from None
    config, sessions = manifest.config, max(1, len(manifest.sessions))
    check_size(str(path), len(config.targets), max(1, config.levels), config.repeats, sessions)
    check_steps(str(path), config.targets, manifest.steps)
    return manifest
