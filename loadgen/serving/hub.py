"""Hub: the quantized checkpoints of a 16-bit model that it lists, and which of them a recipe serves."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import msgspec

from loadgen import httpget
from loadgen.bounds import MOST_FACTS_BYTES
from loadgen.errors import UsageError
from loadgen.record.manifest import FoundCheckpoint
from loadgen.secret import error_text
from loadgen.serving.checkpoint import TIMEOUT_S, HubReply, endpoint, fetch_config, hub_token, is_offline, serves
from loadgen.serving.quantization import quantization_of
from loadgen.serving.recipe import Naming, NoCheckpoint, Recipe, in_sweep

MOST_LISTED = 500
MOST_JUDGED = 48
"""The listed ones with the most downloads, whose config.json is read."""
AT_ONCE = 8
MOST_NAMED = 3
OTHER_ENGINES = frozenset({"gguf", "mlx", "exl2", "exl3", "onnx", "openvino", "coreml"})
"""Tags of the hub for checkpoints of other engines, or without a config.json that says how they are quantized."""


class Derivative(msgspec.Struct, frozen=True):
    """A model of the hub that names another one as what it was quantized from."""

    id: str
    downloads: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """In the last 30 days, by the hub; None: it does not say."""
    tags: tuple[str, ...] | None = None


class Derivatives:
    """The quantized checkpoints of one model that the hub lists; it is asked when the first is wanted."""

    def __init__(self, model: str) -> None:
        self.model = model

    def choose(self, recipe: Recipe, naming: Naming = in_sweep) -> FoundCheckpoint:
        """The one with the most downloads of those that the recipe serves by their config.json.

        Raises NoCheckpoint, with the option that gives one, where the hub is not asked, does not answer or lists none;
        and UsageError where two have the most downloads.
        """
        if is_offline():
            raise NoCheckpoint(recipe, self.model, "HF_HUB_OFFLINE forbids asking the hub", naming)
        held = [(one, quantization_of(answer.config or {})) for one, answer in self._judged]
        fitting = [(one, found) for one, found in held if found is not None and serves(recipe, found)]
        if not fitting:
            raise NoCheckpoint(recipe, self.model, self._without(), naming)
        (best, found), *others = fitting
        if others and others[0][0].downloads == best.downloads:
            known = "an unknown number of" if best.downloads is None else f"{best.downloads:,}"
            equal = [one.id for one, _ in fitting if one.downloads == best.downloads]
            raise UsageError(
                f"recipe {recipe.name!r}: the hub lists {_listed(equal)} for {self.model} with {known} "
                f"downloads each; choose one: {naming(recipe.name, best.id)}"
            )
        return FoundCheckpoint(id=best.id, downloads=best.downloads, quantization=str(found), alike=len(fitting))

    @cached_property
    def _judged(self) -> list[tuple[Derivative, HubReply]]:
        wanted = [one for one in self._listed if OTHER_ENGINES.isdisjoint(one.tags or ())][:MOST_JUDGED]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(zip(wanted, pool.map(lambda one: fetch_config(one.id), wanted), strict=True))

    @cached_property
    def _listed(self) -> list[Derivative]:
        """By downloads, the most first; empty where the hub does not answer, and `_failure` says why."""
        asked = {"filter": f"base_model:quantized:{self.model}", "sort": "downloads", "limit": MOST_LISTED}
        query = urlencode({**asked, "expand": ["downloads", "tags"]}, doseq=True)
        try:
            answer = httpget.fetch(
                f"{endpoint()}/api/models?{query}", MOST_FACTS_BYTES, timeout_s=TIMEOUT_S, bearer=hub_token()
            )
            if answer.status != 200:
                raise ValueError(f"{answer.status} {answer.reason}")
            listed = msgspec.json.decode(answer.body, type=list[Derivative])
        except (*httpget.FAILURES, RecursionError) as error:
            self._failure = f"{endpoint()} could not be reached to look for one ({error_text(error)})"
            return []
        return sorted(listed, key=lambda one: -1 if one.downloads is None else one.downloads, reverse=True)

    _failure: str | None = None

    def _without(self) -> str:
        """Why there is none, as a clause."""
        if self._failure is not None:
            return self._failure
        held = [
            str(quantization_of(a.config or {}) or "16-bit").partition(" (")[0] for _, a in self._judged if a.config
        ]
        other = len(self._listed) - len(self._judged)
        kinds = [f"{count} {kind}" for kind, count in Counter(held).most_common(MOST_NAMED)]
        kinds += [f"{other} of other engines"] if other else []
        shown = f" (it lists {', '.join(kinds)})" if kinds else ""
        kept = [one.id for one, answer in self._judged if answer.state == "gated"]
        gated = (
            f", and does not show {_listed(kept)} to this user: set HF_TOKEN to a token that may read it"
            if kept
            else ""
        )
        return f"the hub lists none for {self.model}{shown}{gated}"


def is_hub_id(model: str) -> bool:
    """Whether this names a model of the hub: ORGANISATION/NAME, and no folder."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).is_dir()


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(ids[:MOST_NAMED]) + more
