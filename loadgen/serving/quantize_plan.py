"""QuantizePlan: what `loadgen quantize` will make of a 16-bit model, where, and with which texts.

CalibrationTexts: what a quantizer runs through a model to see its activations; no sweep asks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from loadgen.bounds import free_memory_bytes
from loadgen.errors import UsageError
from loadgen.notation import did_you_mean, entries, spelled
from loadgen.options import QuantizeOptions, complete
from loadgen.record.manifest import CalibrationRecord, QuantizeRecord
from loadgen.serving.checkpoint import (
    checkpoint_identity,
    endpoint,
    fault_of_config,
    fetch_config,
    free_bytes,
    is_offline,
    local_config,
    quantize_record,
)
from loadgen.serving.process import used_bytes
from loadgen.serving.quantization import NESTED, quantization_of
from loadgen.serving.recipe import load_recipes, place_of
from loadgen.serving.requirements import CPU_INFO, size_of
from loadgen.workload import gsm8k
from loadgen.workload.dataset import existing_file
from loadgen.workload.published import fetch, sha256_of
from loadgen.workload.questions import SAMPLE_FILE, records
from loadgen.workload.traffic import role_of

_TEXTS = ("text", "content", "prompt")
_QUESTIONS, _ANSWERS = ("question", "Problem", "instruction"), ("answer", "solution", "Rationale", "output", "response")
_SCHEMA = 'give {"text": ...}, {"question": ..., "answer": ...} or {"messages": [...]} a line, or plain text'


class CalibrationTexts(msgspec.Struct, frozen=True, kw_only=True):
    """The texts of one file."""

    source: str
    """`gsm8k train`, `sample`, or the file's path."""
    sha256: str
    """The whole file's."""
    rows: tuple[dict[str, Any], ...]
    """Each `{"text": TEXT}` or `{"messages": [{"role": ROLE, "content": TEXT}, ...]}`."""

    def drawn(self, count: int, seed: int) -> bytes:
        """JSON lines of `count` rows, or of all if there are fewer: the same for the same seed."""
        chosen = Random(seed).sample(range(len(self.rows)), min(count, len(self.rows)))
        return b"".join(msgspec.json.encode(self.rows[index]) + b"\n" for index in chosen)


def calibration_texts(named: Path | None) -> CalibrationTexts:
    """The texts of a file, else GSM8K's train split from cache or download, else loadgen's own sample questions.

    Raises UsageError for a file that is missing or holds no text, naming the line.
    """
    if named is not None:
        return _read(existing_file(named, "--calibration"), str(named))
    try:
        return _read(fetch(gsm8k.TRAIN), "gsm8k train")
    except UsageError:
        return _read(SAMPLE_FILE, "sample")


def _read(path: Path, source: str) -> CalibrationTexts:
    rows = tuple(_row(f"{path}, line {number}", record) for number, record in records(path))
    if not rows:
        raise UsageError(f"{path} holds no text; {_SCHEMA}")
    return CalibrationTexts(source=source, sha256=sha256_of(path), rows=rows)


def _row(where: str, record: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(record, bytes):
        try:
            text = record.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{where} is not UTF-8 text; {_SCHEMA}") from None
        if not text.lstrip().startswith("{"):
            return {"text": text}
        try:
            record = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON ({error}); {_SCHEMA}") from None
    if messages := _messages(record.get("messages") or record.get("conversations")):
        return {"messages": messages}
    question, answer = _first(record, _QUESTIONS), _first(record, _ANSWERS)
    if question and answer:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    if single := _first(record, _TEXTS) or question:
        return {"text": single}
    raise UsageError(f"{where} has no text under a known name ({', '.join(map(str, record)) or 'none'}); {_SCHEMA}")


def _messages(given: Any) -> list[dict[str, str]]:
    """The messages of a conversation, OpenAI's names or ShareGPT's; empty where it is none."""
    found = []
    for message in given if isinstance(given, Sequence) and not isinstance(given, str) else ():
        if not isinstance(message, Mapping):
            return []
        role, content = message.get("role"), message.get("content") or message.get("value")
        if isinstance(speaker := message.get("from"), str):
            role = role_of(speaker)
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        found.append({"role": role, "content": content})
    return found


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((record[name] for name in names if isinstance(record.get(name), str) and record[name].strip()), None)


GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale, the best for speed first; vLLM's kernels run all three."""
MAX_TOKENS = 512
SAMPLES = {"cuda": 256, "cpu": 32}
_WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_LIBRARY_BYTES = 1.5e9
"""Memory of Python with torch and llm-compressor."""


class Format(msgspec.Struct, frozen=True):
    """What one format needs."""

    bits: int
    """Bits per weight."""
    calibrated: bool = True
    """It is made with texts."""
    grouped: bool = False
    """Weights share scales in groups along the input of a layer."""
    cpu_passes: float = 0.0
    """How often the texts run through the model, about, for the estimate of time on a CPU."""


FORMATS = {
    "w4a16-awq": Format(4, grouped=True, cpu_passes=60),
    "w4a16-gptq": Format(4, grouped=True, cpu_passes=8),
    "int8": Format(8, cpu_passes=8),
    "fp8": Format(8, calibrated=False),
}


def device_here() -> str:
    """`cuda` where NVML shows a GPU: its driver alone uses some of its memory."""
    return "cuda" if used_bytes() else "cpu"


class QuantizePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be made of one model; everything that can be known before has been checked."""

    model: str
    """A folder's path or an id."""
    records: dict[str, QuantizeRecord]
    """What each new checkpoint's file will say, without what is known afterwards; by format."""
    places: dict[str, Path]
    """The folder of each format, kept ones included."""
    kept: tuple[str, ...]
    """Formats whose checkpoint is there already, made from the same inputs."""
    texts: bytes
    """The calibration's JSON lines."""
    needs: str
    """One sentence about memory, disk and time."""


def formats_of(asked: str | Sequence[str]) -> list[str]:
    """The formats of `--to`. Raises UsageError for one that is not known, or for none."""
    names = [spelled(name, FORMATS) for name in (entries(asked) if isinstance(asked, str) and asked else asked)]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"--to {name}: {_unknown(name)}")
    if not names:
        raise UsageError(f"quantize needs --to, one or more of {', '.join(FORMATS)}")
    return list(dict.fromkeys(names))


def _unknown(name: str) -> str:
    made = {"awq": "w4a16-awq", "gptq": "w4a16-gptq", "w4a16": "w4a16-gptq or w4a16-awq", "w8a8": "int8"}.get(
        name.lower()
    )
    if made:
        return f"llm-compressor's formats are of the kind compressed-tensors; write {made}"
    return f"not a format; {did_you_mean(name, FORMATS)}known: {', '.join(FORMATS)}"


def plan_quantize(options: QuantizeOptions) -> QuantizePlan:
    """Checks model, calibration and places. Raises UsageError, one sentence, for the first that is not usable."""
    o = complete(QuantizeOptions, options)
    if not (model := o["model"]):
        raise UsageError("quantize needs --model: the 16-bit model, a Hugging Face id or a folder")
    formats = formats_of(o["to"])
    local = Path(model).expanduser()
    if model.startswith("-"):
        raise UsageError(f"--model {model}: starts with '-'; give a Hugging Face id or a folder")
    if model.startswith((".", "/", "~")) and not local.is_dir():
        raise UsageError(f"--model {model}: there is no such folder")
    out, calibration = (None if path is None else Path(path).expanduser() for path in (o["out"], o["calibration"]))
    model = str(local.resolve()) if local.is_dir() else model
    config = _config_of_16_bit(model)
    places = {name: _place(model, name, out) for name in formats}
    group_size = _group_size(model, config) if any(FORMATS[name].grouped for name in formats) else None
    lines, calibrated = b"", None
    if any(FORMATS[name].calibrated for name in formats):
        found = calibration_texts(calibration)
        lines = found.drawn(o["samples"] or SAMPLES[device_here()], o["seed"])
        calibrated = CalibrationRecord(
            source=found.source, sha256=found.sha256, samples=lines.count(b"\n"), seed=o["seed"], max_tokens=MAX_TOKENS,
            texts_sha256=hashlib.sha256(lines).hexdigest(),
        )  # fmt: skip
    identity = checkpoint_identity(model)
    records = {
        name: QuantizeRecord(
            format=name, model=model, model_identity=identity,
            group_size=group_size if FORMATS[name].grouped else None,
            calibration=calibrated if FORMATS[name].calibrated else None,
        )
        for name in formats
    }  # fmt: skip
    kept = tuple(name for name in formats if _is_kept(places[name], records[name]))
    new = {name: record for name, record in records.items() if name not in kept}
    needs = _needs(model, list(new), places, calibrated)
    return QuantizePlan(model=model, records=new, places=places, kept=kept, texts=lines, needs=needs)


def _config_of_16_bit(model: str) -> Mapping[str, Any]:
    if fault := fault_of_config(model):
        raise UsageError(fault)
    config = local_config(model)
    if config is None and Path(model).is_dir():
        raise UsageError(f"--model {model}: the folder has no config.json; give a folder as transformers saves it")
    if config is None and is_offline():
        raise UsageError(
            f"{model} is not in this machine's cache, and HF_HUB_OFFLINE forbids downloading it; give a folder"
        )
    if config is None:
        answer = fetch_config(model)
        if answer.state == "gated":
            raise UsageError(
                f"the hub does not give {model} to this user ({answer.reason}): accept its licence on "
                f"{endpoint()}/{model} and set HF_TOKEN to a token that may read it; it may also not exist"
            )
        if answer.config is None:
            raise UsageError(
                f"the hub gives no config.json of {model} ({answer.reason}); check the id, or give a folder"
            )
        config = answer.config
    if (found := quantization_of(config)) is not None:
        raise UsageError(f"{model} is quantized already ({found}); give the 16-bit model")
    return config


def _group_size(model: str, config: Mapping[str, Any]) -> int:
    """The largest group that divides the inputs of all layers."""
    text = next((part for name in NESTED if isinstance(part := config.get(name), Mapping)), config)
    widths = {name: text[name] for name in _WIDTHS if isinstance(text.get(name), int) and text[name] > 0}
    heads, head_dim = text.get("num_attention_heads"), text.get("head_dim")
    if isinstance(heads, int) and isinstance(head_dim, int):
        widths["num_attention_heads x head_dim"] = heads * head_dim
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths.values()):
            return size
    name, width = next((name, width) for name, width in widths.items() if width % GROUP_SIZES[-1])
    raise UsageError(
        f"{model} has a {name} of {width}, which is not a multiple of {GROUP_SIZES[-1]}: its 4-bit weights cannot be "
        "in groups; use --to int8 or fp8"
    )


def _place(model: str, name: str, out: Path | None) -> Path:
    place = place_of(model, name)
    if out is not None:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out}: is a file; name a folder")
        return out.absolute() / place.name
    return place


def _is_kept(place: Path, wanted: QuantizeRecord) -> bool:
    """Whether the checkpoint is there and made from the same inputs. Raises UsageError if something else is there."""
    if not place.exists():
        return False
    found = quantize_record(str(place))
    if found is None:
        raise UsageError(f"{place} exists and `loadgen quantize` did not make it; move it away, or name another --out")
    known = wanted.model_identity is not None
    inputs = ["format", "group_size", "calibration", *(["model_identity"] if known else [])]
    if found.calibration is not None and wanted.calibration is not None:  # the same texts under another name
        found = replace(found, calibration=replace(found.calibration, source=wanted.calibration.source))
    for name in inputs:
        if getattr(found, name) != getattr(wanted, name):
            others = {"calibration": "other calibration texts", "model_identity": "other 16-bit weights"}
            what = others.get(name, f"another {name.replace('_', ' ')}")
            raise UsageError(f"{place} was made with {what}; move it away, or name another --out")
    return True


def _needs(model: str, new: Sequence[str], places: Mapping[str, Path], calibrated: CalibrationRecord | None) -> str:
    """What it takes. Raises UsageError where memory or disk cannot hold it."""
    size = size_of(model, online=True)
    if size is None or not new:
        return "its size is not known before it is loaded"
    weights = size.parameters * 2
    memory, free = weights + _LIBRARY_BYTES, free_memory_bytes()
    if memory > free:
        raise UsageError(
            f"{model} needs about {_shown(memory)} of memory and {_shown(free)} are available; close other "
            "programs, or use a larger machine"
        )
    disk = sum(expected_disk(size.parameters, size.embeddings, FORMATS[name].bits) for name in new)
    if disk > (left := free_bytes(places[new[0]])):
        raise UsageError(
            f"{places[new[0]].parent} has {_shown(left)} free and about {_shown(disk)} are needed; name another --out"
        )
    said = f"about {_shown(memory)} of memory, {_shown(disk)} of disk"
    if device_here() == "cuda" or calibrated is None:
        return f"{said}; minutes"
    flops = 2 * size.parameters * calibrated.samples * MAX_TOKENS / 2
    minutes = sum(FORMATS[name].cpu_passes for name in new) * flops / _CPU_FLOPS / 60
    return f"{said}; on this CPU very roughly {max(1, round(minutes))} min"


def _shown(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"


_CPU_FLOPS = 2e10
"""Per second, of two cores in bfloat16; only for an estimate."""


def expected_disk(parameters: float, embeddings: float | None, bits: int) -> float:
    """Approximate bytes of a quantized checkpoint, whose embeddings stay in 16 bits."""
    apart = embeddings or 0.0
    return apart * 2 + (parameters - apart) * bits / 8 * 1.1


def arms_of(places: Mapping[str, Path], model: str) -> list[str]:
    """What `--serve` takes for these checkpoints; formats that no recipe serves on this machine are left out."""
    recipes = load_recipes().values()
    flags = CPU_INFO.read_text(encoding="utf-8").split() if device_here() == "cpu" and CPU_INFO.exists() else None
    usable = [recipe for recipe in recipes if flags is None or recipe.runs_on_cpu(flags)]
    serving = {name: recipe.name for recipe in usable for name in recipe.made_as}
    names = [serving[name] for name in places if name in serving]
    arms = []
    for name, place in places.items():
        if (recipe := serving.get(name)) is None:
            continue
        label = f"{name}:{recipe}" if names.count(recipe) > 1 else recipe
        found = ":" not in label and place == place_of(model, name)
        arms.append(label if found else f"{label}={place}")
    return arms
