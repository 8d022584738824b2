"""Models that loadgen knows by name: `servers/_models.toml`, with what each recipe serves for them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.recipe import Recipe, recipes_dir

MODELS_FILE = "_models.toml"
QUANTIZED_OVERHEAD = 1.2
"""Scales, and embeddings left in 16 bits: AWQ of 7.25e9 parameters takes 4.16 GB instead of 3.6."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One 16-bit model."""

    id: str
    """On the Hugging Face hub."""
    family: str
    parameters_e9: float
    """Parameters, in 10^9."""
    verified: bool
    """Its page was seen on the hub."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What one recipe serves for one model."""

    model: str
    recipe: str
    id: str
    kind: Literal["16-bit", "own"]
    verified: bool
    expected_bytes: int
    """About what its weights take on disk."""


def load_models() -> dict[str, Model]:
    """The known models by id, in the file's order. Raises UsageError when the file breaks the schema."""
    path = recipes_dir() / MODELS_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: msgspec.convert({**fields, "id": name}, Model) for name, fields in content.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not valid: {error}; docs/models-served.md describes its fields") from error


def checkpoints_of(model: Model, recipes: Mapping[str, Recipe]) -> list[Checkpoint]:
    """The 16-bit one first (under the recipe name `16-bit`), then each recipe's own, verified or not."""
    sixteen = Checkpoint(
        model=model.id, recipe="16-bit", id=model.id, kind="16-bit", verified=model.verified,
        expected_bytes=expected_bytes(model, 16),
    )  # fmt: skip
    own = [
        Checkpoint(
            model=model.id, recipe=recipe.name, id=table[model.id], kind="own", verified=table is recipe.checkpoints,
            expected_bytes=expected_bytes(model, recipe.bits),
        )
        for recipe in recipes.values()
        for table in (recipe.checkpoints, recipe.unverified_checkpoints)
        if model.id in table
    ]  # fmt: skip
    return [sixteen, *own]


def expected_bytes(model: Model, bits: int) -> int:
    """About what the model's weights take at `bits` each: parameters x bits / 8, a fifth more when quantized."""
    overhead = QUANTIZED_OVERHEAD if bits < 16 else 1.0
    return round(model.parameters_e9 * 1e9 * bits / 8 * overhead)
