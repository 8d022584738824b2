"""Hub access, and whether each known checkpoint is there and of the kind that its recipe serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadgen.doctor.disk import is_cached
from loadgen.doctor.finding import Finding, Mode, State
from loadgen.serving.checkpoint import ask_hub, mismatch
from loadgen.serving.families import Checkpoint, checkpoints_of, load_models
from loadgen.serving.hub import HubAnswer, endpoint, fault_of_config, hub_token, is_offline, local_config
from loadgen.serving.quantization import quantization_of
from loadgen.serving.recipe import Recipe

AT_ONCE = 8
AskHub = Callable[[str], HubAnswer]
_OFFLINE = "download on a machine that is online and copy its cache folder, or give --model a folder"


def examine_checkpoints(
    mode: Mode, model: str | None, recipes: Mapping[str, Recipe], ask: AskHub = ask_hub
) -> list[Finding]:
    """The hub, then one finding per checkpoint of `model`, or of every known model when None."""
    check = "hub"
    if mode == "simulated":
        return [Finding(check=check, state="not applicable", seen="simulated servers load no checkpoint")]
    if model is not None and Path(model).expanduser().is_dir():
        return [Finding(check=check, state="not applicable", seen=f"{model} is a folder"), *folder(model, recipes)]
    wanted = wanted_checkpoints(model, recipes)
    offline = is_offline()
    first = None if offline else ask(wanted[0].id)
    if offline or first is None or first.state == "unreachable":
        reason = "HF_HUB_OFFLINE asks for no connection" if first is None else f"{endpoint()}: {first.reason}"
        return [unreachable(reason, model)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [first, *pool.map(lambda one: ask(one.id), wanted[1:])]
    findings = [Finding(check=check, state="ok", seen=f"{endpoint()} answers, {_token()}")]
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
    return [Checkpoint(model=model, recipe="16-bit", id=model, kind="16-bit", verified=False, expected_bytes=0)]


def unreachable(reason: str, model: str | None) -> Finding:
    """No hub: `missing` when the model that was asked for is not in the cache either."""
    if model is None:
        return Finding(check="hub", state="warning", seen=reason, advice=f"only cached checkpoints serve: {_OFFLINE}")
    if is_cached(model):
        seen = f"{reason}; {model} is in the cache"
        return Finding(check="hub", state="warning", seen=seen, advice=f"checkpoints not cached: {_OFFLINE}")
    return Finding(check="hub", state="missing", seen=f"{reason}; {model} is not in the cache", advice=_OFFLINE)


def checkpoint(one: Checkpoint, answer: HubAnswer, recipe: Recipe | None, *, asked_for: bool) -> Finding:
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
            sentence = "it is already quantized: give the 16-bit model" if held else None
        if sentence is None:
            return Finding(check=check, state="ok", seen=seen)
        return Finding(check=check, state="missing" if asked_for else "warning", seen=seen, advice=sentence)
    seen = f"{one.id}{mark}: {answer.state}" + (f" ({answer.reason})" if answer.reason else "")
    if asked_for and not is_cached(one.id):
        return Finding(check=check, state="missing", seen=seen, advice=_remedy(one, answer))
    return Finding(check=check, state="warning", seen=seen, advice=_remedy(one, answer))


def folder(model: str, recipes: Mapping[str, Recipe]) -> list[Finding]:
    """A model's folder and the quantized ones beside it, by their config.json."""
    path = Path(model).expanduser().resolve()
    config = local_config(str(path))
    check = f"16-bit of {path.name}"
    if fault := fault_of_config(str(path)):
        seen, _, advice = fault.partition("; ")
        return [Finding(check=check, state="missing", seen=seen, advice=advice)]
    if config is None:
        advice = "give the folder that holds the model's config.json"
        return [Finding(check=check, state="missing", seen=f"{path} has no config.json", advice=advice)]
    held = quantization_of(config)
    first = Finding(check=check, state="ok", seen=f"{path}: 16-bit")
    if held:
        advice = "it is already quantized: give the 16-bit model"
        first = Finding(check=check, state="missing", seen=f"{path}: {held}", advice=advice)
    findings = [first]
    for recipe in recipes.values():
        beside = path.with_name(f"{path.name}-{recipe.name}")
        own = local_config(str(beside)) if recipe.checkpoint == "own" and beside.is_dir() else None
        if own is not None:
            sentence = mismatch(recipe, str(beside), own, in_flight=False)
            seen = f"{beside}: {quantization_of(own) or '16-bit'}"
            state: State = "warning" if sentence else "ok"
            check = f"{recipe.name} of {path.name}"
            findings.append(Finding(check=check, state=state, seen=seen, advice=sentence or ""))
    return findings


def _remedy(one: Checkpoint, answer: HubAnswer) -> str:
    if answer.state == "gated":
        return "set HF_TOKEN and accept its licence on its page" + ("" if one.verified else "; or it does not exist")
    if answer.state == "unreachable":
        return "try again"
    return "correct --model" if one.kind == "16-bit" else "name another with --checkpoint"


def _token() -> str:
    return "with HF_TOKEN" if hub_token() else "without HF_TOKEN"
