"""Recipe: how one precision is served, read from `servers/NAME.toml`; adding a precision is adding a file.

Also the models that loadgen knows by name, read from `servers/_models.toml`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from platformdirs import user_cache_path

from loadgen.errors import UsageError
from loadgen.notation import did_you_mean, spelled

Device = Literal["cuda", "cpu"]
Dtype = Literal["float16", "bfloat16"]
FAIR_FILE, MODELS_FILE = "_fair.toml", "_models.toml"
PACKAGE = Path(__file__).parents[1]
Bits = Annotated[int, msgspec.Meta(ge=1, le=16)]
Capability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d$")]
"""MAJOR.MINOR."""
T = TypeVar("T")


Naming = Callable[[str, str], str]
"""How a user gives a recipe, by its name, a checkpoint."""


def in_sweep(recipe: str, checkpoint: str) -> str:
    """For `loadgen sweep`."""
    return f"--serve {recipe}={shlex.quote(checkpoint)}"


def in_serve(recipe: str, checkpoint: str) -> str:
    """For `loadgen serve`."""
    return f"loadgen serve {recipe} --checkpoint {shlex.quote(checkpoint)}"


class NoCheckpoint(UsageError):
    """A recipe needs a quantized checkpoint and there is none; `why` is a clause."""

    def __init__(self, recipe: Recipe, model: str, why: str, naming: Naming) -> None:
        example = naming(recipe.name, "ORG/NAME")
        quantize = f"loadgen quantize --model {shlex.quote(model)} --to {recipe.made_as[0]}" if recipe.made_as else ""
        make = f"; or make one: {quantize}" if quantize else ""
        self.row = f"none, {why}; give one: {example}{make}"
        """The same for a table of recipes."""
        super().__init__(
            f"recipe {recipe.name!r} needs a quantized checkpoint and {why}; give one (an id or a folder): "
            f"{example}{make}"
        )


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One precision: what is served, with which arguments, and what the server's log must show."""

    name: str
    """The file's name without `.toml`; also the precision's name in every row."""
    label: str
    bits: Bits | None = None
    """Bits per weight; None: each of its checkpoints has its own."""
    stored_bits: Annotated[float, msgspec.Meta(gt=0, le=17)] | None = None
    """Bits per weight in memory, its share of the scales included; None: not far above `bits`."""
    format: str
    """How weights and activations are stored."""
    backend: str
    """Which kernels multiply them."""
    checkpoint: Literal["same", "own"]
    """`same`: the 16-bit checkpoint itself; `own`: a quantized one."""
    in_flight_args: tuple[str, ...] = ()
    """Arguments that quantize a 16-bit checkpoint while it is loaded."""
    dtype: Dtype | None = None
    """The activation dtype if the recipe fixes it; None: the sweep's."""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    tensor_parallel: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """GPUs that share its model, unless the user says how many; None: one."""
    quant_methods: tuple[str, ...] = ()
    """The values of `quantization_config.quant_method` that it serves."""
    numbers: tuple[str, ...] = ()
    """What the checkpoint's weights, and its activations unless 16-bit, may be: `int4`, `int8/int8`, `nf4`, ...; empty:
    anything."""
    scheme: str | None = None
    """A regular expression for the whole of `Quantization.scheme`, or of "" where that is None; None: anything."""
    checkpoints: dict[str, str] = {}
    """16-bit checkpoint id -> quantized checkpoint id whose page was seen on the hub."""
    unverified_checkpoints: dict[str, str] = {}
    """The same, for ids that are only expected to exist."""
    made_as: tuple[str, ...] = ()
    """Formats of `loadgen quantize` that it serves; the first is made unless another is asked for."""
    expect: tuple[str, ...] = ()
    """Regular expressions that the server's log must match."""
    kernel: str | None = None
    """A regular expression for the log whose first group is the kernel that vLLM selected."""
    gpu_capability: Capability
    """The lowest CUDA compute capability that runs it."""
    native_capability: Capability | None = None
    """The lowest that computes in the format; others unpack the weights and compute in 16 bits. None: all do."""
    emulating: str | None = None
    """A regular expression that finds something in the names of the kernels that compute in 16 bits instead."""
    cpu_flags: tuple[str, ...] = ()
    """Flags of /proc/cpuinfo without which vLLM's CPU build cannot run it."""
    cpu_refusal: str | None = None
    """Why no CPU runs it, a clause; None: one with `cpu_flags` does."""
    packages: tuple[str, ...] = ()
    """Packages that vLLM's environment needs for it."""
    notes: str = ""

    def __post_init__(self) -> None:
        _check_patterns((*self.expect, *filter(None, (self.kernel, self.scheme, self.emulating))))
        if self.kernel and re.compile(self.kernel).groups < 1:
            raise ValueError(f"`kernel` {self.kernel!r} has no group that captures the kernel's name")

    @property
    def kv_bits(self) -> int:
        """Bits of a number in its KV cache."""
        return 8 if "fp8" in self.args else 16

    def runs_on_cpu(self, flags: Iterable[str]) -> bool:
        """Whether vLLM's CPU build runs it on a CPU with these flags of /proc/cpuinfo."""
        return self.cpu_refusal is None and set(self.cpu_flags) <= set(flags)

    def checkpoint_for(self, model: str, naming: Naming = in_sweep) -> str:
        """The checkpoint to serve when the 16-bit model is `model`, a local folder or an id.

        A recipe with its own checkpoint takes the one at `place_of` the model, under the recipe's name or a format that
        `loadgen quantize` makes for it; else a verified id, else the 16-bit model if it can quantize it, else an
        unverified id. Raises NoCheckpoint if there is none, and UsageError if more than one was made.
        """
        if self.checkpoint == "same":
            return model
        places = [place_of(model, name) for name in dict.fromkeys((self.name, *self.made_as))]
        made = [place for place in places if place.is_dir()]
        if len(made) > 1 and made[0] != places[0]:
            named = naming(self.name, str(made[0]))
            raise UsageError(f"recipe {self.name!r} finds {' and '.join(map(str, made))}; name one: {named}")
        if made:
            return str(made[0])
        if Path(model).expanduser().is_dir():
            remedy = f"the folder {places[0]} does not exist"
        elif model in self.checkpoints:
            return self.checkpoints[model]
        else:
            remedy = f"the recipe knows none for {model!r}"
        if self.in_flight_args:
            return model
        if model in self.unverified_checkpoints:
            return self.unverified_checkpoints[model]
        raise NoCheckpoint(self, model, remedy, naming)


def place_of(model: str, name: str) -> Path:
    """Where a checkpoint of that name belongs: the folder DIR-NAME beside a local folder DIR, for an id of the hub
    ORG--MODEL-NAME in loadgen's cache."""
    local = Path(model).expanduser()
    if local.is_dir():
        return local.resolve().with_name(f"{local.resolve().name}-{name}")
    cache = Path(os.environ.get("LOADGEN_CACHE") or user_cache_path("loadgen"))
    return cache / "quantized" / f"{model.replace('/', '--')}-{name}"


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one kind of device, equal for all precisions."""

    dtype: Dtype
    """The activation dtype of recipes that do not fix their own, unless the user chooses one."""
    kv_cache_dtype: Literal["auto"] | None = None
    """`auto` where vLLM accepts no other; None: the activation dtype."""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}


class FairSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings that are equal for all precisions: `servers/_fair.toml`."""

    args: tuple[str, ...]
    env: dict[str, str]
    expect: tuple[str, ...]
    device: dict[Device, DeviceSettings]

    def __post_init__(self) -> None:
        _check_patterns(self.expect)

    def caching_prefixes(self) -> FairSettings:
        """The same settings with vLLM's prefix cache on."""
        args = tuple(arg.replace("--no-enable-prefix-caching", "--enable-prefix-caching") for arg in self.args)
        expect = tuple(text.replace("prefix_caching=False", "prefix_caching=True") for text in self.expect)
        return msgspec.structs.replace(self, args=args, expect=expect)


def data_dir() -> Path:
    """The folder that holds docker/, dashboards/ and servers/: inside an installed package, or the checkout."""
    installed = PACKAGE / "_data"
    return installed if installed.is_dir() else PACKAGE.parent


def recipes_dir() -> Path:
    """The folder of recipes."""
    return data_dir() / "servers"


OWN_RECIPES = "LOADGEN_RECIPES"
"""The variable that names a folder with the user's own recipes."""


def _recipe_paths() -> dict[str, Path]:
    """The files of all recipes, shipped and the user's own, by name; sorted. Raises UsageError where both share one."""
    folders = [recipes_dir()]
    if own := os.environ.get(OWN_RECIPES):
        folders.append(Path(own).expanduser())
        if not folders[1].is_dir():
            raise UsageError(f"{OWN_RECIPES} names {own}, which is not a folder; name one that holds NAME.toml files")
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in folder.glob("*.toml") if not path.name.startswith("_")):
        if path.stem in found:
            raise UsageError(f"{path} has the name of a recipe that loadgen brings; rename the file")
        found[path.stem] = path
    return dict(sorted(found.items()))


def recipe_names() -> list[str]:
    """All names, sorted."""
    return list(_recipe_paths())


def load_recipe(name: str) -> Recipe:
    """The named recipe, in any letter case. Raises UsageError for an unknown name or a file that breaks the schema."""
    paths = _recipe_paths()
    name = spelled(name, paths)
    if name not in paths:
        hint = f"{did_you_mean(name, paths)}known"
        own = "" if os.environ.get(OWN_RECIPES) else f"; your own are read from the folder that {OWN_RECIPES} names"
        raise UsageError(f"unknown recipe {name!r}; {hint}: {', '.join(paths)}{own}")
    return read_recipe(paths[name])


def load_recipes() -> dict[str, Recipe]:
    """All recipes, by name."""
    return {name: read_recipe(path) for name, path in _recipe_paths().items()}


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises UsageError when it breaks the schema, naming file and field."""
    return _read(path, Recipe, {"name": path.stem})


def recipe_sha256(name: str) -> str:
    """Hex sha256 of the named recipe and of the settings that are equal for all; comments do not count."""
    return hashlib.sha256(msgspec.json.encode([load_recipe(name), fair_settings()])).hexdigest()


def fair_settings() -> FairSettings:
    """The settings that are equal for all precisions."""
    return _read(recipes_dir() / FAIR_FILE, FairSettings, {})


def expectations(
    recipe: Recipe, dtype: Dtype, kv_cache_dtype: str | None, fair: FairSettings | None = None
) -> tuple[str, ...]:
    """Regular expressions that the log of a recipe's server with these dtypes must match."""
    cache = re.escape(kv_cache_dtype or dtype)
    patterns = (*(fair or fair_settings()).expect, *recipe.expect)
    return tuple(one.replace("{dtype}", dtype).replace("{kv_cache_dtype}", cache) for one in patterns)


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


QUANTIZED_OVERHEAD = 1.2
"""For scales, and embeddings in 16 bits: AWQ of 7.25e9 parameters takes 4.16 GB instead of 3.6."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One 16-bit model."""

    id: str
    """On the Hugging Face hub."""
    family: str
    parameters_e9: float
    """Parameters, in 10^9."""
    verified: bool
    """Its page was seen on the hub."""
    kv_values_per_token: int
    """Numbers that all layers keep of one token: 2 x layers x key-value heads x their size, by its config.json."""

    @property
    def parameters(self) -> float:
        return self.parameters_e9 * 1e9


class Checkpoint(msgspec.Struct, frozen=True):
    """What one recipe serves for one model."""

    model: str
    recipe: str
    id: str
    verified: bool
    expected_bytes: int
    """The approximate size of its weights on disk."""


def load_models() -> dict[str, Model]:
    """The known models by id, in the file's order. Raises UsageError when the file breaks the schema."""
    path = recipes_dir() / MODELS_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: msgspec.convert({**fields, "id": name}, Model) for name, fields in content.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not valid: {error}; docs/checkpoints.md describes its fields") from error


def checkpoints_of(model: Model, recipes: Mapping[str, Recipe]) -> list[Checkpoint]:
    """The 16-bit one first (under the recipe name `16-bit`), then each recipe's own, verified or not."""
    own = [
        (recipe, table[model.id], table is recipe.checkpoints)
        for recipe in recipes.values()
        for table in (recipe.checkpoints, recipe.unverified_checkpoints)
        if model.id in table
    ]
    size = model.parameters
    return [
        Checkpoint(model.id, "16-bit", model.id, model.verified, expected_bytes(size, 16)),
        *(Checkpoint(model.id, one.name, id, sure, expected_bytes(size, one.bits or 16)) for one, id, sure in own),
    ]


def expected_bytes(parameters: float, bits: int) -> int:
    """Approximate bytes of weights at `bits` each: parameters x bits / 8, a fifth more when quantized."""
    return round(parameters * bits / 8 * (QUANTIZED_OVERHEAD if bits < 16 else 1.0))
