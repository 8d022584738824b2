"""The settings of a run, read back from its manifest, and whether options given beside `--resume` agree with them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.secret import MASK, Mask
from loadgen.sweep.config import SweepConfig, configure
from loadgen.sweep.plan import TargetSpec

FREE = ("metrics_port", "metrics_host", "api_key_env", "exclusive", "wait_ready", "start_timeout")
"""Options that may differ from session to session: no figure depends on them."""
_FIELDS = {
    "duration": "duration_s",
    "warmup": "warmup_s",
    "gpu": "gpus",
    "carbon": "carbon_kg_per_kwh",
    "timeout": "timeout_s",
    "start_timeout": "start_timeout_s",
    "wait_ready": "wait_ready_s",
    "drain": "drain_s",
}
"""Option -> field of SweepConfig, where they are not of one name."""
_RIVALS = {
    "duration": "requests",
    "requests": "duration",
    "max_tokens": "fixed_length",
    "fixed_length": "max_tokens",
    "targets": "serve",
    "serve": "targets",
}
"""Options of which a run has one at most."""


def resumed_config(run_dir: Path, manifest: Mapping[str, Any], given: Mapping[str, Any]) -> SweepConfig:
    """The run's config, with those of the `given` options that may differ.

    `given` are arguments of `configure`. Raises UsageError, naming the option and both values, for the first that is
    not what the run was begun with; and if this version of loadgen reads the settings otherwise.
    """
    free = {name: value for name, value in given.items() if name in FREE}
    changes = {_FIELDS.get(name, name): value for name, value in free.items()}
    try:
        begun = msgspec.structs.replace(msgspec.convert(manifest["config"], SweepConfig), **changes)
        begun = msgspec.structs.replace(begun, extra_body=_unmasked(run_dir, begun.extra_body, given))
        options = options_of(begun)
        config = msgspec.structs.replace(configure(**options), out=begun.out)
    except (msgspec.ValidationError, KeyError, TypeError):
        config = None
    if config is None or config != begun:
        version = manifest.get("client", {}).get("loadgen", "an unknown version")
        raise UsageError(
            f"{run_dir} was begun by loadgen {version}, and this version reads its settings otherwise; resume it with "
            "the version that began it"
        )
    if given.get("out") is not None and Path(given["out"]).resolve() != run_dir.resolve():
        raise UsageError(f"--out {given['out']}: --resume goes on in {run_dir}; leave --out away")
    for name, value in given.items():
        if name != "out" and name not in free and not _agrees(config, options, name, value):
            raise UsageError(
                f"--{_dashed(name)} {_shown(value)}: {run_dir} was begun {_begun(options, name)}; leave the option "
                "away, or start a new run"
            )
    return config


def options_of(config: SweepConfig) -> dict[str, Any]:
    """The arguments with which `configure` makes this very config, but for `out`."""
    options = {}
    for name in inspect.signature(configure).parameters:
        if (field := _FIELDS.get(name, name)) in SweepConfig.__struct_fields__:
            options[name] = getattr(config, field)
    options["extra_body"] = config.extra_body or None
    del options["targets"], options["out"]
    if config.mode == "target":
        options["targets"] = [f"{_label(spec)}={spec.url}" for spec in config.targets]
        options["metrics_url"] = [f"{spec.name}={url}" for spec in config.targets for url in spec.metrics_urls]
    elif config.mode == "serve":
        options["serve"] = [
            _label(spec) + (f"={spec.checkpoint}" if spec.checkpoint else "") for spec in config.targets
        ]
    if config.mode != "serve":
        del options["max_num_seqs"]
    if config.thinking is not None:
        options |= {"thinking": "on" if config.thinking.on else "off", "thinking_budget": config.thinking.budget}
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
        "--extra-body with --resume"
    )


def _label(spec: TargetSpec) -> str:
    return spec.name if spec.name == spec.precision else f"{spec.name}:{spec.precision}"


def _agrees(config: SweepConfig, options: Mapping[str, Any], name: str, value: Any) -> bool:
    asked = {option: known for option, known in options.items() if option != _RIVALS.get(name)}
    if name in ("targets", "serve"):
        if name not in options:
            return not value
        del asked["reference"]
    found = msgspec.structs.replace(configure(**asked | {name: value}), out=config.out)
    return found == config if "reference" in asked else found.targets == config.targets


def _begun(options: Mapping[str, Any], name: str) -> str:
    if name in ("targets", "serve") and not {"targets", "serve"} & set(options):
        return "with simulated servers"
    known = name if options.get(name) is not None else _RIVALS.get(name, name)
    if options.get(known) is None:
        return f"without --{_dashed(name)}"
    return f"with --{_dashed(known)} {_shown(options[known])}"


def _dashed(name: str) -> str:
    return "target" if name == "targets" else name.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and not all(isinstance(part, str) for part in value.values()):
        return msgspec.json.encode(Mask().content(value)).decode()
    if isinstance(value, Mapping):
        value = [f"{name}={url}" for name, url in value.items()]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
