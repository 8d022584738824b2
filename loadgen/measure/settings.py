"""Settings of a run: its directory, its options read back from the manifest for `--resume`, and the user's consent.

A run directory may be somebody else's: what its manifest makes loadgen send, open, read or start is done only if this
user chose it on this machine before, gives it again, or confirms it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from platformdirs import user_state_path

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.search import ONLY_OF_A_GRID, ONLY_OF_A_SEARCH
from loadgen.options import METRICS_PORT, Acts, SweepOptions, complete, dashed, declared
from loadgen.record.cell import SweepConfig, TargetSpec
from loadgen.record.manifest import Manifest
from loadgen.secret import MASK, Mask, visible
from loadgen.webserver import is_on_loopback


@contextlib.contextmanager
def new_run_dir(config: SweepConfig, *, keep: bool = True) -> Iterator[Path]:
    """The folder that `--out` names, or a new one under `runs`; a sweep that is refused within removes what was made,
    as does one that is not to `keep` it.

    Raises UsageError if the folder holds something already or cannot be written.
    """
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.model).name) if config.model else config.mode
    base = Path(config.out or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{model}")
    numbered = (base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000)))
    run_dir = base if config.out else next(path for path in numbered if not path.exists())
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UsageError(f"--out {run_dir}: exists already and is not empty; name a new folder")
    missing = list(itertools.takewhile(lambda path: not path.exists(), (run_dir, *run_dir.parents)))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise UsageError(f"--out {run_dir}: cannot be written ({error.strerror}); name a writable folder") from None
    try:
        yield run_dir
    except (UsageError, KeyboardInterrupt):
        keep = False
        raise
    finally:
        for folder in missing if not keep else ():
            with contextlib.suppress(OSError):
                folder.rmdir()


OPTIONS = declared(SweepOptions)
ACTS = {"mode", *(option.field for option in OPTIONS.values() if isinstance(option, Acts))}
"""Fields of SweepConfig that make loadgen send, open, read or start something."""
Confirm = Callable[[tuple[str, ...]], bool]
"""Shows the sentences and asks whether to continue."""


def resumed_config(run_dir: Path, manifest: Manifest, given: Mapping[str, Any]) -> SweepConfig:
    """The run's config, with those of the `given` options that may differ.

    `given` are options of `configure`. Raises UsageError, naming the option and both values, for the first that is not
    what the run was begun with; and if this version of loadgen reads the run's settings differently.
    """
    complete(SweepOptions, given)
    free = {name: value for name, value in given.items() if OPTIONS[name].free}
    begun = manifest.config
    begun = msgspec.structs.replace(begun, extra_body=_unmasked(run_dir, begun.extra_body, given))
    known = options_of(begun)
    try:
        options = _as_given(manifest.given, known) | free
        config = msgspec.structs.replace(configure(**options), out=begun.out)
    except (msgspec.ValidationError, KeyError):
        config = None
    if config is None or config != msgspec.structs.replace(
        begun, **{OPTIONS[name].field: getattr(config, OPTIONS[name].field) for name in free}
    ):
        raise UsageError(
            f"{run_dir} was begun by loadgen {manifest.client.loadgen}, and this version reads its settings "
            "differently; resume it with the version that began it"
        )
    if given.get("out") is not None and Path(given["out"]).resolve() != run_dir.resolve():
        raise UsageError(f"--out {given['out']}: --resume continues in {run_dir}; omit --out")
    for name, value in given.items():
        if name != "out" and name not in free and not _agrees(config, options, name, value):
            raise UsageError(
                f"--{dashed(name)} {_shown(value)}: {run_dir} was begun {_begun(known, name)}; omit the option, or "
                "start a new run"
            )
    return config


_OF_A_LOAD = (
    "concurrency", "arrival", "rate_scale", "duration", "requests", "repeats", "find", "within", "range",
    "most_minutes", "workers", "out",
)  # fmt: skip


def options_again(
    run_dir: Path, manifest: Manifest, given: Mapping[str, Any], *, trusted: bool = False
) -> dict[str, Any]:
    """The options of a new run with another load on the servers of this one, which are started as they were.

    `given`: an `extra_body` that holds a secret. Raises UsageError as `require_consent`, and where that is missing.
    """
    require_consent(run_dir, manifest, None, trusted=trusted)
    config = manifest.config
    known = options_of(msgspec.structs.replace(config, extra_body=_unmasked(run_dir, config.extra_body, given)))
    options = {name: value for name, value in _as_given(manifest.given, known).items() if name not in _OF_A_LOAD}
    if config.mode == "serve":
        options["max_num_seqs"] = config.max_num_seqs
        chosen = {name: found.id for name, found in manifest.checkpoints.items()}
        options["serve"] = [
            f"{_label(spec)}={checkpoint}" if (checkpoint := spec.checkpoint or chosen.get(spec.name)) else _label(spec)
            for spec in config.targets
        ]
    return options


def options_of(config: SweepConfig) -> dict[str, Any]:
    """The options with which `configure` makes this very config, but for `out`."""
    special = {"targets", "thinking", "out"}
    options = {name: getattr(config, option.field) for name, option in OPTIONS.items() if option.field not in special}
    del options["rate_scale"]  # it is in the rates of the arrival
    options["arrival"] = config.asked_arrival
    options["range"] = f"{config.concurrency[0]}:{config.concurrency[-1]}"
    options["most_minutes"] = None if config.most_s is None else config.most_s / 60
    for name in ONLY_OF_A_GRID if config.find else ONLY_OF_A_SEARCH:
        del options[name]
    options["extra_body"] = config.extra_body or None
    if config.mode == "target":
        options["targets"] = [f"{_label(spec)}={spec.url}" for spec in config.targets]
        options["metrics_url"] = [f"{spec.name}={url}" for spec in config.targets for url in spec.metrics_urls]
    elif config.mode == "compose":
        options["serve"] = [spec.service for spec in config.targets]
        del options["device"]
    elif config.mode == "serve" or config.model is not None:
        options["serve"] = [_label(spec) + (f"={spec.checkpoint}" * bool(spec.checkpoint)) for spec in config.targets]
        shared = {spec.name: spec.tensor_parallel for spec in config.targets if spec.tensor_parallel is not None}
        options["tensor_parallel"] = shared or None
    if config.mode != "serve":
        del options["max_num_seqs"]
    if config.thinking is not None:
        options |= {"thinking": "on" if config.thinking.on else "off", "thinking_budget": config.thinking.budget}
    return options


def as_stored(given: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """The options that were given, as they were given, for the manifest: without secrets."""
    return {name: mask.content(msgspec.to_builtins(value, enc_hook=str)) for name, value in given.items()}


def _as_given(stored: Mapping[str, Any] | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the run was begun with them; `known` has those whose secrets are masked, and those of runs of
    earlier versions. Raises KeyError or ValidationError where the manifest holds something else."""
    if stored is None:
        return dict(known)
    options = {}
    for name, value in stored.items():
        masked = name == "extra_body" or MASK in msgspec.json.encode(value).decode()
        options[name] = known.get(name) if masked else msgspec.convert(value, OPTIONS[name].stored)
    options.pop("out", None)
    if options.get("compose"):  # a relative path, and what the project's variables said
        options |= {name: known[name] for name in ("compose", "serve", "concurrency", "range") if name in known}
    return options


def _unmasked(run_dir: Path, stored: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The `--extra-body` itself: a manifest has it without its secrets."""
    if MASK not in msgspec.json.encode(stored).decode():
        return stored
    again = configure(extra_body=given.get("extra_body")).extra_body
    if Mask().content(again) == stored:
        return again
    raise UsageError(
        f"{run_dir} was begun with an --extra-body that holds a secret, and secrets are not stored; give the same "
        "--extra-body again"
    )


def _label(spec: TargetSpec) -> str:
    return spec.name if spec.name == spec.precision else f"{spec.name}:{spec.precision}"


def _agrees(config: SweepConfig, options: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether the run would be the same had it been begun with this value."""
    where = name in ("targets", "serve")
    if where and name not in options:
        return not value
    left_out = {OPTIONS[name].rival, *(("reference", "metrics_url") if where else ())}
    found = configure(**{option: known for option, known in options.items() if option not in left_out} | {name: value})
    if where:
        plain = [[msgspec.structs.replace(spec, metrics_urls=()) for spec in one.targets] for one in (found, config)]
        return plain[0] == plain[1]
    return msgspec.structs.replace(found, out=config.out) == config


def _begun(known: Mapping[str, Any], name: str) -> str:
    if name in ("targets", "serve") and not {"targets", "serve"} & set(known):
        return "with simulated servers"
    named = name if known.get(name) is not None else OPTIONS[name].rival or name
    if known.get(named) is None:
        return f"without --{dashed(name)}"
    return f"with --{dashed(named)} {_shown(known[named])}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and not all(isinstance(part, str) for part in value.values()):
        return msgspec.json.encode(Mask().content(value)).decode()
    if isinstance(value, Mapping):
        value = [f"{name}={url}" for name, url in value.items()]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class Act(msgspec.Struct, frozen=True):
    """One thing that the manifest asks for."""

    option: str
    """The option of `configure` that names it."""
    sentence: str
    chosen: bool = True
    """It comes from the settings; else from what earlier sessions wrote, which changes while a run is measured."""


def acts_of(config: SweepConfig, manifest: Manifest | None) -> list[Act]:
    """What this manifest asks for that may harm; empty where it only measures simulated or loopback servers."""
    acts = []
    for spec in config.targets:
        if spec.url is not None and not is_on_loopback(spec.url):
            acts.append(Act("targets", f"send requests to {spec.url}"))
        acts += [Act("metrics_url", f"read {url}") for url in spec.metrics_urls if not is_on_loopback(url)]
        if spec.checkpoint is not None:
            acts.append(Act("serve", f"load the checkpoint {spec.checkpoint}"))
    for found in manifest.checkpoints.values() if manifest is not None else ():
        acts.append(Act("serve", f"load the checkpoint {found.id}"))
    if config.mode == "serve":
        acts.append(Act("model", f"load the model {config.model}"))
    if config.compose is not None:
        services = ", ".join(spec.service or "" for spec in config.targets)
        acts.append(Act("compose", f"start the containers {services} of the Docker Compose project {config.compose}"))
    if config.vllm is not None:
        acts.append(Act("vllm", f"run the program {config.vllm}"))
    for name in ("data_file", "platinum_file", "shots_file"):
        if (path := getattr(config, name)) is not None:
            acts.append(Act(name, f"read the file {path} and send what it holds to the servers"))
    if config.extra_body:
        body = msgspec.json.encode(config.extra_body).decode()
        acts.append(Act("extra_body", f"add {body} to every request"))
    if config.reasoning_parser is not None:
        acts.append(Act("reasoning_parser", f"start vLLM with --reasoning-parser {config.reasoning_parser}"))
    if config.vllm_args:
        acts.append(Act("vllm_args", f"start vLLM with {shlex.join(config.vllm_args)}"))
    if config.api_key_env is not None:
        acts.append(Act("api_key_env", f"send the value of the variable {config.api_key_env} to the servers as a key"))
    if config.power.startswith("exporter=") and not is_on_loopback(url := config.power.removeprefix("exporter=")):
        acts.append(Act("power", f"read power from {url}"))
    if config.metrics_port is not None:
        host = config.metrics_host
        if config.metrics_port != METRICS_PORT or not is_on_loopback(f"http://{f'[{host}]' if ':' in host else host}"):
            acts.append(Act("metrics_port", f"listen on {host}, port {config.metrics_port}"))
    if config.on_ray:
        acts.append(Act("workers", f"start {config.client_processes} client processes on a Ray cluster"))
    processes = max([config.client_processes or 1, *(manifest.client.workers.values() if manifest is not None else ())])
    if not config.on_ray and processes > (os.cpu_count() or 1):
        chosen = processes == config.workers
        acts.append(Act("workers", f"start {processes} client processes on {os.cpu_count()} CPUs", chosen))
    return acts


def require_consent(
    run_dir: Path,
    manifest: Manifest,
    given: Mapping[str, Any] | None,
    *,
    trusted: bool = False,
    confirm: Confirm | None = None,
) -> None:
    """Returns if this user wants what the run's manifest asks for; raises UsageError if that is not known.

    It is known if the acts are those of a run that this user began or confirmed on this machine, if each is among the
    `given` options (their agreement is checked elsewhere; None: none can be given), if `trusted`, or if `confirm` says
    so. A program inside the run directory is always refused.
    """
    config = manifest.config
    _refuse_program_of(run_dir, config)
    acts = acts_of(config, manifest)
    left = [act for act in acts if not _is_named(act, given or {})]
    if left and _marker(manifest).exists():
        left = [act for act in left if not act.chosen]
    if not left or trusted:
        return
    sentences = tuple(visible(act.sentence).replace("\n", "\\n") for act in left)
    if confirm is not None:
        if not confirm(sentences):
            raise UsageError(f"{run_dir} is not resumed: what its manifest asks for was not confirmed")
        remember(manifest)
        return
    ports = "metrics-port and --metrics-host"
    again = dict.fromkeys(f"--{ports if act.option == 'metrics_port' else dashed(act.option)}" for act in left)
    by_name = "" if given is None else f"give it again ({', '.join(again)}), or "
    raise UsageError(
        f"{run_dir} was not begun by this user on this machine, and its manifest asks loadgen to "
        f"{'; to '.join(sentences)}. If you want that, {by_name}give --trust-manifest"
    )


def remember(manifest: Manifest) -> None:
    """This user chose what this manifest does: a run with the same acts is resumed without a question.

    It is as it is written, without secrets. Where the state folder cannot be written, `--resume` asks.
    """
    if not acts_of(manifest.config, None):
        return
    marker = _marker(manifest)
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker.touch(mode=0o600)


def _marker(manifest: Manifest) -> Path:
    """A file outside every run, named after the sha256 of all that acts, harmless parts included: a key that was meant
    for one server is not sent to another. Paths count as the files they mean from this folder."""
    config = manifest.config
    fields = msgspec.to_builtins(config)
    acting = {name: fields[name] for name in ACTS}
    acting |= {f"checkpoint of {name}": found.id for name, found in manifest.checkpoints.items()}
    paths = [config.model, config.vllm, config.compose, config.data_file, config.platinum_file, config.shots_file]
    paths += [spec.checkpoint for spec in config.targets]
    meant = [os.path.abspath(path) if path and Path(path).expanduser().exists() else None for path in paths]  # noqa: PTH100
    digest = hashlib.sha256(msgspec.json.encode([acting, meant], order="deterministic")).hexdigest()
    return user_state_path("loadgen") / "chosen" / digest


def _is_named(act: Act, given: Mapping[str, Any]) -> bool:
    if act.option == "metrics_port":
        named = {"metrics_port", "metrics_host"} <= set(given)
        return named or ("metrics_port" in given and given["metrics_port"] is None)
    in_dataset = act.option == "data_file" and ":" in (given.get("dataset") or "")
    return given.get(act.option) is not None or in_dataset


def _refuse_program_of(run_dir: Path, config: SweepConfig) -> None:
    if config.compose is not None and run_dir.resolve() in (folder := Path(config.compose).resolve(), *folder.parents):
        raise UsageError(
            f"{run_dir} names the Docker Compose project {visible(config.compose)} inside itself, and nothing inside a "
            "run directory is started; start a new run with a project of your own"
        )
    if config.vllm is None:
        return
    named = os.path.expanduser(config.vllm)  # noqa: PTH111
    program = Path(shutil.which(named) or named).absolute()
    run = run_dir.resolve()
    if run in program.resolve().parents or run in program.parent.resolve().parents or run == program.parent.resolve():
        raise UsageError(
            f"{run_dir} names the program {visible(config.vllm)} inside itself as vLLM, and nothing inside a run "
            "directory is started; start a new run with a vLLM that is installed"
        )
