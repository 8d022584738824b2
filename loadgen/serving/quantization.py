"""Quantization: what a checkpoint's config.json says of how its weights are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

ENTRIES = ("quantization_config", "compression_config")
"""Keys of config.json that hold it; compressed-tensors once used the second."""
NESTED = ("text_config", "language_config", "llm_config")
"""Parts of a multimodal model's config.json that may hold the entry instead."""
BESIDE = "hf_quant_config.json"
"""The file next to config.json that ModelOpt before 0.31 wrote instead."""
PLACE = "loadgen_place"
"""The key that `checkpoint` adds to an entry that it read from `BESIDE`."""
ALWAYS_LEFT = frozenset({"lm_head", "re:.*lm_head", "re:.*lm_head.*", "model.lm_head"})
"""Modules that nearly every format leaves in 16 bits: they are not listed."""
GPTQ_BITS = ("int4", "int8")
FORMATS = {"nvfp4-pack-quantized": "NVFP4", "mxfp4-pack-quantized": "MXFP4", "marlin-24": "2:4 sparse"}
"""Formats of compressed-tensors with their own names."""


class Quantization(msgspec.Struct, frozen=True):
    """How a checkpoint is quantized."""

    method: str
    """`quantization_config.quant_method`, in lower case."""
    numbers: str | None = None
    """Weights, and activations unless 16-bit: `int4`, `int8/int8`, `float8/float8`, `nf4`; None: it does not say."""
    scheme: str | None = None
    """What shares a scale: `per tensor`, `per channel`, `blocks of 128x128`; or a format's own name, such as NVFP4."""
    group_size: int | None = None
    """Weights that share a scale; None: not in groups, or it does not say."""
    activations: str | None = None
    """`dynamic` (scaled while serving) or `static` (scaled by the checkpoint); None: 16-bit, or it does not say."""
    act_order: bool = False
    """GPTQ quantized the columns in the order of their activations (`desc_act`): needs another, slower kernel."""
    asymmetric: bool = False
    """GPTQ with zero points (`sym: false`)."""
    mixed: tuple[str, ...] = ()
    """The numbers of modules that are stored otherwise than `numbers`."""
    left: tuple[str, ...] = ()
    """Modules, or patterns of their names, that stay in 16 bits, besides the output layer."""
    kv_cache: str | None = None
    """The numbers in which it asks for keys and values to be kept: `float8`; None: it asks for none."""
    place: str | None = None
    """Where that is said, unless in the top level of config.json."""
    obstacle: str | None = None
    """Why vLLM does not load it, as a clause about the checkpoint; None: nothing is known against it."""

    @property
    def kind(self) -> str:
        """Method and numbers: `awq int4`."""
        return f"{self.method} {self.numbers}" if self.numbers else self.method

    def __str__(self) -> str:
        """The kind and its details: `gptq int4 (group 32, act-order)`."""
        details = (
            self.scheme,
            self.group_size and f"group {self.group_size}",
            self.activations and f"{self.activations} activations",
            self.act_order and "act-order",
            self.asymmetric and "asymmetric",
            self.mixed and f"mixed with {' and '.join(self.mixed)}",
            self.left and f"{len(self.left)} module{'s' * (len(self.left) > 1)} left in 16 bits",
            self.kv_cache and f"asks for a {self.kv_cache} KV cache",
            self.place and f"said in {self.place}",
        )
        shown = ", ".join(detail for detail in details if detail)
        return f"{self.kind} ({shown})" if shown else self.kind


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says; None for a 16-bit checkpoint. Malformed content becomes an `obstacle`, not an error."""
    entry, place = _entry_of(config)
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        where = f"the quantization entry in its {place}" if place else "its quantization_config"
        return Quantization("unnamed", obstacle=f"{where} is {_shape(entry)} where a mapping is expected")
    place = entry.get(PLACE) or place
    method = entry.get("quant_method")
    if method is None and "producer" not in entry and (entry.get("load_in_4bit") or entry.get("load_in_8bit")):
        obstacle = (
            "its quantization_config has no quant_method, as an old transformers wrote it, which vLLM does "
            'not recognise: add "quant_method": "bitsandbytes" in a copy of it'
        )
        return msgspec.structs.replace(_bitsandbytes("bitsandbytes", entry), place=place, obstacle=obstacle)
    producer = entry.get("producer")
    if method not in (None, ""):
        name = str(method).lower().replace("compressed_tensors", "compressed-tensors")
    elif place == BESIDE or (isinstance(producer, Mapping) and producer.get("name") == "modelopt"):
        name = "modelopt"
    else:
        name = "unnamed"
    read = _READERS.get(name.removesuffix("_fp4").removesuffix("_mixed").removesuffix("_mxfp8"), _other)
    return msgspec.structs.replace(read(name, entry), place=place)


def _entry_of(config: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The entry, and the nested part that holds it; None: the top level."""
    for part in (None, *NESTED):
        inner = config if part is None else config.get(part)
        if isinstance(inner, Mapping) and (entry := inner.get(ENTRIES[0]) or inner.get(ENTRIES[1])):
            return entry, part
    return None, None


def _integers(method: str, entry: Mapping[str, Any]) -> Quantization:
    """AWQ, GPTQ and AutoRound: integer weights in groups."""
    bits, obstacle = _bits(entry.get("bits", entry.get("w_bit")))
    layout = str(entry.get("version") or "gemm").lower()
    asymmetric = method == "gptq" and entry.get("sym") is False
    if obstacle is None and method == "awq" and layout not in ("gemm", "gemmversion.gemm"):
        obstacle = f"it is packed in AutoAWQ's {layout.upper()} layout, and vLLM reads only GEMM"
    if obstacle is None and asymmetric:
        obstacle = "it has zero points (sym: false), and vLLM serves GPTQ only without them"
    if obstacle is None and method == "gptq" and bits not in (None, *GPTQ_BITS):
        obstacle = f"vLLM serves GPTQ in 4 and 8 bits, not in {str(bits).removeprefix('int')}"
    # GPTQModel's rules by module: bits of those stored otherwise, and patterns of those left alone (`-:`).
    dynamic = entry.get("dynamic")
    rules: Mapping[str, Any] = dynamic if isinstance(dynamic, Mapping) else {}
    mixed = {_bits(rule.get("bits"))[0] for rule in rules.values() if isinstance(rule, Mapping)} - {bits, None}
    packing, (scheme, group_size) = entry.get("packing_format"), _groups(entry)
    return Quantization(
        method,
        bits,
        scheme=scheme or (f"packed as {packing}" if isinstance(packing, str) else None),
        group_size=group_size,
        act_order=entry.get("desc_act") is True,
        asymmetric=asymmetric,
        mixed=tuple(sorted(filter(None, mixed))),
        left=(*_names(entry.get("modules_to_not_convert")), *(rule for rule in map(str, rules) if rule[:2] == "-:")),
        obstacle=obstacle,
    )


def _groups(entry: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """`per channel` for a group of -1, else the size."""
    size = entry.get("group_size", entry.get("q_group_size"))
    if isinstance(size, bool) or not isinstance(size, int):
        return None, None
    return ("per channel", None) if size < 0 else (None, size or None)


def _bits(value: Any) -> tuple[str | None, str | None]:
    """`int4`, and what is wrong with how it is written."""
    if isinstance(value, str) and value.strip().isdigit():
        number = value.strip()
        return f"int{number}", f"its `bits` is the text {value!r}, which vLLM refuses: write the number {number}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, None if value is None else f"its `bits` is {value!r}, which is not a number"
    return f"int{value:g}", None


def _blocks(shape: Any) -> str | None:
    return f"blocks of {'x'.join(map(str, shape))}" if isinstance(shape, list) and shape else None


def _fp8(method: str, entry: Mapping[str, Any]) -> Quantization:
    return Quantization(
        method,
        "float8/float8",
        scheme=_blocks(entry.get("weight_block_size")) or ("per tensor" if "activation_scheme" in entry else None),
        activations=_word(entry.get("activation_scheme")),
        left=_names(entry.get("modules_to_not_convert") or entry.get("ignored_layers")),
    )


def _bitsandbytes(method: str, entry: Mapping[str, Any]) -> Quantization:
    left = _names(entry.get("llm_int8_skip_modules"))
    if entry.get("load_in_8bit"):
        return Quantization(method, "int8", left=left)
    double = "scales quantized again" if entry.get("bnb_4bit_use_double_quant") is True else None
    if entry.get("load_in_4bit", "bnb_4bit_quant_type" in entry):
        return Quantization(method, str(entry.get("bnb_4bit_quant_type", "fp4")), scheme=double, left=left)
    obstacle = "its quantization_config sets neither load_in_4bit nor load_in_8bit"
    return Quantization(method, scheme=double, left=left, obstacle=obstacle)


def _compressed(method: str, entry: Mapping[str, Any]) -> Quantization:
    """compressed-tensors: the numbers of its groups, which each hold for some modules."""
    groups, left = entry.get("config_groups"), _names(entry.get("ignore"))
    numbers, obstacle = _group_numbers(groups, written="config_groups" in entry)
    if obstacle is not None or groups is None:
        return Quantization(method, numbers, left=left, obstacle=obstacle)
    kv_cache = entry.get("kv_cache_scheme")
    if not isinstance(kv_cache, Mapping | None):
        obstacle, kv_cache = f"its kv_cache_scheme is {_shape(kv_cache)} where a mapping is expected", None
    first = next(iter(groups.values()))
    weights, activations = first.get("weights") or {}, first.get("input_activations") or {}
    strategy, packing = _word(weights.get("strategy")), str(first.get("format") or entry.get("format"))
    schemes = {
        "tensor": "per tensor", "channel": "per channel",
        "block": _blocks(weights.get("block_structure")) or "in blocks",
    }  # fmt: skip
    scheme = FORMATS.get(packing) or _micro_scales(weights) or schemes.get(strategy or "")
    if obstacle is None and scheme == "2:4 sparse":
        obstacle = "it is 2:4 sparse, which vLLM no longer serves"
    elif obstacle is None and numbers in ("int4", "int8") and packing not in ("None", "pack-quantized"):
        obstacle = f"its format is {packing}, and vLLM serves weights of {numbers} alone only as pack-quantized"
    return Quantization(
        method,
        numbers,
        scheme=scheme,
        group_size=_groups(weights)[1] if strategy != "block" else None,
        activations=("dynamic" if activations["dynamic"] else "static") if "dynamic" in activations else None,
        act_order=_word(weights.get("actorder")) in ("group", "dynamic", "weight"),
        left=left,
        kv_cache=_numbers_of(kv_cache) if kv_cache else None,
        obstacle=obstacle,
    )


def _micro_scales(weights: Mapping[str, Any]) -> str | None:
    """NVFP4, MXFP4 or MXFP8, as vLLM tells them from other floating-point weights."""
    if weights.get("type") != "float":
        return None
    if weights.get("strategy") == "tensor_group" and weights.get("group_size") == 16:
        return "NVFP4"
    if weights.get("strategy") == "group" and weights.get("group_size") == 32:
        bits = weights.get("num_bits")
        return "MXFP4" if bits == 4 else "MXFP8" if bits == 8 else None
    return None


def _group_numbers(groups: Any, *, written: bool) -> tuple[str | None, str | None]:
    """The numbers of all groups, and what is malformed about them."""
    if not isinstance(groups, Mapping) or not groups:
        shown = _shape(groups) if written else "missing"
        return None, f"its config_groups is {shown}: it does not say how its weights are stored"
    numbers = set()
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            given = f"its config_groups gives {str(name)!r} as {_shape(group)} where a mapping is expected"
            return str(name), f"{given}: vLLM needs the scheme written out"
        sides = {side: group.get(side) for side in ("weights", "input_activations")}
        for side, content in sides.items():
            if not isinstance(content, Mapping | None):
                return None, f"the {side} of its config_groups are {_shape(content)} where a mapping is expected"
        numbers.add("/".join(_numbers_of(content) for content in sides.values() if content))
    return " and ".join(filter(None, sorted(numbers))) or None, None


def _numbers_of(side: Mapping[str, Any]) -> str:
    return f"{side.get('type', 'int')}{side.get('num_bits', '')}"


def _modelopt(method: str, entry: Mapping[str, Any]) -> Quantization:
    """NVIDIA ModelOpt: `quant_algo`, in a part named `quantization` in the older file."""
    inner = entry.get("quantization")
    entry = inner if isinstance(inner, Mapping) else entry
    algorithm = entry.get("quant_algo")
    cache = entry.get("kv_cache_scheme") or entry.get("kv_cache_quant_algo")
    cache = _numbers_of(cache) if isinstance(cache, Mapping) else cache
    return Quantization(
        method,
        scheme=str(algorithm).upper() if algorithm else None,
        group_size=_groups(entry)[1],
        left=_names(entry.get("exclude_modules") or entry.get("ignore")),
        kv_cache={"FP8": "float8", "NVFP4": "float4"}.get(str(cache).upper(), str(cache)) if cache else None,
        obstacle=None if algorithm else "it does not name its quant_algo",
    )


def _torchao(method: str, entry: Mapping[str, Any]) -> Quantization:
    """torchao: the name of its own configuration class."""
    kind = entry.get("quant_type")
    for key in ("default", "_type"):
        kind = kind.get(key) if isinstance(kind, Mapping) else kind
    return Quantization(method, scheme=kind if isinstance(kind, str) else None)


def _gguf(method: str, entry: Mapping[str, Any]) -> Quantization:
    kind = entry.get("quant_type")
    return Quantization(method, scheme=kind if isinstance(kind, str) else None)


def _other(method: str, entry: Mapping[str, Any]) -> Quantization:
    """A method that loadgen does not know, by the keys that most methods use."""
    bits = _bits(entry.get("bits"))[0] if method != "unnamed" else None
    return Quantization(method, bits, group_size=_groups(entry)[1], left=_names(entry.get("modules_to_not_convert")))


_READERS = {
    "awq": _integers,
    "gptq": _integers,
    "auto-round": _integers,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "torchao": _torchao,
    "gguf": _gguf,
}


def _names(value: Any) -> tuple[str, ...]:
    """Names of modules without those of ALWAYS_LEFT; empty for what is not a list of names."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return ()
    return tuple(name for name in value if isinstance(name, str) and name not in ALWAYS_LEFT)


def _word(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def _shape(value: Any) -> str:
    """The JSON type of a value, in words."""
    if value == {}:
        return "an empty mapping"
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
