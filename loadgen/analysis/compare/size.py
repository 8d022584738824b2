"""ModelSize: how many parameters a model has, and how that is known."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.bounds import MOST_FACTS_BYTES, Count
from loadgen.errors import UsageError

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_GIVEN = re.compile(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([KMBT]?)\s*", re.IGNORECASE)
_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
_EXPERTS_IN_NAME = re.compile(r"\d+x\d+(\.\d+)?[MB]|(?<![A-Za-z0-9])A\d+(\.\d+)?[MB](?![A-Za-z0-9])", re.IGNORECASE)
_EXPERTS_IN_CONFIG = ("num_experts", "num_local_experts", "n_routed_experts")
_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file: the most that the format's own reader takes."""


class ModelSize(msgspec.Struct, frozen=True, kw_only=True):
    """Number of parameters; None: not known, and `source` says what to do."""

    parameters: float | None
    source: str


def given_size(text: str | float) -> float:
    """Parameters of "7.25B", "600M" or a number. Raises UsageError for anything else."""
    found = _GIVEN.fullmatch(str(text))
    try:
        value = float(found[1]) * _UNITS[found[2].upper()] if found else math.nan
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise UsageError(f"--size {text} is no number of parameters; write it as 7.25B or 600M")
    return value


def model_size(name: str | None, given: Mapping[str, float], *keys: str) -> ModelSize:
    """Of a model by its id or folder: what is `given` under any of `keys` or the model's name; else the sum over the
    folder's safetensors, if it is still there; else the size that its name says. A mixture of experts has two sizes
    and is never guessed.
    """
    for key in (*keys, name, Path(name).name if name else None):
        if key is not None and key in given:
            return ModelSize(parameters=given[key], source="--size")
    if not name:
        return ModelSize(parameters=None, source=f"the model has no name: give --size {keys[-1]}=7.25B")
    short = Path(name).name
    counted = _of_folder(Path(name))
    if counted is not None:
        return counted
    if _EXPERTS_IN_NAME.search(short):
        return _asked(short, "is a mixture of experts, whose size is not guessed")
    sizes = {float(number) * _UNITS[unit.upper()] for number, unit in _IN_NAME.findall(short)}
    if len(sizes) == 1:
        return ModelSize(parameters=sizes.pop(), source="name")
    return _asked(short, "names two sizes" if sizes else "does not say its size")


def _asked(short: str, why: str) -> ModelSize:
    return ModelSize(parameters=None, source=f"{short} {why}: give --size {short}=7.25B (with its own number)")


def _of_folder(folder: Path) -> ModelSize | None:
    """From the headers of the checkpoint's safetensors; None if there is no such folder or there are none, or they hold
    packed weights. The name comes from a manifest, maybe somebody else's."""
    try:
        folder = folder.expanduser()
        if not folder.is_dir():
            return None
        files = sorted(folder.glob("*.safetensors"))
        config = _object(folder / "config.json")
        if any(config.get(key) for key in _EXPERTS_IN_CONFIG):
            return _asked(folder.name, "is a mixture of experts, whose size is not guessed")
        if not files or "quantization_config" in config:
            return None
        return ModelSize(parameters=float(sum(map(_elements, files))), source="safetensors")
    except (OSError, ValueError, RuntimeError, RecursionError, OverflowError):
        return None


def _elements(path: Path) -> int:
    """Elements of all tensors of a file: its header is JSON behind its own length, 8 bytes little endian."""
    header = msgspec.json.decode(_read(path, _LENGTH_BYTES), type=dict[str, _Tensor])
    return sum(math.prod(tensor.shape) for name, tensor in header.items() if name != "__metadata__")


def _object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_read(path), type=dict[str, Any])
    except (OSError, ValueError, RecursionError):
        return {}


class _Tensor(msgspec.Struct):
    shape: tuple[Count, ...] = ()


def _read(path: Path, length_bytes: int = 0) -> bytes:
    """A file's beginning, behind its length; empty for what is no regular file, as a pipe."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        length = int.from_bytes(file.read(length_bytes), "little") if length_bytes else MOST_FACTS_BYTES
        return file.read(min(length, MOST_HEADER_BYTES))
