"""A checkpoint: its config.json (from a folder, the hub's cache or the hub) and whether a recipe serves it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen import httpget
from loadgen.bounds import MOST_FACTS_BYTES, Count
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.record.manifest import QuantizeRecord, Weights
from loadgen.secret import error_text
from loadgen.serving.gguf import gguf_type, is_gguf
from loadgen.serving.quantization import BESIDE, ENTRIES, NESTED, PLACE, Quantization, quantization_of
from loadgen.serving.recipe import Naming, Recipe, in_sweep, load_recipes

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 5.0
TOKEN_FILE = "HF_TOKEN_FILE"
MOST_TOKEN_BYTES = 4096
"""Tokens have 37 characters."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""
_YES = frozenset({"1", "ON", "YES", "TRUE"})

State = Literal["found", "absent", "gated", "unreachable"]
_NO_REPOSITORY = "RepoNotFound"
"""The hub's word where not only the file is missing."""
_STATES: dict[int, State] = {401: "gated", 403: "gated", 404: "absent"}


class HubReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says about one checkpoint."""

    state: State
    """`gated`: a token or an accepted licence is missing; without a token the hub says so of absent ones too."""
    config: dict[str, Any] | None = None
    """The config.json of a found one."""
    reason: str = ""


def endpoint() -> str:
    """`$HF_ENDPOINT`, else the public hub; without a trailing slash."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` forbids connections to the hub."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_token() -> str | None:
    """`$HF_TOKEN`, else the content of `$HF_TOKEN_FILE`, else what `hf auth login` stored in `$HF_TOKEN_PATH` or in
    `token` of `$HF_HOME`; else None. Raises UsageError if `$HF_TOKEN_FILE` names a file without exactly one token."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token
    if not (named := os.environ.get(TOKEN_FILE)):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            path = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()
            return path.read_text(encoding="utf-8").strip() or None
        return None
    path = Path(named).expanduser()
    try:
        token = read_file(path, MOST_TOKEN_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{TOKEN_FILE} names {path}, which cannot be read ({reason})") from None
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise UsageError(f"{TOKEN_FILE} names {path}, which does not hold exactly one token; write it again")
    return token


def token_variables() -> dict[str, str]:
    """`$HF_TOKEN_FILE` under the name that the hub's library reads, for a server's environment."""
    named = os.environ.get(TOKEN_FILE)
    return {"HF_TOKEN_PATH": str(Path(named).expanduser().absolute())} if named else {}


def token_warning() -> str | None:
    """One sentence if other users of this machine can read the file `$HF_TOKEN_FILE`, else None."""
    path = Path(os.environ.get(TOKEN_FILE) or os.devnull).expanduser()
    with contextlib.suppress(OSError):
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o044:
            return f"{TOKEN_FILE}: other users of this machine can read {path}; run `chmod 600 {path}`"
    return None


def _hub_home() -> Path:
    """`$HF_HOME`, else `huggingface` in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def cache_folder() -> Path:
    """The hub's cache of checkpoints: `$HF_HUB_CACHE`, else `hub` in `$HF_HOME` or in the user's cache folder."""
    return Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()


def free_bytes(folder: Path) -> int:
    """Free on the file system of a folder, or of its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _cached(checkpoint: str) -> Path:
    return cache_folder() / f"models--{checkpoint.replace('/', '--')}"


def cached_snapshot(checkpoint: str) -> Path | None:
    """The folder of the cached branch `main` of a checkpoint; None when it is not cached."""
    folder = _cached(checkpoint)
    try:
        commit = read_file(folder / "refs" / "main").decode().strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def downloaded_bytes(checkpoint: str) -> int:
    """Bytes of a hub checkpoint in the cache, unfinished downloads included; 0 without any, or for a folder."""
    total = 0
    with contextlib.suppress(OSError):
        for path in (_cached(checkpoint) / "blobs").iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
    return total


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint's folder holds weight files as vLLM reads them, not only an index of them."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a checkpoint's folder; None when there is none or it is not a JSON object.

    Where it names no quantization, the content of the file `BESIDE` is used, as in vLLM.
    """
    config = _read_object(folder / "config.json")
    return _with_beside(config, _read_object(folder / BESIDE)) if config and _wants_beside(config) else config


def fault_of_config(checkpoint: str) -> str | None:
    """One sentence when this machine has a config.json of the checkpoint that is not a JSON object, else None."""
    folder = _folder_of(checkpoint)
    path = folder / "config.json" if folder else None
    if path is None or not path.exists():
        return None
    try:
        _object(read_file(path))
    except TypeError as error:
        return f"{path} {error}; replace it with the checkpoint's own config.json"
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"{path} cannot be read as JSON ({reason}); replace it with the checkpoint's own config.json"
    return None


def _read_object(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return _object(read_file(path))
    return None


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object; some config.json hold Infinity. Raises ValueError or RecursionError, TypeError for other JSON."""
    value = json.loads(content)
    if not isinstance(value, dict):
        raise TypeError(f"is a JSON {type(value).__name__} where an object is expected")
    return value


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
    """The config.json of a folder, or of an id in the cache; None when this machine has none. For GGUF one is made."""
    if is_gguf(checkpoint):
        return {ENTRIES[0]: {"quant_method": "gguf", "quant_type": gguf_type(checkpoint)}}
    folder = _folder_of(checkpoint)
    return read_config(folder) if folder else None


def fetch_config(checkpoint: str) -> HubReply:
    """GET of the config.json of an id's branch `main`, with the user's token if any; at most 5 s each, never raises.

    `absent` for what cannot be an id. Where it names no quantization, the file `BESIDE` is fetched too.
    """
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        return HubReply(state="absent", reason="not of the form ORGANISATION/NAME")
    answer = _fetch(checkpoint, "config.json")
    if answer.config is None or not _wants_beside(answer.config):
        return answer
    return HubReply(state="found", config=_with_beside(answer.config, _fetch(checkpoint, BESIDE).config))


def _fetch(checkpoint: str, name: str) -> HubReply:
    try:
        url = f"{endpoint()}/{checkpoint}/resolve/main/{name}"
        answer = httpget.fetch(url, MOST_FACTS_BYTES, timeout_s=TIMEOUT_S, bearer=hub_token())
        if answer.status == 200:
            return HubReply(state="found", config=_object(answer.body))
    except TypeError:
        return HubReply(state="unreachable", reason=f"{name} is not a JSON object")
    except (*httpget.FAILURES, RecursionError) as error:
        return HubReply(state="unreachable", reason=error_text(error))
    state = _STATES.get(answer.status, "unreachable")
    return HubReply(state=state, reason=f"{answer.status} {answer.headers.get('X-Error-Code') or answer.reason}")


def note_of(checkpoint: str) -> str | None:
    """`loadgen_note` of the config.json on this machine, such as that weights are random; None without one."""
    note = (local_config(checkpoint) or {}).get("loadgen_note")
    return " ".join(note.split()) if isinstance(note, str) and note.strip() else None


QUANTIZE_FILE = "loadgen_quantize.json"
"""The file beside config.json that says how `loadgen quantize` made the checkpoint."""


def quantize_record(checkpoint: str) -> QuantizeRecord | None:
    """How `loadgen quantize` made the checkpoint; None where its folder does not say."""
    folder = _folder_of(checkpoint)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return msgspec.json.decode(read_file(folder / QUANTIZE_FILE), type=QuantizeRecord) if folder else None
    return None


def local_quantization(checkpoint: str) -> Quantization | None:
    """How the checkpoint's config.json on this machine says it is quantized; None for 16 bits, or without a file."""
    return quantization_of(local_config(checkpoint) or {})


def remarks(found: Quantization | None, kv_cache_dtype: str | None) -> tuple[str, ...]:
    """Sentences that a reader of figures of this checkpoint needs, served with a KV cache of that dtype."""
    if found is None:
        return ()
    sentences = []
    if found.kv_cache is not None:
        if kv_cache_dtype in ("float16", "bfloat16"):
            done = f"it is served with a {kv_cache_dtype} one, as the other targets are"
        else:
            done = f"its keys and values are kept as {kv_cache_dtype or 'it asks'}"
        sentences.append(f"the checkpoint asks for a {found.kv_cache} KV cache: {done}")
    if found.mixed:
        sentences.append(f"some modules of the checkpoint are {' or '.join(found.mixed)} instead of {found.numbers}")
    if found.method == "bitsandbytes" and found.left:
        shown = ", ".join(found.left[:2]) + (", ..." if len(found.left) > 2 else "")
        sentences.append(
            f"{len(found.left)} modules of the checkpoint are left in 16 bits ({shown}): another precision than "
            f"{found.numbers} throughout"
        )
    return tuple(sentences)


def serves(recipe: Recipe, found: Quantization) -> bool:
    """Whether the recipe serves a checkpoint that is quantized in this way."""
    return not found.obstacle and _is_alike(recipe, found) and _has_scheme(recipe, found)


def _is_alike(recipe: Recipe, found: Quantization) -> bool:
    """Whether its method and numbers are the recipe's."""
    numbers_fit = found.numbers is None or not recipe.numbers or found.numbers in recipe.numbers
    return found.method in recipe.quant_methods and numbers_fit


def _has_scheme(recipe: Recipe, found: Quantization) -> bool:
    return recipe.scheme is None or re.fullmatch(recipe.scheme, found.scheme or "") is not None


def mismatch(
    recipe: Recipe, checkpoint: str, config: Mapping[str, Any], *, in_flight: bool, naming: Naming = in_sweep
) -> str | None:
    """One sentence when the recipe does not serve a checkpoint with this config.json, else None.

    `in_flight`: the recipe quantizes it while loading, so it must be 16-bit itself.
    """
    another = f"give another (an id or a folder): {naming(recipe.name, 'ORG/NAME')}"
    found = quantization_of(config)
    wants_16_bit = in_flight or not recipe.quant_methods
    if found is None:
        if wants_16_bit:
            return None
        held = f"has no quantization_config; {another}"
    elif found.obstacle:
        return f"vLLM does not load {checkpoint}, which holds {found}: {found.obstacle}; {another}"
    elif wants_16_bit:
        start = f"recipe {recipe.name!r} starts from 16-bit weights and {checkpoint}"
        return f"{start} holds {found}; give the 16-bit model with --model ({_recipe_for(found, checkpoint, naming)})"
    elif serves(recipe, found):
        return None
    else:
        held = f"holds {found}; {another} ({_recipe_for(found, checkpoint, naming)})"
    kinds = [Quantization(method, one).kind for method in recipe.quant_methods for one in recipe.numbers or (None,)]
    wanted = " or ".join(kinds) + (f" ({recipe.format})" if found is not None and _is_alike(recipe, found) else "")
    return f"recipe {recipe.name!r} serves {wanted} and {checkpoint} {held}"


def _recipe_for(found: Quantization, checkpoint: str, naming: Naming) -> str:
    names = [name for name, recipe in load_recipes().items() if serves(recipe, found)]
    if not names:
        return "no recipe serves it"
    return f"recipe {' or '.join(map(repr, names))} serves it: {naming(names[0], checkpoint)}"


def require_quantization(
    recipe: Recipe, checkpoint: str, *, in_flight: bool, online: bool, naming: Naming = in_sweep
) -> None:
    """Raises UsageError when the checkpoint's config.json can be read and is not what the recipe serves.

    It is read from the folder or the hub's cache, and if `online` from the hub (at most 5 s). vLLM decides about one
    that cannot be read, but a file of this machine must be a JSON object, and the hub must not refuse to give it or
    say that it has no such checkpoint.
    """
    if fault := fault_of_config(checkpoint):
        raise UsageError(fault)
    config = local_config(checkpoint)
    if config is None and online and not is_offline():
        answer = fetch_config(checkpoint)
        if answer.state == "gated":
            raise UsageError(
                f"the hub does not give {checkpoint} to this user ({answer.reason}): accept its licence on "
                f"{endpoint()}/{checkpoint} and set HF_TOKEN to a token that may read it; it may also not exist"
            )
        if answer.state == "absent" and answer.reason.endswith(_NO_REPOSITORY):
            raise UsageError(
                f"the hub has no checkpoint {checkpoint} ({answer.reason}): check its name, or set HF_TOKEN if it is "
                f"private; another is given so: {naming(recipe.name, 'ORG/NAME')}"
            )
        config = answer.config
    if config is not None and (sentence := mismatch(recipe, checkpoint, config, in_flight=in_flight, naming=naming)):
        raise UsageError(sentence)


def checkpoint_identity(checkpoint: str) -> str | None:
    """What distinguishes these weights from others of the same name, without reading them; None if they are not here.

    For an id of the hub the cached commit of its branch `main`; for a folder a sha256 of its config.json and of the
    names and sizes of its files; for a file its size.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_file():
        return f"{folder.stat().st_size} bytes"
    if not folder.is_dir():
        snapshot = cached_snapshot(checkpoint)
        return f"commit {snapshot.name}" if snapshot else None
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    content = msgspec.json.encode([read_config(folder), files])
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def weights_of(folder: Path) -> Weights | None:
    """The parameters of the model in this folder, by the headers of its safetensors; None: it is not a folder."""
    if not folder.is_dir():
        return None
    config, parameters = _read_object(folder / "config.json") or {}, None
    experts = any(config.get(key) for key in _EXPERTS)
    with contextlib.suppress(OSError, ValueError, RecursionError, OverflowError):
        if not experts and "quantization_config" not in config:
            parameters = sum(map(_elements, sorted(folder.glob("*.safetensors")))) or None
    return Weights(parameters=parameters, experts=experts)


class _Tensor(msgspec.Struct):
    shape: tuple[Count, ...] = ()


def _elements(path: Path) -> int:
    """Elements of all tensors of a file: its header is JSON after its length, 8 bytes little endian."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = msgspec.json.decode(file.read(min(length, MOST_HEADER_BYTES)), type=dict[str, _Tensor])
    return sum(math.prod(tensor.shape) for name, tensor in header.items() if name != "__metadata__")
