"""vLLM: which one a sweep would launch, its version, bitsandbytes; and whether each known checkpoint is there and of
the kind that its recipe serves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadgen.doctor.finding import Ask, Finding, Mode, ask, judged
from loadgen.doctor.hardware import is_cached
from loadgen.errors import UsageError
from loadgen.serving.checkpoint import (
    HubReply,
    endpoint,
    fault_of_config,
    fetch_config,
    hub_token,
    is_offline,
    local_config,
    mismatch,
)
from loadgen.serving.launch import find_vllm
from loadgen.serving.quantization import quantization_of
from loadgen.serving.recipe import Checkpoint, Recipe, checkpoints_of, in_sweep, load_models

VERSION_TIMEOUT_S = 120.0
"""`vllm --version` imports torch first: 20 s on two cores."""
LIST_TIMEOUT_S = 20.0
PLUGIN_SINCE = (0, 28)
"""From this version on bitsandbytes is served through vllm-bnb-plugin."""
_LIST = """
import importlib.metadata as m, json
found = {}
for name in ("bitsandbytes", "vllm-bnb-plugin"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def examine_vllm(mode: Mode, named: str | None = None, run: Ask = ask) -> list[Finding]:
    """vLLM and bitsandbytes of the command that `find_vllm` finds; neither is imported here."""
    if mode not in ("cpu", "gpu"):
        held = "its image brings it" if mode == "docker" else "simulated servers need none"
        return [Finding("vLLM", "not applicable", held)]
    try:
        command = find_vllm("cpu" if mode == "cpu" else "cuda", named)
    except UsageError as error:
        seen, _, remedy = str(error).partition("; ")
        return [Finding("vLLM", "missing", seen, remedy)]
    found, version = vllm_version(mode, command, run)
    return [found] if version is None else [found, bitsandbytes(version, packages_beside(command, run))]


def vllm_version(mode: Mode, command: str, run: Ask = ask) -> tuple[Finding, str | None]:
    """What `vllm --version` says, and whether it is a build for this mode's device; the version when it says one."""
    check = "vLLM"
    answer = run([command, "--version"], VERSION_TIMEOUT_S)
    words = answer.output.split() if answer is not None and answer.status == 0 else []
    version = words[-1] if words and re.match(r"\d+\.\d+", words[-1]) else None
    if version is None:
        said = "it cannot be executed" if answer is None else answer.last_words
        advice = "fix that environment, or give another with --vllm PATH or LOADGEN_VLLM"
        return Finding(check, "missing", f"`{command} --version` failed: {said}", advice), None
    seen = f"{version}, {command}"
    if mode == "cpu" and "cpu" not in version:
        advice = "run `loadgen cpu-env`, or give a CPU build with --vllm PATH"
        return Finding(check, "missing", f"{seen}: not a CPU build", advice), version
    if mode == "gpu" and "cpu" in version:
        advice = "install one for CUDA with `pip install vllm`, or name it with --vllm PATH"
        return Finding(check, "missing", f"{seen}: a CPU build", advice), version
    return judged(check, seen), version


def packages_beside(command: str, run: Ask = ask) -> dict[str, str] | None:
    """Versions of bitsandbytes and of vLLM's plugin for it in the environment of a `vllm` command; None: unknown."""
    python = interpreter_of(Path(command))
    answer = run([str(python), "-c", _LIST], LIST_TIMEOUT_S) if python else None
    if answer is None or answer.status != 0:
        return None
    try:
        found = json.loads(answer.output)
    except ValueError:
        return None
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else None


def bitsandbytes(vllm: str, packages: dict[str, str] | None) -> Finding:
    """Whether bnb-nf4 and bnb-int8 can be served by that vLLM version."""
    check = "bitsandbytes"
    if packages is None:
        return judged(check, "vLLM's Python was not found", "bnb-nf4 and bnb-int8 need it in vLLM's environment")
    major, minor = (int(part) for part in vllm.split(".")[:2])
    needed = ["bitsandbytes", "vllm-bnb-plugin"] if (major, minor) >= PLUGIN_SINCE else ["bitsandbytes"]
    seen = ", ".join(f"{name} {packages[name]}" for name in needed if name in packages)
    lacking = [name for name in needed if name not in packages]
    if not lacking:
        return judged(check, seen)
    advice = f"bnb-nf4 and bnb-int8 need it: `pip install {' '.join(lacking)}` in vLLM's environment"
    return judged(check, "; ".join([seen] * bool(seen) + [f"no {' and no '.join(lacking)}"]), advice)


def interpreter_of(script: Path) -> Path | None:
    """The Python that a console script's first line names, else the `python` in its folder; None: neither is there."""
    try:
        with script.open("rb") as opened:
            first = opened.readline(4096)
    except OSError:
        return None
    named = Path(first[2:].decode(errors="replace").strip()) if first.startswith(b"#!") else None
    for path in (named, script.with_name("python")):
        if path is not None and "python" in path.name and path.exists():
            return path
    return None


AT_ONCE = 8
AskHub = Callable[[str], HubReply]
QUANTIZED = "it is already quantized: give the 16-bit model"
_OFFLINE = "download on a machine that is online and copy its cache folder, or give --model a folder"


def examine_checkpoints(
    mode: Mode, model: str | None, recipes: Mapping[str, Recipe], ask: AskHub = fetch_config
) -> list[Finding]:
    """The hub, then one finding per checkpoint of `model`, or of every known model when None."""
    check = "hub"
    if mode == "simulated":
        return [Finding(check, "not applicable", "simulated servers load no checkpoint")]
    if model is not None and Path(model).expanduser().is_dir():
        return [Finding(check, "not applicable", f"{model} is a folder"), *folder(model, recipes)]
    wanted = wanted_checkpoints(model, recipes)
    offline = is_offline()
    first = None if offline else ask(wanted[0].id)
    if offline or first is None or first.state == "unreachable":
        reason = "HF_HUB_OFFLINE is set" if first is None else f"{endpoint()}: {first.reason}"
        return [unreachable(reason, model)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [first, *pool.map(lambda one: ask(one.id), wanted[1:])]
    findings = [Finding(check, "ok", f"{endpoint()} answers, {_token()}")]
    return findings + [
        checkpoint(one, answer, recipes.get(one.recipe), asked_for=one.id == model)
        for one, answer in zip(wanted, answers, strict=True)
    ]


def wanted_checkpoints(model: str | None, recipes: Mapping[str, Recipe]) -> list[Checkpoint]:
    """Those of the model, or of every known one; an unknown model is its 16-bit checkpoint alone."""
    models = load_models()
    if model is None:
        return [one for known in models.values() for one in checkpoints_of(known, recipes)]
    if model in models:
        return checkpoints_of(models[model], recipes)
    return [Checkpoint(model=model, recipe="16-bit", id=model, verified=False, expected_bytes=0)]


def unreachable(reason: str, model: str | None) -> Finding:
    """No hub: `missing` when the model that was asked for is not in the cache either."""
    if model is None:
        return Finding("hub", "warning", reason, f"only cached checkpoints serve: {_OFFLINE}")
    if is_cached(model):
        seen = f"{reason}; {model} is in the cache"
        return Finding("hub", "warning", seen, f"checkpoints not cached: {_OFFLINE}")
    return Finding("hub", "missing", f"{reason}; {model} is not in the cache", _OFFLINE)


def checkpoint(one: Checkpoint, answer: HubReply, recipe: Recipe | None, *, asked_for: bool) -> Finding:
    """One checkpoint by its config.json; only the 16-bit one of the model that was asked for can be `missing`."""
    check = f"{one.recipe} of {one.model.rpartition('/')[2]}"
    mark = "" if one.verified else " (not verified)"
    if answer.state == "found":
        config = answer.config or {}
        held = quantization_of(config)
        seen = f"{one.id}{mark}: {held or '16-bit'}"
        if recipe is not None:
            sentence = mismatch(recipe, one.id, config, in_flight=False)
        else:
            sentence = QUANTIZED if held else None
        if sentence is None:
            return Finding(check, "ok", seen)
        return Finding(check, "missing" if asked_for else "warning", seen, sentence)
    seen = f"{one.id}{mark}: {answer.state}" + (f" ({answer.reason})" if answer.reason else "")
    if asked_for and not is_cached(one.id):
        return Finding(check, "missing", seen, _remedy(one, answer))
    return Finding(check, "warning", seen, _remedy(one, answer))


def folder(model: str, recipes: Mapping[str, Recipe]) -> list[Finding]:
    """A model's folder and the quantized ones next to it, by their config.json."""
    path = Path(model).expanduser().resolve()
    config = local_config(str(path))
    check = f"16-bit of {path.name}"
    if fault := fault_of_config(str(path)):
        seen, _, advice = fault.partition("; ")
        return [Finding(check, "missing", seen, advice)]
    if config is None:
        return [Finding(check, "missing", f"{path} has no config.json", "give the folder that holds it")]
    if held := quantization_of(config):
        findings = [Finding(check, "missing", f"{path}: {held}", QUANTIZED)]
    else:
        findings = [judged(check, f"{path}: 16-bit")]
    for recipe in recipes.values():
        beside = path.with_name(f"{path.name}-{recipe.name}")
        own = local_config(str(beside)) if recipe.checkpoint == "own" and beside.is_dir() else None
        if own is not None:
            sentence = mismatch(recipe, str(beside), own, in_flight=False)
            seen = f"{beside}: {quantization_of(own) or '16-bit'}"
            findings.append(judged(f"{recipe.name} of {path.name}", seen, sentence or ""))
    return findings


def _remedy(one: Checkpoint, answer: HubReply) -> str:
    if answer.state == "gated":
        return "set HF_TOKEN and accept its licence on its page" + ("" if one.verified else "; or it does not exist")
    if answer.state == "unreachable":
        return "try again"
    return "correct --model" if one.recipe == "16-bit" else f"give another: {in_sweep(one.recipe, 'ORG/NAME')}"


def _token() -> str:
    return "with HF_TOKEN" if hub_token() else "without HF_TOKEN"
