"""Quantization: what a checkpoint's config.json says of how its weights are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

ENTRIES = ("quantization_config", "compression_config")
"""Where config.json says it; compressed-tensors once used the second name."""
NESTED = ("text_config", "language_config", "llm_config")
"""Parts of a multimodal model's config.json that may hold the entry instead."""
BESIDE = "hf_quant_config.json"
"""The file beside config.json in which ModelOpt before 0.31 says it."""
PLACE = "loadgen_place"
"""A key that `hub` adds to an entry that it read from `BESIDE`."""
ALWAYS_LEFT = frozenset({"lm_head", "re:.*lm_head", "re:.*lm_head.*", "model.lm_head"})
"""Modules that nearly every format leaves in 16 bits; they tell no two checkpoints apart."""
GPTQ_BITS = ("int4", "int8")


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
    """Where that is said, unless in config.json's own `quantization_config`."""
    obstacle: str | None = None
    """Why vLLM does not load it, as a clause about the checkpoint; None: nothing is known against it."""

    @property
    def kind(self) -> str:
        """Method and numbers: `awq int4`."""
        return f"{self.method} {self.numbers}" if self.numbers else self.method

    def __str__(self) -> str:
        """The kind with all that tells it from others of the kind: `gptq int4 (group 32, act-order)`."""
        details = [
            *([self.scheme] if self.scheme else []),
            *([f"group {self.group_size}"] if self.group_size else []),
            *([f"{self.activations} activations"] if self.activations else []),
            *(["act-order"] if self.act_order else []),
            *(["asymmetric"] if self.asymmetric else []),
            *([f"mixed with {' and '.join(self.mixed)}"] if self.mixed else []),
            *([f"{_modules(len(self.left))} left in 16 bits"] if self.left else []),
            *([f"asks for a {self.kv_cache} KV cache"] if self.kv_cache else []),
            *([f"said in {self.place}"] if self.place else []),
        ]
        return f"{self.kind} ({', '.join(details)})" if details else self.kind


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says; None for a 16-bit checkpoint. Content of a wrong shape is an `obstacle`, no error."""
    entry, place = _entry_of(config)
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        where = f"the quantization entry in its {place}" if place else "its quantization_config"
        return Quantization("unnamed", obstacle=f"{where} is {_shape(entry)} where a mapping is expected")
    place = entry.get(PLACE) or place
    method = entry.get("quant_method")
    if method is None and "producer" not in entry and (entry.get("load_in_4bit") or entry.get("load_in_8bit")):
        found = _bitsandbytes("bitsandbytes", entry)
        return msgspec.structs.replace(
            found,
            place=place,
            obstacle="its quantization_config has no quant_method, as an old transformers wrote it, which vLLM does "
            'not recognise: add "quant_method": "bitsandbytes" in a copy of it',
        )
    name = (
        "unnamed" if method in (None, "") else str(method).lower().replace("compressed_tensors", "compressed-tensors")
    )
    producer = entry.get("producer")
    if name == "unnamed" and (
        place == BESIDE or (isinstance(producer, Mapping) and producer.get("name") == "modelopt")
    ):
        name = "modelopt"
    read = _READERS.get(name.removesuffix("_fp4").removesuffix("_mixed").removesuffix("_mxfp8"), _other)
    return msgspec.structs.replace(read(name, entry), place=place)


def _entry_of(config: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The entry and, where it is not config.json's own, the part that holds it."""
    for key in ENTRIES:
        if config.get(key):
            return config[key], None
    for part in NESTED:
        inner = config.get(part)
        if isinstance(inner, Mapping):
            for key in ENTRIES:
                if inner.get(key):
                    return inner[key], part
    return None, None


def _integers(method: str, entry: Mapping[str, Any]) -> Quantization:
    """AWQ, GPTQ and AutoRound: integer weights in groups."""
    bits, obstacle = _bits(entry.get("bits", entry.get("w_bit")))
    mixed, left = _gptq_dynamic(entry.get("dynamic"))
    skipped = _names(entry.get("modules_to_not_convert"))
    asymmetric = method == "gptq" and entry.get("sym") is False
    layout = str(entry.get("version") or "gemm").lower()
    if method == "awq" and layout not in ("gemm", "gemmversion.gemm"):
        obstacle = obstacle or f"it is packed in AutoAWQ's {layout.upper()} layout, of which vLLM reads GEMM alone"
    if asymmetric:
        obstacle = obstacle or "it has zero points (sym: false), and vLLM serves GPTQ only without them"
    if method == "gptq" and bits is not None and bits not in GPTQ_BITS:
        obstacle = obstacle or f"vLLM serves GPTQ in 4 and 8 bits, not in {bits.removeprefix('int')}"
    packing = entry.get("packing_format")
    return Quantization(
        method,
        bits,
        scheme=_groups(entry)[0] or (f"packed as {packing}" if isinstance(packing, str) else None),
        group_size=_groups(entry)[1],
        act_order=entry.get("desc_act") is True,
        asymmetric=asymmetric,
        mixed=tuple(sorted(mixed - {bits or ""})),
        left=(*skipped, *left),
        obstacle=obstacle,
    )


def _groups(entry: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """`per channel` for a group of -1, else the size."""
    size = entry.get("group_size", entry.get("q_group_size"))
    if isinstance(size, bool) or not isinstance(size, int):
        return None, None
    return ("per channel", None) if size < 0 else (None, size or None)


def _gptq_dynamic(rules: Any) -> tuple[set[str], tuple[str, ...]]:
    """GPTQModel's rules by module: numbers of those stored otherwise, and patterns of those left alone (`-:`)."""
    if not isinstance(rules, Mapping):
        return set(), ()
    left = tuple(str(pattern) for pattern in rules if str(pattern).startswith("-:"))
    own = (rule.get("bits") for rule in rules.values() if isinstance(rule, Mapping))
    return {numbers for bits in own if (numbers := _bits(bits)[0])}, left


def _bits(value: Any) -> tuple[str | None, str | None]:
    """`int4`, and what is wrong with how it is written."""
    if isinstance(value, str) and value.strip().isdigit():
        number = value.strip()
        return f"int{number}", f"its `bits` is the text {value!r}, which vLLM refuses: write the number {number}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, None if value is None else f"its `bits` is {value!r}, which is not a number"
    return f"int{value:g}", None


def _fp8(method: str, entry: Mapping[str, Any]) -> Quantization:
    block = entry.get("weight_block_size")
    scheme = f"blocks of {'x'.join(map(str, block))}" if isinstance(block, list) and block else None
    return Quantization(
        method,
        "float8/float8",
        scheme=scheme or ("per tensor" if "activation_scheme" in entry else None),
        activations=_word(entry.get("activation_scheme")),
        left=_names(entry.get("modules_to_not_convert") or entry.get("ignored_layers")),
    )


def _bitsandbytes(method: str, entry: Mapping[str, Any]) -> Quantization:
    numbers, obstacle = None, None
    if entry.get("load_in_8bit"):
        numbers = "int8"
    elif entry.get("load_in_4bit", "bnb_4bit_quant_type" in entry):
        numbers = str(entry.get("bnb_4bit_quant_type", "fp4"))
    else:
        obstacle = "its quantization_config sets neither load_in_4bit nor load_in_8bit"
    double = "scales quantized again" if entry.get("bnb_4bit_use_double_quant") is True and numbers != "int8" else None
    left = _names(entry.get("llm_int8_skip_modules"))
    return Quantization(method, numbers, scheme=double, left=left, obstacle=obstacle)


def _compressed(method: str, entry: Mapping[str, Any]) -> Quantization:
    """compressed-tensors: the numbers of its groups, which each hold for some modules."""
    groups, left = entry.get("config_groups"), _names(entry.get("ignore"))
    if not isinstance(groups, Mapping) or not groups:
        shown = "missing" if groups is None and "config_groups" not in entry else _shape(groups)
        return Quantization(
            method, left=left, obstacle=f"its config_groups is {shown}: it does not say how its weights are stored"
        )
    found = []
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            return Quantization(
                method, str(name), left=left,
                obstacle=f"its config_groups gives {str(name)!r} as {_shape(group)} where a mapping is expected: vLLM "
                "needs the scheme written out",
            )  # fmt: skip
        for side in ("weights", "input_activations"):
            if not isinstance(group.get(side), Mapping | None):
                return Quantization(
                    method, left=left,
                    obstacle=f"the {side} of its config_groups are {_shape(group[side])} where a mapping is expected",
                )  # fmt: skip
        found.append(group)
    scheme = entry.get("kv_cache_scheme")
    obstacle = None
    if not isinstance(scheme, Mapping | None):
        obstacle, scheme = f"its kv_cache_scheme is {_shape(scheme)} where a mapping is expected", None
    numbers = sorted({_group_numbers(group) for group in found})
    weights = found[0].get("weights") or {}
    activations = found[0].get("input_activations") or {}
    own_name = {"nvfp4-pack-quantized": "NVFP4", "mxfp4-pack-quantized": "MXFP4", "marlin-24": "2:4 sparse"}
    return Quantization(
        method,
        " and ".join(filter(None, numbers)) or None,
        scheme=own_name.get(str(entry.get("format"))) or _strategy(weights),
        group_size=_groups(weights)[1] if _word(weights.get("strategy")) != "block" else None,
        activations=_dynamic(activations),
        act_order=_word(weights.get("actorder")) in ("group", "dynamic", "weight"),
        left=left,
        kv_cache=_numbers_of(scheme) if scheme else None,
        obstacle=obstacle,
    )


def _group_numbers(group: Mapping[str, Any]) -> str:
    sides = (group.get("weights"), group.get("input_activations"))
    return "/".join(_numbers_of(side) for side in sides if side)


def _numbers_of(side: Mapping[str, Any]) -> str:
    return f"{side.get('type', 'int')}{side.get('num_bits', '')}"


def _strategy(weights: Mapping[str, Any]) -> str | None:
    strategy, block = _word(weights.get("strategy")), weights.get("block_structure")
    if strategy == "block":
        return f"blocks of {'x'.join(map(str, block))}" if isinstance(block, list) and block else "in blocks"
    return {"tensor": "per tensor", "channel": "per channel"}.get(strategy or "")


def _dynamic(activations: Mapping[str, Any]) -> str | None:
    if "dynamic" not in activations:
        return None
    return "dynamic" if activations["dynamic"] else "static"


def _modelopt(method: str, entry: Mapping[str, Any]) -> Quantization:
    """NVIDIA ModelOpt: `quant_algo`, in a part named `quantization` in the older file."""
    inner = entry.get("quantization")
    said = inner if isinstance(inner, Mapping) else entry
    algorithm = said.get("quant_algo")
    cache = said.get("kv_cache_scheme") or said.get("kv_cache_quant_algo")
    if isinstance(cache, Mapping):
        cache = _numbers_of(cache)
    obstacle = None if algorithm else "it does not say its quant_algo"
    return Quantization(
        method,
        scheme=str(algorithm).upper() if algorithm else None,
        group_size=_groups(said)[1],
        left=_names(said.get("exclude_modules") or said.get("ignore")),
        kv_cache={"FP8": "float8", "NVFP4": "float4"}.get(str(cache).upper(), str(cache)) if cache else None,
        obstacle=obstacle,
    )


def _torchao(method: str, entry: Mapping[str, Any]) -> Quantization:
    """torchao: the name of its own configuration class."""
    kind = entry.get("quant_type")
    for key in ("default", "_type"):
        kind = kind.get(key) if isinstance(kind, Mapping) else kind
    return Quantization(method, scheme=kind if isinstance(kind, str) else None)


def _other(method: str, entry: Mapping[str, Any]) -> Quantization:
    """A method that loadgen does not know: what it says in the usual words."""
    return Quantization(
        method,
        _bits(entry.get("bits"))[0] if method != "unnamed" else None,
        group_size=_groups(entry)[1],
        left=_names(entry.get("modules_to_not_convert")),
    )


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
}


def _names(value: Any) -> tuple[str, ...]:
    """Modules that tell checkpoints apart; empty for what is no list of names."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return ()
    return tuple(name for name in value if isinstance(name, str) and name not in ALWAYS_LEFT)


def _word(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def _shape(value: Any) -> str:
    """How JSON calls what stands there."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an empty mapping" if not value else "a mapping"
    names: tuple[tuple[type, str], ...] = ((list, "a list"), (str, "a text"), (bool, "a truth value"))
    return next((name for kind, name in names if isinstance(value, kind)), "a number")
