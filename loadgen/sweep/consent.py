"""Consent: what a run's manifest makes this machine do, besides measuring, is shown before `--resume` does it.

A run directory may come from somebody else. Its manifest decides what is measured. What it makes loadgen send, open,
read or start is done only if this user chose it on this machine before, names it again, or confirms it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from platformdirs import user_state_path

from loadgen.address import is_on_loopback
from loadgen.errors import UsageError
from loadgen.sweep.config import SweepConfig
from loadgen.visible import visible

ACTS = (
    "mode", "targets", "model", "vllm", "data_file", "platinum_file", "shots_file", "reasoning_parser", "workers",
    "extra_body", "api_key_env", "power", "metrics_port", "metrics_host",
)  # fmt: skip
"""Fields of SweepConfig that make loadgen send, open, read or start something."""
MEASURED = (
    "device", "max_num_seqs", "concurrency", "dataset", "protocol", "answer_regex", "limit", "duration_s", "requests",
    "repeats", "warmup_s", "max_tokens", "fixed_length", "arrival", "slo", "api", "thinking", "prefix_cache",
    "transport", "reference", "out", "seed", "timeout_s", "start_timeout_s", "start_sd", "wait_ready_s", "drain_s",
    "max_error_rate", "gpus", "exclusive", "tdp_w", "carbon_kg_per_kwh",
)  # fmt: skip
"""Fields that say only what is measured, how and for how long. `answer_regex` is tried with a time limit first; `out`
is not used when a run is resumed."""
METRICS_PORT = 9402
_OPTIONS = {"targets": "--target", "metrics_port": "--metrics-port and --metrics-host"}
Confirm = Callable[[tuple[str, ...]], bool]
"""Shows the sentences and asks whether to go on."""


class Act(msgspec.Struct, frozen=True):
    """One thing that the manifest asks for."""

    option: str
    """The argument of `configure` that names it."""
    sentence: str
    chosen: bool = True
    """It comes from the settings; else from what earlier sessions wrote, which changes while a run is measured."""


def acts_of(config: SweepConfig, manifest: Mapping[str, Any]) -> list[Act]:
    """What this manifest asks for that may harm; empty where it only measures simulated or loopback servers."""
    acts = []
    for spec in config.targets:
        if spec.url is not None and not is_on_loopback(spec.url):
            acts.append(Act("targets", f"send requests to {spec.url}"))
        acts += [Act("metrics_url", f"read {url}") for url in spec.metrics_urls if not is_on_loopback(url)]
        if spec.checkpoint is not None:
            acts.append(Act("serve", f"load the checkpoint {spec.checkpoint}"))
    if config.mode == "serve":
        acts.append(Act("model", f"load the model {config.model}"))
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
    if config.api_key_env is not None:
        acts.append(Act("api_key_env", f"send the value of the variable {config.api_key_env} to the servers as a key"))
    if config.power.startswith("exporter=") and not is_on_loopback(url := config.power.removeprefix("exporter=")):
        acts.append(Act("power", f"read power from {url}"))
    if config.metrics_port is not None:
        host = config.metrics_host
        if config.metrics_port != METRICS_PORT or not is_on_loopback(f"http://{f'[{host}]' if ':' in host else host}"):
            acts.append(Act("metrics_port", f"listen on {host}, port {config.metrics_port}"))
    processes = max([config.workers or 1, *_known_workers(manifest)])
    if processes > (os.cpu_count() or 1):
        chosen = processes == config.workers
        acts.append(Act("workers", f"start {processes} client processes on {os.cpu_count()} CPUs", chosen))
    return acts


def require_consent(
    run_dir: Path,
    manifest: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    trusted: bool = False,
    confirm: Confirm | None = None,
) -> None:
    """Returns if this user wants what the run's manifest asks for; raises UsageError if that is not known.

    It is known if the acts are those of a run that this user began or confirmed on this machine, if each is among the
    `given` options (their agreement is checked elsewhere), if `trusted`, or if `confirm` says so. A program inside the
    run directory is always refused.
    """
    try:
        config = msgspec.convert(manifest["config"], SweepConfig)
    except (msgspec.ValidationError, KeyError):
        return  # `resumed_config` says why it cannot be resumed
    _refuse_program_of(run_dir, config)
    acts = acts_of(config, manifest)
    left = [act for act in acts if not _is_named(act, given)]
    if left and _marker(config).exists():
        left = [act for act in left if not act.chosen]
    if not left or trusted:
        return
    sentences = tuple(visible(act.sentence).replace("\n", "\\n") for act in left)
    if confirm is not None:
        if not confirm(sentences):
            raise UsageError(f"{run_dir} is not resumed: what its manifest asks for was not confirmed")
        remember(config)
        return
    again = ", ".join(dict.fromkeys(_OPTIONS.get(act.option, f"--{act.option.replace('_', '-')}") for act in left))
    raise UsageError(
        f"{run_dir} was not begun by this user on this machine, and its manifest asks loadgen to "
        f"{'; to '.join(sentences)}. If you want that, name it again ({again}), or give --trust-manifest"
    )


def remember(config: SweepConfig) -> None:
    """This user chose what these settings do: a run with the same acts is resumed without a question.

    `config` is as the manifest has it, without secrets. Where the state folder cannot be written, `--resume` asks.
    """
    if not acts_of(config, {}):
        return
    marker = _marker(config)
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker.touch(mode=0o600)


def _marker(config: SweepConfig) -> Path:
    """A file outside every run, named after the sha256 of all that acts, harmless parts included: a key that was meant
    for one server is not sent to another. Paths count as the files they mean from this folder."""
    fields = msgspec.to_builtins(config)
    acting = {name: fields[name] for name in ACTS}
    paths = [config.model, config.vllm, config.data_file, config.platinum_file, config.shots_file]
    paths += [spec.checkpoint for spec in config.targets]
    meant = [os.path.abspath(path) if path and Path(path).expanduser().exists() else None for path in paths]  # noqa: PTH100
    digest = hashlib.sha256(msgspec.json.encode([acting, meant], order="deterministic")).hexdigest()
    return user_state_path("loadgen") / "chosen" / digest


def _known_workers(manifest: Mapping[str, Any]) -> list[int]:
    known = manifest.get("client", {}).get("workers", {})
    return [count for count in known.values() if isinstance(count, int)] if isinstance(known, dict) else []


def _is_named(act: Act, given: Mapping[str, Any]) -> bool:
    if act.option == "metrics_port":
        named = {"metrics_port", "metrics_host"} <= set(given)
        return named or ("metrics_port" in given and given["metrics_port"] is None)
    return given.get(act.option) is not None


def _refuse_program_of(run_dir: Path, config: SweepConfig) -> None:
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
