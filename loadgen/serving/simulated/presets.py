"""Presets: the GPUs, models and precisions of presets.toml, with a user's file laid over them."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.serving.simulated.behaviour import BEHAVIOURS
from loadgen.serving.simulated.cost import Cost, Gpu, Model, Precision

DEFAULT_GPU = "h100-like"
DEFAULT_MODEL = "mistral-7b"
MAY_BE_ZERO = (
    "launch_s",
    "sequence_s",
    "idle_w",
    "extra_s_per_layer",
    "buffer_bytes_per_weight",
    "dequant_flops_per_weight",
)
_T = TypeVar("_T")


class Presets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be simulated, by name."""

    gpu: dict[str, Gpu]
    model: dict[str, Model]
    precision: dict[str, Precision]

    def cost(self, precision: str, *, gpu: str = DEFAULT_GPU, model: str = DEFAULT_MODEL) -> Cost:
        """The cost model of that choice; raises UsageError for a name that is not there."""
        return Cost(
            gpu=_find("gpu", self.gpu, gpu),
            model=_find("model", self.model, model),
            precision=_find("precision", self.precision, precision),
        )


def load_presets(cost_file: Path | None = None) -> Presets:
    """The built-in presets; entries and single values of `cost_file` come before them.

    Raises UsageError for a file that is missing, is no TOML, has an unknown key or a value of the wrong kind.
    """
    tables = tomllib.loads(resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
    if cost_file is not None:
        try:
            _lay_over(tables, tomllib.loads(read_file(cost_file).decode()))
            presets = msgspec.convert(tables, Presets)
            _check(presets)
        except OSError as error:
            raise UsageError(f"--cost-file {cost_file}: {error.strerror}; give a TOML file") from None
        except (ValueError, msgspec.ValidationError) as error:
            raise UsageError(f"--cost-file {cost_file}: {error}; see docs/simulator.md for its form") from None
        return presets
    return msgspec.convert(tables, Presets)


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def _check(presets: Presets) -> None:
    """Raises ValueError for what no cost, or no answer, can be computed from."""
    if unknown := presets.precision.keys() - BEHAVIOURS.keys():
        raise ValueError(f"no answers for precision {', '.join(sorted(unknown))}, only for {', '.join(BEHAVIOURS)}")
    for kind, table in (("gpu", presets.gpu), ("model", presets.model), ("precision", presets.precision)):
        for name, entry in table.items():
            for field, value in msgspec.structs.asdict(entry).items():
                if isinstance(value, int | float) and not (value > 0 or (value == 0 and field in MAY_BE_ZERO)):
                    raise ValueError(f"{field} = {value} of {kind}.{name} is not positive")
    for name, gpu in presets.gpu.items():
        if gpu.idle_w >= gpu.limit_w:
            raise ValueError(f"idle_w = {gpu.idle_w} of gpu.{name} is not below limit_w = {gpu.limit_w}")


def _find(kind: str, table: dict[str, _T], name: str) -> _T:
    if name not in table:
        raise UsageError(f"no simulated {kind} {name!r}; choose from {', '.join(table)}")
    return table[name]
