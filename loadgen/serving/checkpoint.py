"""A checkpoint: whether a recipe serves what its config.json says, and what tells its weights from others.

The Hugging Face hub: where a checkpoint's config.json is read, from this machine's cache or over HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen import httpget
from loadgen.bounds import MOST_FACTS_BYTES, Count
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.record.manifest import Weights
from loadgen.secret import said
from loadgen.serving.quantization import BESIDE, ENTRIES, NESTED, PLACE, Quantization, quantization_of
from loadgen.serving.recipe import Recipe, load_recipes

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 5.0
TOKEN_FILE = "HF_TOKEN_FILE"
MOST_TOKEN_BYTES = 4096
"""Tokens have 37 characters."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file: the most that the format's own reader takes."""
_YES = frozenset({"1", "ON", "YES", "TRUE"})


State = Literal["found", "absent", "gated", "unreachable"]
_STATES: dict[int, State] = {401: "gated", 403: "gated", 404: "absent"}


class HubAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says of one checkpoint."""

    state: State
    """`gated`: it wants a token, or its licence accepted; without a token the hub says so of absent ones too."""
    config: dict[str, Any] | None = None
    """The config.json of a found one."""
    reason: str = ""


def endpoint() -> str:
    """`$HF_ENDPOINT`, else the public hub; without a trailing slash."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` asks for no connection."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_token() -> str | None:
    """`$HF_TOKEN`, else what the file `$HF_TOKEN_FILE` holds, else what `hf auth login` left in `$HF_TOKEN_PATH` or in
    `token` of `$HF_HOME`; None without. Raises UsageError if `$HF_TOKEN_FILE` names a file that holds no token."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token
    if named := os.environ.get(TOKEN_FILE):
        return _token_in(Path(named).expanduser())
    home = os.environ.get("HF_HOME")
    folder = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    try:
        path = Path(os.environ.get("HF_TOKEN_PATH") or folder / "token").expanduser()
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError, RuntimeError):
        return None


def _token_in(path: Path) -> str:
    try:
        token = read_file(path, MOST_TOKEN_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{TOKEN_FILE} names {path}, which cannot be read ({said})") from None
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise UsageError(f"{TOKEN_FILE} names {path}, which does not hold one token and nothing else; write it again")
    return token


def token_variables() -> dict[str, str]:
    """What tells a server of `$HF_TOKEN_FILE`: the hub's library knows another name of it."""
    named = os.environ.get(TOKEN_FILE)
    return {"HF_TOKEN_PATH": str(Path(named).expanduser().absolute())} if named else {}


def token_warning() -> str | None:
    """One sentence if other users of this machine can read the file `$HF_TOKEN_FILE`, else None."""
    path = Path(os.environ.get(TOKEN_FILE) or os.devnull).expanduser()
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o044:
        return None
    return f"{TOKEN_FILE}: other users of this machine can read {path}; run `chmod 600 {path}`"


def cache_folder() -> Path:
    """Where checkpoints are kept: `$HF_HUB_CACHE`, else `hub` in `$HF_HOME`, else in the user's cache folder."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_snapshot(checkpoint: str) -> Path | None:
    """The folder of the cached branch `main` of a checkpoint; None when it is not cached."""
    folder = cache_folder() / f"models--{checkpoint.replace('/', '--')}"
    try:
        commit = read_file(folder / "refs" / "main").decode().strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def downloaded_bytes(checkpoint: str) -> int:
    """Bytes of a checkpoint of the hub in the cache, of unfinished downloads too; 0 for a folder or without any."""
    blobs = cache_folder() / f"models--{checkpoint.replace('/', '--')}" / "blobs"
    total = 0
    with contextlib.suppress(OSError):
        for path in blobs.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
    return total


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint's folder holds weights as vLLM reads them, and not an index of absent ones only."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a checkpoint's folder; None when there is none or it is not a JSON object.

    Where it says nothing of quantization, what the file `BESIDE` says stands in for it, as in vLLM.
    """
    config = _read_object(folder / "config.json")
    return config and (_with_beside(config, _read_object(folder / BESIDE)) if _wants_beside(config) else config)


def fault_of_config(checkpoint: str) -> str | None:
    """One sentence when this machine has a config.json of the checkpoint that is not a JSON object, else None."""
    folder = _folder_of(checkpoint)
    path = folder / "config.json" if folder else None
    if path is None or not path.exists():
        return None
    try:
        value = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"{path} cannot be read as JSON ({reason}); put the checkpoint's own config.json there"
    if isinstance(value, dict):
        return None
    return f"{path} is a JSON {type(value).__name__} where an object is expected; put the checkpoint's own file there"


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _wants_beside(config: dict[str, Any]) -> bool:
    parts = (config, *(part for name in NESTED if isinstance(part := config.get(name), dict)))
    return not any(part.get(entry) for part in parts for entry in ENTRIES)


def _with_beside(config: dict[str, Any], beside: dict[str, Any] | None) -> dict[str, Any]:
    return {**config, ENTRIES[0]: {**beside, PLACE: BESIDE}} if beside else config


def _folder_of(checkpoint: str) -> Path | None:
    """The folder itself, or that of an id in the cache."""
    folder = Path(checkpoint).expanduser()
    return folder if folder.is_dir() else cached_snapshot(checkpoint)


def local_config(checkpoint: str) -> dict[str, Any] | None:
    """The config.json of a folder, or of an id in the cache; None when this machine has none."""
    folder = _folder_of(checkpoint)
    return read_config(folder) if folder else None


def fetch_config(checkpoint: str) -> HubAnswer:
    """GET of the config.json of an id's branch `main`, with the user's token if any; at most 5 s each, never raises.

    Where it says nothing of quantization, the file `BESIDE` is asked for too.
    """
    answer = _fetch(checkpoint, "config.json")
    if answer.config is None or not _wants_beside(answer.config):
        return answer
    beside = _fetch(checkpoint, BESIDE).config
    return HubAnswer(state="found", config=_with_beside(answer.config, beside))


def _fetch(checkpoint: str, name: str) -> HubAnswer:
    try:
        url = f"{endpoint()}/{checkpoint}/resolve/main/{name}"
        answer = httpget.fetch(url, MOST_FACTS_BYTES, timeout_s=TIMEOUT_S, bearer=hub_token())
        if answer.status == 200:
            return HubAnswer(state="found", config=msgspec.json.decode(answer.body, type=dict[str, Any]))
    except msgspec.ValidationError:
        return HubAnswer(state="unreachable", reason=f"{name} is not a JSON object")
    except (*httpget.FAILURES, RecursionError) as error:
        return HubAnswer(state="unreachable", reason=said(error))
    state = _STATES.get(answer.status, "unreachable")
    return HubAnswer(state=state, reason=f"{answer.status} {answer.headers.get('X-Error-Code') or answer.reason}")


def note_of(checkpoint: str) -> str | None:
    """What a checkpoint on this machine says of itself, in `loadgen_note` of its config.json: of one with random
    weights, that it shows speed and energy only. None: nothing."""
    note = (local_config(checkpoint) or {}).get("loadgen_note")
    return " ".join(note.split()) if isinstance(note, str) and note.strip() else None


def held_by(checkpoint: str) -> Quantization | None:
    """What the checkpoint's config.json on this machine says; None for 16 bits, or when this machine has none."""
    return quantization_of(local_config(checkpoint) or {})


def remarks(held: Quantization | None, kv_cache_dtype: str | None) -> tuple[str, ...]:
    """What a reader of a server's figures must know of a quantized checkpoint whose keys and values are kept so."""
    said = []
    if held is not None and held.kv_cache is not None:
        if kv_cache_dtype in ("float16", "bfloat16"):
            done = f"it is served with a {kv_cache_dtype} one, as the other targets are"
        else:
            done = f"its keys and values are kept as {kv_cache_dtype or 'it asks'}"
        said.append(f"the checkpoint asks for a {held.kv_cache} KV cache: {done}")
    if held is not None and held.mixed:
        said.append(f"some modules of the checkpoint are {' or '.join(held.mixed)} instead of {held.numbers}")
    if held is not None and held.method == "bitsandbytes" and held.left:
        shown = ", ".join(held.left[:2]) + (", ..." if len(held.left) > 2 else "")
        said.append(
            f"{len(held.left)} modules of the checkpoint are left in 16 bits ({shown}): another precision than "
            f"{held.numbers} throughout"
        )
    return tuple(said)


def serves(recipe: Recipe, found: Quantization) -> bool:
    """Whether the recipe serves a checkpoint of that kind as it is."""
    if found.obstacle or found.method not in recipe.quant_methods:
        return False
    return found.numbers in (None, recipe.numbers)


def mismatch(recipe: Recipe, checkpoint: str, config: Mapping[str, Any], *, in_flight: bool) -> str | None:
    """One sentence when the recipe does not serve a checkpoint with this config.json, else None.

    `in_flight`: the recipe quantizes it while loading, so it must be 16-bit itself.
    """
    found = quantization_of(config)
    if found is not None and found.obstacle:
        return f"vLLM does not load {checkpoint}, which holds {found}: {found.obstacle}; name another with --checkpoint"
    if in_flight or not recipe.quant_methods:
        if found is None:
            return None
        remedy = "name it with --checkpoint" if serves(recipe, found) else "give the 16-bit model"
        return (
            f"recipe {recipe.name!r} starts from 16-bit weights and {checkpoint} holds {found}; {remedy} "
            f"({_recipe_for(found)})"
        )
    wanted = " or ".join(Quantization(method, recipe.numbers).kind for method in recipe.quant_methods)
    if found is None:
        held = "has no quantization_config; name another with --checkpoint"
    elif serves(recipe, found):
        return None
    else:
        held = f"holds {found}; name another with --checkpoint ({_recipe_for(found)})"
    return f"recipe {recipe.name!r} serves {wanted} and {checkpoint} {held}"


def _recipe_for(found: Quantization) -> str:
    names = [repr(name) for name, recipe in load_recipes().items() if serves(recipe, found)]
    return f"recipe {' or '.join(names)} serves it" if names else "no recipe serves it"


def require_quantization(recipe: Recipe, checkpoint: str, *, in_flight: bool, online: bool) -> None:
    """Raises UsageError when the checkpoint's config.json can be read and is not what the recipe serves.

    It is read from the folder or the hub's cache, and when `online` from the hub (at most 5 s); what cannot be read is
    left to vLLM, except that a file of this machine must be a JSON object, and that the hub must let it be read.
    """
    if fault := fault_of_config(checkpoint):
        raise UsageError(fault)
    config = local_config(checkpoint)
    if config is None and online and not is_offline():
        answer = ask_hub(checkpoint)
        if answer.state == "gated":
            raise UsageError(gated(checkpoint, answer.reason))
        config = answer.config
    if config is not None and (sentence := mismatch(recipe, checkpoint, config, in_flight=in_flight)):
        raise UsageError(sentence)


def gated(checkpoint: str, reason: str) -> str:
    """The sentence about a checkpoint that the hub does not give to everybody."""
    return (
        f"the hub does not give {checkpoint} to this user ({reason}): accept its licence on "
        f"{endpoint()}/{checkpoint} and set HF_TOKEN to a token that may read it; it may also not exist"
    )


def checkpoint_identity(checkpoint: str) -> str | None:
    """What tells these weights from others of the same name, without reading them; None where this machine has none.

    For an id of the hub the cached commit of its branch `main`; for a folder a sha256 of its config.json and of the
    names and sizes of its files.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        snapshot = cached_snapshot(checkpoint)
        return f"commit {snapshot.name}" if snapshot else None
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    content = msgspec.json.encode([read_config(folder), files])
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def ask_hub(checkpoint: str) -> HubAnswer:
    """`fetch_config` for an id; `absent` for what can be no id on the hub."""
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        return HubAnswer(state="absent", reason="not of the form ORGANISATION/NAME")
    return fetch_config(checkpoint)


def weights_of(folder: Path) -> Weights | None:
    """How many parameters the model in this folder has, by the headers of its safetensors; None: it is not a folder."""
    if not folder.is_dir():
        return None
    config, parameters = {}, None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = msgspec.json.decode(read_file(folder / "config.json", MOST_FACTS_BYTES), type=dict[str, Any])
    experts = any(config.get(key) for key in _EXPERTS)
    with contextlib.suppress(OSError, ValueError, RecursionError, OverflowError):
        if not experts and "quantization_config" not in config:
            parameters = sum(map(_elements, sorted(folder.glob("*.safetensors")))) or None
    return Weights(parameters=parameters, experts=experts)


class _Tensor(msgspec.Struct):
    shape: tuple[Count, ...] = ()


def _elements(path: Path) -> int:
    """Elements of all tensors of a file: its header is JSON behind its own length, 8 bytes little endian."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = msgspec.json.decode(file.read(min(length, MOST_HEADER_BYTES)), type=dict[str, _Tensor])
    return sum(math.prod(tensor.shape) for name, tensor in header.items() if name != "__metadata__")
