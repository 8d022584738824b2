"""Where the servers of a sweep come from: running already, launched from recipes, or simulated."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from loadgen import httpget
from loadgen.errors import ServerError, UsageError
from loadgen.load.openloop import CLOSED
from loadgen.load.sse import server_message
from loadgen.measure.config import SIMULATED, api_key
from loadgen.measure.kvcache import kv_args
from loadgen.measure.observer import Observer
from loadgen.measure.power import gpu_variables, gpus_needed, serving_gpus
from loadgen.measure.preflight import NotReady, Patience
from loadgen.power.sample import GpuInfo
from loadgen.record.cell import SweepConfig, TargetSpec
from loadgen.record.manifest import FoundCheckpoint, ServerRecord
from loadgen.secret import Mask, error_text
from loadgen.serving.checkpoint import token_warning
from loadgen.serving.compose import variable
from loadgen.serving.facts import ServedModel, Target, given_kv_cache_dtype, kv_cache, read_models, read_version
from loadgen.serving.hub import Derivatives, is_hub_id
from loadgen.serving.launch import API_KEY, Launch, confirm_checkpoint, find_vllm, option, plan_launch, plan_simulated
from loadgen.serving.metrics import UNVERIFIED, MetricsProbe, metrics_of
from loadgen.serving.process import ServerProcess, free_port, port_is_free
from loadgen.serving.project import Project
from loadgen.serving.quantize import quantize, require_environment
from loadgen.serving.quantize_plan import QuantizePlan, plan_quantize
from loadgen.serving.recipe import Device, NoCheckpoint, Recipe, load_recipe, load_recipes
from loadgen.serving.requirements import require_device, require_packages
from loadgen.workload.dataset import data_path
from loadgen.workload.protocol import MAX_TOKENS, PROMPT_ROOM_TOKENS

NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls an answer without TLS."""
COST_FILE = "LOADGEN_COST_FILE"
"""The variable that names the cost file (`loadgen simulate --cost-file`) of a machine's simulated servers."""
MOST_NAMED = 10
"""Models that a sentence lists."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is up: its target, what the manifest says about it, and a way to ask whether it has died."""

    target: Target
    record: ServerRecord
    """Without its repeat and session."""
    died: Callable[[], str | None]


def _record(target: Target, **facts: Any) -> ServerRecord:
    return ServerRecord(repeat=0, **{**msgspec.structs.asdict(target), **facts})


class Source(Protocol):
    """Brings up one target's server for a block of cells."""

    simulated: bool
    running: Sequence[Server]
    """Those that are up before the sweep begins, once `check` has been called."""
    found: dict[str, FoundCheckpoint]
    """By target, checkpoints that `check`, or an earlier session, chose on the hub."""
    launches: Mapping[str, Launch]
    """By target, what will be started on this machine's GPUs or CPU, once `check` has been called."""
    kv_blocks: Mapping[str, int]
    """By target, the blocks of its KV cache; empty: vLLM chooses."""

    def check(self, patience: Patience) -> None:
        """Raises UsageError for what can be known to fail before anything is created or started."""
        ...

    def make_missing(self, patience: Patience) -> None:
        """Quantizes the model for targets without a checkpoint, if the user asked for it."""
        ...

    def serve(
        self, spec: TargetSpec, repeat: int, run_dir: Path, observer: Observer
    ) -> contextlib.AbstractContextManager[Server]: ...


def source_of(config: SweepConfig, found: Mapping[str, FoundCheckpoint] | None = None) -> Source:
    """The source that the sweep's mode names; `found` are checkpoints that an earlier session chose."""
    if config.mode == "target":
        return _Running(config)
    if config.mode == "serve":
        return _Launched(config, found or {})
    if config.mode == "compose":
        return _Composed(config)
    return _Simulated(config)


class _Running:
    """Servers that run already: each is asked once what it is, before the run begins."""

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._servers: dict[str, Server] = {}
        self._closed: dict[str, str] = {}
        """Why a target's /metrics could not be read, until the user was told."""
        self.running: Sequence[Server] = ()
        self.found: dict[str, FoundCheckpoint] = {}
        self.launches: Mapping[str, Launch] = {}
        self.kv_blocks: Mapping[str, int] = {}
        self.simulated = False

    def check(self, patience: Patience) -> None:
        for spec in self._config.targets:
            self._servers[spec.name] = patience.wait(partial(self._greet, spec))
        self.running = tuple(self._servers.values())
        self.simulated = any(server.target.simulated for server in self._servers.values())

    def make_missing(self, patience: Patience) -> None:
        pass

    @contextlib.contextmanager
    def serve(self, spec: TargetSpec, repeat: int, run_dir: Path, observer: Observer) -> Iterator[Server]:
        if failure := self._closed.pop(spec.name, None):
            observer.warn(f"{spec.name}: {UNVERIFIED}: {failure}")
        yield self._servers[spec.name]

    def _greet(self, spec: TargetSpec) -> Server:
        assert spec.url is not None
        listed = self._ask(spec, "/v1/models", optional=self._config.model is not None)
        model, note = self._model(spec, listed)
        version = None
        with contextlib.suppress(UsageError):
            version = read_version(self._ask(spec, "/version").body)
        return self._server(spec, model, listed.simulated, version, note)

    def _model(self, spec: TargetSpec, listed: _Reply) -> tuple[str, str | None]:
        """The model to ask for, and what is odd about the server's list, if `--model` names one all the same."""
        models, asked, where = read_models(listed.body), self._config.model, f"target {spec.name}: {spec.url}"
        if listed.status != 200:
            return asked or "", f"{where} has no model list at /v1/models ({listed.status}); requests name {asked}"
        if models is None:
            if asked is not None:
                return asked, f"{where}/v1/models is not a model list; requests name {asked}"
            raise UsageError(
                f"{where}/v1/models is not a model list; is this an OpenAI-compatible server? If so, give --model"
            )
        ids = [served.id for served in models]
        if asked is not None:
            if asked in ids:
                return asked, None
            named = ", ".join(ids[:MOST_NAMED]) or "no model"
            if not ids or any("*" in name for name in ids) or any(_is_alike(asked, name) for name in ids):
                return asked, f"{where} lists {named} at /v1/models; requests name {asked}"
            raise UsageError(f"{where} serves {named}, not {asked}; name a model that it lists")
        usable = [name for name in ids if "*" not in name]
        if len(ids) == 1 and usable:
            return ids[0], None
        if not usable:
            raise UsageError(f"{where} serves {', '.join(ids) or 'no model'}; name a model with --model")
        raise UsageError(f"{where} serves several models: {_listed(models)}; choose one with --model")

    def _server(self, spec: TargetSpec, model: str, simulated: bool, version: str | None, note: str | None) -> Server:
        metrics = b""
        with contextlib.suppress(UsageError):
            metrics = self._ask(spec, "/metrics").body
        exposition = metrics.decode("utf-8", "replace")
        words = (line.split() for line in exposition.splitlines())
        names = sorted({line[2] for line in words if line[:2] == ["#", "TYPE"] and len(line) > 2})
        assert spec.url is not None
        target = Target(
            name=spec.name,
            precision=spec.precision,
            url=spec.url,
            model=model,
            metrics_urls=spec.metrics_urls,
            simulated=simulated,
        )
        probe = MetricsProbe(metrics_of(target, api_key(self._config)))
        if probe.scrape() is None and probe.failure is not None:
            self._closed[spec.name] = probe.failure
        probe.close()
        record = _record(
            target, version=version, model_note=note, metric_names=tuple(names),
            kv_cache_dtype=given_kv_cache_dtype(exposition), kv_cache=kv_cache(exposition),
        )  # fmt: skip
        return Server(target=target, record=record, died=lambda: None)

    def _ask(self, spec: TargetSpec, path: str, *, optional: bool = False) -> _Reply:
        """The reply to a GET; an `optional` one may have any status, but that of a server that is not ready."""
        assert spec.url is not None
        mask, where = Mask(api_key(self._config)), f"target {spec.name}: {spec.url}"
        try:
            answer = httpget.get(f"{spec.url}{path}", bearer=api_key(self._config))
        except ssl.SSLCertVerificationError as error:
            reason = f"does not answer ({error_text(error)})"
            remedy = "name the file with the certificate of who signed it in SSL_CERT_FILE"
        except httpget.FAILURES as error:
            if isinstance(error, ssl.SSLError) and error.reason in NO_TLS:
                plain = spec.url.replace("https://", "http://", 1)
                raise UsageError(f"{where} does not speak TLS; write {plain}") from None
            if urlsplit(spec.url).port is None:
                where += " (no port in the URL; vLLM's is 8000)"
            raise NotReady(where, mask(error_text(error)), loading=False) from None
        else:
            body, simulated = answer.body, answer.headers.get("X-Loadgen-Simulated") is not None
            if answer.status == 503 or (answer.status >= 500 and b"loading" in body.lower()):
                raise NotReady(where, mask(server_message(body)), loading=True)
            if optional or answer.status < 300:
                return _Reply(answer.status, body, simulated)
            reason = f"answers {answer.status} {answer.reason} at {path}"
            remedy = "is this a vLLM server? If it has no model list, name the model with --model"
            if answer.status in (401, 403):
                remedy = "give the key with --api-key-env VAR"
            if answer.status < 400 and (location := answer.headers.get("Location")):
                reason += f", which points to {location}"
                remedy = "give the address that answers itself"
        raise UsageError(mask(f"{where} {reason}; {remedy}"))


class _Reply(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    simulated: bool


def _is_alike(asked: str, listed: str) -> bool:
    """Whether two names may be one model's: the same but for case, a provider before it or a tag behind it."""

    def core(name: str) -> str:
        return name.lower().rpartition("/")[2].partition(":")[0]

    return core(asked) == core(listed)


def _listed(models: Sequence[ServedModel]) -> str:
    named = [m.id if m.parent is None else f"{m.id} (an adapter of {m.parent})" for m in models]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


class _Processes:
    """Servers that loadgen starts one at a time, a fresh one for every block."""

    simulated = False
    running: Sequence[Server] = ()

    def __init__(self, config: SweepConfig, found: Mapping[str, FoundCheckpoint] | None = None) -> None:
        self._config = config
        self.found = dict(found or {})
        self.launches: Mapping[str, Launch] = {}
        self.kv_blocks: Mapping[str, int] = {}

    def plan(self, spec: TargetSpec, port: int) -> Launch:
        raise NotImplementedError

    def check(self, patience: Patience) -> None:
        for spec in self._config.targets:
            self.plan(spec, free_port())

    def make_missing(self, patience: Patience) -> None:
        pass

    @contextlib.contextmanager
    def serve(self, spec: TargetSpec, repeat: int, run_dir: Path, observer: Observer) -> Iterator[Server]:
        launch = self.plan(spec, free_port())
        launch = msgspec.structs.replace(launch, name=spec.name, argv=(*launch.argv, *kv_args(self.kv_blocks, spec)))
        observer.server_starts(spec.name, launch.argv)
        log = run_dir / "servers" / f"{spec.name}-r{repeat}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with ServerProcess(launch, log) as process:
            process.wait_ready(self._config.start_timeout_s)
            process.verify()
            facts = process.facts()
            observer.server_ready(spec.name, f"vLLM {facts.version}" + "".join(f", {k}" for k in facts.kernels or ()))
            if facts.quantization is not None:
                observer.note(f"{spec.name}: {facts.quantization}, KV cache {facts.kv_cache_dtype}")
            for warning in (*((facts.note,) if facts.note is not None else ()), *facts.remarks):
                observer.warn(f"{spec.name}: {warning}")

            def died() -> str | None:
                code = process.poll()
                return None if code is None else f"the server died with exit status {code}; see {log}"

            if facts.model is None:
                raise ServerError(f"{spec.name}: the server names no model at /v1/models; see {log}")
            target = Target(
                name=spec.name,
                precision=spec.precision,
                url=launch.url,
                model=facts.model,
                simulated=launch.simulated,
            )
            yield Server(target=target, record=_record(target, **msgspec.structs.asdict(facts)), died=died)
            for warning in process.stop():
                observer.warn(f"{spec.name}: {warning}")


class _Launched(_Processes):
    _gpus: tuple[GpuInfo, ...] = ()
    """Those that servers may use; empty where they are not known."""
    _missing: QuantizePlan | None = None

    def check(self, patience: Patience) -> None:
        if warning := token_warning():
            patience.warn(warning)
        for spec in self._config.targets:
            require_device(load_recipe(spec.precision), "cpu" if self._config.device == "cpu" else "cuda")
        missing = self._find(patience)
        if missing:
            require_environment()
            self._missing = plan_quantize({"model": self._config.model, "to": list(dict.fromkeys(missing.values()))})
            for name, format in missing.items():
                place = self._missing.places[format]
                patience.note(f"{name} serves {place}, which is made before the first server ({self._missing.needs})")
        self._launch([spec for spec in self._config.targets if spec.name not in missing])

    def make_missing(self, patience: Patience) -> None:
        if self._missing is not None:
            quantize(self._missing, patience.note)
            self._launch(self._config.targets)

    def _launch(self, specs: Sequence[TargetSpec]) -> None:
        self.launches = {spec.name: self.plan(spec, free_port()) for spec in specs}
        if self._config.device == "cuda":
            self._gpus = serving_gpus(self._config.gpus, gpus_needed(self.launches))
        for launch in self.launches.values():
            require_packages(load_recipe(launch.precision), launch.argv[0])
            confirm_checkpoint(launch)

    def _find(self, patience: Patience) -> dict[str, str]:
        """Chooses on the hub what neither the user nor a recipe names. Returns the formats that are to be made, by
        target."""
        missing = {}
        model = self._config.model or ""
        listed = Derivatives(model)
        for spec in self._config.targets:
            recipe = load_recipe(spec.precision)
            if spec.checkpoint is None and spec.name not in self.found:
                try:
                    self._find_one(spec.name, recipe, listed, patience)
                except NoCheckpoint as error:
                    if not self._config.quantize_missing:
                        raise
                    if not recipe.made_as:
                        made = ", ".join(name for name, other in load_recipes().items() if other.made_as)
                        raise UsageError(f"{error}; --quantize-missing makes one only for {made}") from None
                    device: Device = "cpu" if self._config.device == "cpu" else "cuda"
                    require_packages(recipe, find_vllm(device, self._config.vllm))
                    missing[spec.name] = recipe.made_as[0]
        return missing

    def _find_one(self, name: str, recipe: Recipe, listed: Derivatives, patience: Patience) -> None:
        try:
            recipe.checkpoint_for(listed.model)
        except NoCheckpoint:
            if not is_hub_id(listed.model):
                raise
            self.found[name] = listed.choose(recipe)
            patience.note(f"{name} serves {self.found[name]}")

    def plan(self, spec: TargetSpec, port: int) -> Launch:
        config, found = self._config, self.found.get(spec.name)
        assert config.model is not None
        reference = next(spec for spec in config.targets if spec.name == config.reference)
        launch = plan_launch(
            load_recipe(spec.precision),
            model=config.model,
            port=port,
            device="cpu" if config.device == "cpu" else "cuda",
            max_num_seqs=config.max_num_seqs,
            dtype=load_recipe(reference.precision).dtype,
            checkpoint=spec.checkpoint or (found.id if found else None),
            vllm=find_vllm("cpu" if config.device == "cpu" else "cuda", config.vllm),
            prefix_cache=config.prefix_cache,
            tensor_parallel=spec.tensor_parallel,
            max_model_len=config.max_model_len or _room_tokens(config),
            extra_args=[
                *(["--reasoning-parser", config.reasoning_parser] if config.reasoning_parser else []),
                *config.vllm_args,
            ],
        )
        # The key that requests carry is the one that the server asks for.
        key = {API_KEY: api_key(config)} if config.api_key_env and api_key(config) else {}
        return msgspec.structs.replace(launch, env={**launch.env, **gpu_variables(config, self._gpus, launch), **key})


def _room_tokens(config: SweepConfig) -> int | None:
    """The most tokens of prompt and answer with room for reasoning before the answer; None: no more than usual."""
    if config.thinking is None or not config.thinking.on:
        return None
    return (config.max_tokens or MAX_TOKENS) + PROMPT_ROOM_TOKENS


class _Simulated(_Processes):
    simulated = True

    def plan(self, spec: TargetSpec, port: int) -> Launch:
        named = Path(self._config.data_file) if self._config.data_file else None
        data_file = data_path(self._config.dataset, named)
        room = self._config.max_model_len or _room_tokens(self._config)
        preset, costs = (self._config.model or "").removeprefix(SIMULATED), os.environ.get(COST_FILE)
        return plan_simulated(
            spec.precision,
            port=port,
            seed=self._config.seed,
            data_file=data_file,
            extra_args=[
                *(["--max-model-len", str(room)] if room is not None else []),
                *(["--model", preset] if preset else []),
                *(["--cost-file", costs] if costs else []),
            ],
        )


class _Composed(_Processes):
    """Services of a Docker Compose project, in fresh containers."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert config.compose is not None
        self._project = Project.found(config.compose)
        self._resolved: dict[str, Any] = {}
        self.simulated = all(self._project.services[spec.service or ""].simulated for spec in config.targets)

    def check(self, patience: Patience) -> None:
        project, config = self._project, self._config
        self._resolved = project.resolved([spec.service or "" for spec in config.targets])
        if running := project.running():
            raise UsageError(
                f"--compose: {', '.join(running)} of {project.folder} already runs, and only one server may be up at a "
                f"time; stop it: {project.command} stop {' '.join(running)}"
            )
        for spec in config.targets:
            launch = self.plan(spec, 0)
            largest = option(launch.argv, "--max-num-seqs")
            if largest is not None and int(largest) < max(config.concurrency) and config.arrival == CLOSED:
                raise UsageError(
                    f"--concurrency {max(config.concurrency)}: the service {spec.service} is started with "
                    f"--max-num-seqs {largest}; set MAX_NUM_SEQS={max(config.concurrency)} in {project.folder}/.env"
                )
            if not port_is_free(launch.host, launch.port):
                remedy = (
                    f"stop what is listening on it, or set {variable(spec.service or '')}_PORT in {project.folder}/.env"
                )
                raise UsageError(f"--compose: port {launch.port} of the service {spec.service} is in use; {remedy}")
            if not launch.simulated and project.asks_for_key() and not config.api_key_env:
                raise UsageError(
                    "--compose: the project's servers ask for the key in API_KEY_FILE; give loadgen the same: "
                    'LOADGEN_API_KEY="$(cat "$API_KEY_FILE")" loadgen sweep ... --api-key-env LOADGEN_API_KEY'
                )
            if not launch.simulated:
                self.launches = {**self.launches, spec.name: launch}

    def plan(self, spec: TargetSpec, port: int) -> Launch:
        return self._project.launch(spec, self._resolved, api_key(self._config) if self._config.api_key_env else None)
