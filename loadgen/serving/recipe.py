"""Recipe: how one precision is served, read from `servers/NAME.toml`; adding a precision is adding a file.

Models that loadgen knows by name: `servers/_models.toml`, with what each recipe serves for them.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from loadgen.errors import UsageError

Device = Literal["cuda", "cpu"]
Dtype = Literal["float16", "bfloat16"]
FAIR_FILE = "_fair.toml"
Bits = Annotated[int, msgspec.Meta(ge=1, le=16)]
T = TypeVar("T")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One precision: what is served, with which arguments, and what the server's log must then show."""

    name: str
    """The file's name without `.toml`; also the precision's name in every row."""
    label: str
    bits: Bits
    """Bits per weight."""
    format: str
    """How weights and activations are stored."""
    backend: str
    """Which kernels multiply them."""
    checkpoint: Literal["same", "own"]
    """`same`: the 16-bit checkpoint itself; `own`: a quantized one."""
    in_flight_args: tuple[str, ...] = ()
    """Arguments that quantize the 16-bit checkpoint while it is loaded; used when that is what is served."""
    dtype: Dtype | None = None
    """The activation dtype when the recipe fixes it; else the sweep's one dtype."""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    quant_methods: tuple[str, ...] = ()
    """What `quantization_config.quant_method` of a quantized checkpoint's config.json may say."""
    numbers: str | None = None
    """What the checkpoint's weights are, and its activations unless 16-bit: `int4`, `int8/int8`, `nf4`, ..."""
    checkpoints: dict[str, str] = {}
    """16-bit checkpoint id -> quantized checkpoint id, its page seen on the hub."""
    unverified_checkpoints: dict[str, str] = {}
    """The same, for ids that are only expected to exist."""
    expect: tuple[str, ...] = ()
    """Regular expressions that the server's log must show, or it does not run this recipe."""
    kernel: str | None = None
    """A regular expression whose first group is the kernel that vLLM selected, as its log names it."""
    gpu_capability: str
    """The lowest CUDA compute capability that runs it."""
    cpu_flags: tuple[str, ...] = ()
    """Flags of /proc/cpuinfo without which vLLM's CPU build cannot run it."""
    notes: str = ""

    def __post_init__(self) -> None:
        _check_patterns((*self.expect, *([self.kernel] if self.kernel else [])))
        if self.kernel and re.compile(self.kernel).groups < 1:
            raise ValueError(f"`kernel` {self.kernel!r} has no group that captures the kernel's name")

    def checkpoint_for(self, model: str) -> str:
        """The checkpoint to serve when the 16-bit model is `model`, a local folder or an id.

        For a local folder DIR a recipe with its own checkpoint takes the folder DIR-NAME beside it; for an id it takes
        an unverified checkpoint only where it cannot quantize while loading. Raises UsageError when there is neither.
        """
        if self.checkpoint == "same":
            return model
        local = Path(model).expanduser()
        if local.is_dir():
            sibling = local.resolve().with_name(f"{local.resolve().name}-{self.name}")
            if sibling.is_dir():
                return str(sibling)
            remedy = f"the folder {sibling} does not exist"
        elif model in self.checkpoints:
            return self.checkpoints[model]
        else:
            remedy = f"the recipe knows none for {model!r}"
        if self.in_flight_args:
            return model
        if model in self.unverified_checkpoints:
            return self.unverified_checkpoints[model]
        raise UsageError(f"recipe {self.name!r} needs a quantized checkpoint and {remedy}; name one with --checkpoint")


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kind of device needs, whatever the precision."""

    dtype: Dtype
    """The activation dtype of recipes that do not fix their own, unless the user chooses."""
    kv_cache_dtype: Literal["auto"] | None = None
    """`auto` where vLLM refuses to be told the dtype of keys and values; else it is told the activation dtype."""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}


class FairSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is equal for all precisions: `servers/_fair.toml`."""

    args: tuple[str, ...]
    env: dict[str, str]
    expect: tuple[str, ...]
    device: dict[Device, DeviceSettings]

    def __post_init__(self) -> None:
        _check_patterns(self.expect)

    def caching_prefixes(self) -> FairSettings:
        """The same settings with vLLM's prefix cache on."""
        return msgspec.structs.replace(
            self,
            args=tuple(arg.replace("--no-enable-prefix-caching", "--enable-prefix-caching") for arg in self.args),
            expect=tuple(
                text.replace("enable_prefix_caching=False", "enable_prefix_caching=True") for text in self.expect
            ),
        )


def recipes_dir() -> Path:
    """The folder of recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_data" / "servers"
    return installed if installed.is_dir() else package.parent / "servers"


def recipe_names() -> list[str]:
    """All names, sorted."""
    return sorted(path.stem for path in recipes_dir().glob("*.toml") if not path.name.startswith("_"))


def load_recipe(name: str) -> Recipe:
    """The named recipe. Raises UsageError for an unknown name or a file that breaks the schema."""
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? known" if close else "known"
        raise UsageError(f"unknown recipe {name!r}; {hint}: {', '.join(names)}")
    return read_recipe(recipes_dir() / f"{name}.toml")


def load_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    return {name: load_recipe(name) for name in recipe_names()}


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises UsageError when it breaks the schema, naming file and field."""
    return _read(path, Recipe, {"name": path.stem})


def recipe_sha256(name: str) -> str:
    """Hex sha256 of all that the named recipe says and the settings that are equal for all; comments are in neither."""
    return hashlib.sha256(msgspec.json.encode([load_recipe(name), fair_settings()])).hexdigest()


def fair_settings() -> FairSettings:
    """The settings that are equal for all precisions."""
    return _read(recipes_dir() / FAIR_FILE, FairSettings, {})


def _read(path: Path, kind: type[T], given: dict[str, str]) -> T:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if clash := given.keys() & content.keys():
            raise ValueError(f"{clash.pop()!r} is given by the file's name")
        return msgspec.convert({**content, **given}, kind)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"recipe file {path} is not valid: {error}; docs/serving.md describes its fields") from error


def _check_patterns(patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern.replace("{dtype}", "float16").replace("{kv_cache_dtype}", "float16"))
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


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
