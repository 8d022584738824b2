"""CompareRow: one target of one run at one concurrency. ModelSize: how many parameters, and how that is known."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from loadgen.analysis.models.study import ModelStudy
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.warnings import SIXTEEN_BITS
from loadgen.errors import UsageError
from loadgen.load.openloop import CLOSED
from loadgen.record.manifest import Manifest, ServerRecord, Weights

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_GIVEN = re.compile(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([KMBT]?)\s*", re.IGNORECASE)
_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
_EXPERTS_IN_NAME = re.compile(
    r"\d+x\d+(\.\d+)?[MB]|(?<![A-Za-z0-9])(A\d+(\.\d+)?[MB]|\d+E)(?![A-Za-z0-9])", re.IGNORECASE
)
"""`8x7B`, `30B-A3B`, `17B-16E`."""


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
        raise UsageError(f"--size {text} is not a number of parameters; write it as 7.25B or 600M")
    return value


def model_size(name: str | None, counted: Weights | None, given: Mapping[str, float], *keys: str) -> ModelSize:
    """The size of a model by its id or folder: what is `given` under any of `keys` or the model's name; else what the
    sweep `counted` in its folder; else the number in its name. A mixture of experts has two sizes and is never guessed.

    No file is read: the name may come from somebody else's manifest.
    """
    for key in (*keys, name, Path(name).name if name else None):
        if key is not None and key in given:
            return ModelSize(parameters=given[key], source="--size")
    if not name:
        return ModelSize(parameters=None, source=f"the model has no name: give --size {keys[-1]}=7.25B")
    short = Path(name).name
    if counted is not None and counted.parameters is not None:
        return ModelSize(parameters=float(counted.parameters), source="safetensors")
    if (counted is not None and counted.experts) or _EXPERTS_IN_NAME.search(short):
        return _asked(short, "is a mixture of experts, whose size is not guessed")
    sizes = {float(number) * _UNITS[unit.upper()] for number, unit in _IN_NAME.findall(short)}
    if len(sizes) == 1:
        return ModelSize(parameters=sizes.pop(), source="name")
    return _asked(short, "names two sizes" if sizes else "does not say its size")


def _asked(short: str, why: str) -> ModelSize:
    return ModelSize(parameters=None, source=f"{short} {why}: give --size {short}=7.25B (with its own number)")


def paper_n_star(models: Sequence[ModelStudy], target: str, concurrency: int, parameters: float | None) -> float | None:
    """N* = phi B_W B / (alpha (pi - p)), in parameters, with phi and alpha of the run's own fit of Eq 19 (M1, joules
    per token); None without that fit, or where it gives no B*.

    Eq 19's alpha as fitted to a model of N parameters stands for the formula's alpha N / B_W, and
    B* = alpha (pi - p) / phi, so that N* = N B / B*: it grows with B.
    """
    for study in models:
        if (study.target, study.quantity) != (target, "energy_per_token_j") or parameters is None:
            continue
        for fitted in study.models:
            if fitted.model == "M1" and fitted.b_star is not None:
                return parameters * concurrency / fitted.b_star.b
    return None


class CompareRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of compare.csv; None: not measured, or not known. Intervals are 95%."""

    run: str
    model: str | None = None
    parameters: float | None = None
    parameters_source: str
    gpu: str | None = None
    """Names of the GPUs that were measured; a CPU's of a run on `--device cpu`. None: not recorded."""
    gpu_count: int | None = None
    """That the target used."""
    dataset: str
    protocol: str
    fixed_length: int | None = None
    """Exactly so many output tokens per answer; None: answers end where the model ends them."""
    vllm: str | None = None
    kernels: str | None = None
    reference: str
    """Precision of the run's reference, which COR and T_SI are against."""
    is_reference: bool
    target: str
    precision: str
    concurrency: int
    """B; of an open loop the most requests in flight."""
    arrival: str = CLOSED
    """`closed`, `poisson:RATE` or `constant:RATE`."""
    running_mean: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_lo: float | None = None
    tokens_per_s_hi: float | None = None
    tokens_per_s_per_gpu: float | None = None
    cor: float | None = None
    cor_lo: float | None = None
    cor_hi: float | None = None
    cor_class: str | None = None
    n_star_paper: float | None = None
    """What the paper's formula makes of this run's fit of Eq 19 (`paper_n_star`), in parameters."""
    energy_per_token_j: float | None = None
    energy_per_token_j_lo: float | None = None
    energy_per_token_j_hi: float | None = None
    energy_per_query_j: float | None = None
    energy_per_query_j_lo: float | None = None
    energy_per_query_j_hi: float | None = None
    energy_hli_per_query_j: float | None = None
    energy_per_correct_j: float | None = None
    rate_per_s: float | None = None
    """Requests sent a second in an open loop."""
    ttft_ms_p50: float | None = None
    ttft_ms_p99: float | None = None
    e2e_ms_p50: float | None = None
    e2e_ms_p99: float | None = None
    slo: str | None = None
    """What goodput asks."""
    goodput_per_s: float | None = None
    goodput_share: float | None = None
    accuracy: float | None = None
    accuracy_lo: float | None = None
    accuracy_hi: float | None = None
    questions: int | None = None
    """That `accuracy` is averaged over."""
    t_si: float | None = None
    t_si_lo: float | None = None
    t_si_hi: float | None = None
    accuracy_verdict: str | None = None
    """By the trust tests: worse, better, equivalent, inconclusive or refused; None for the reference."""
    s_si: float | None = None
    memory_needed_bytes: float | None = None
    memory_peak_bytes: float | None = None
    memory_needed_per_gpu_bytes: float | None = None
    memory_total_bytes: float | None = None
    memory_headroom: float | None = None
    """1 - memory needed (else peak) over the GPUs' total."""
    kv_cache_tokens: int | None = None
    kv_cache_card_tokens: int | None = None
    kv_batch: int | None = None
    repeats: int
    valid: int
    """Repeats with a valid load; the three below count those with valid latencies, energy and answers."""
    latency_valid: int | None = None
    energy_valid: int | None = None
    answers_valid: int | None = None
    pairs: int
    """Repeats that are valid on both sides of COR."""
    simulated: bool


def _code(server: ServerRecord) -> list[str]:
    """What runs the model: the kernels, and that it ran without CUDA graphs or with another KV cache than 16-bit."""
    kept = server.kv_cache_dtype
    return [
        *(server.kernels or ()),
        *(["eager"] if server.eager else []),
        *([f"{kept} KV cache"] if kept not in (None, *SIXTEEN_BITS) else []),
    ]


def rows_of(run: Run, label: str, sizes: Mapping[str, float]) -> list[CompareRow]:
    """A row per target x concurrency, in the order of summary.csv; `label` is what the run is called here, `sizes` the
    parameters given by run, model or target.

    Raises UsageError if the run's analysis.json is of an older version.
    """
    manifest, config = run.manifest, run.manifest.config
    precisions = dict(zip(run.summary["target"], run.summary["precision"], strict=True))
    indices = {(entry.target, float(entry.concurrency)): entry for entry in run.analysis.indices}
    trust = {(test.target, test.held): test.verdict for test in run.analysis.trust}
    valid: dict[tuple[str, float], set[int]] = {}
    for cell in run.valid_cells("tokens_per_s").to_dict("records"):
        valid.setdefault((cell["target"], held_in(cell)), set()).add(cell["repeat"])
    gpu, count, memory = _hardware(manifest)
    model = config.model or _served(manifest, config.reference)
    rows = []
    for summary in run.summary.to_dict("records"):
        target, b = summary["target"], summary["concurrency"]
        key = target, held_in(summary)
        figures = {name: v for name, v in summary.items() if pd.notna(v) and v not in (math.inf, -math.inf)}
        size = model_size(model, manifest.weights, sizes, label, target)
        cor = indices[key].cor_tps if key in indices else None
        gpus = int(figures.get("gpus") or 0) or count
        total = memory / count * gpus if memory and count and gpus else memory
        used = figures.get("memory_needed_bytes") or figures.get("memory_peak_bytes")
        servers = _servers(manifest, target)
        known = {
            "run": label,
            "model": Path(model).name if model else None,
            "parameters": size.parameters,
            "parameters_source": size.source,
            "gpu": gpu,
            "gpu_count": gpus,
            "dataset": run.dataset,
            "protocol": manifest.protocol.name,
            "fixed_length": config.fixed_length,
            "vllm": _joined(server.version for server in servers),
            "kernels": _joined(name for server in servers for name in _code(server)),
            "reference": precisions.get(config.reference, config.reference),
            "is_reference": target == config.reference,
            "arrival": figures.get("arrival", CLOSED),
            "slo": run.analysis.slo,
            "cor": cor.value if cor else None,
            "cor_lo": cor.lo if cor else None,
            "cor_hi": cor.hi if cor else None,
            "cor_class": indices[key].cor_class if key in indices else None,
            "n_star_paper": paper_n_star(run.analysis.models, target, b, size.parameters),
            "accuracy_verdict": trust.get(key),
            "memory_total_bytes": total,
            "memory_headroom": 1 - used / total if used and total else None,
            "pairs": len(valid.get(key, set()) & valid.get((config.reference, key[1]), set())),
            "simulated": bool(summary["simulated"]) or manifest.simulated,
        }
        rows.append(msgspec.convert(figures | known, CompareRow, strict=False))  # a column with gaps is float
    return rows


def _hardware(manifest: Manifest) -> tuple[str | None, int | None, float | None]:
    """Name, count and total memory (bytes) of what the servers ran on."""
    if manifest.config.mode in ("serve", "compose") and manifest.config.device == "cpu":
        return f"CPU {manifest.host.cpu}, {manifest.host.cpus} cores", 1, None
    gpus = manifest.gpu or ()
    totals = [gpu.memory_total_bytes for gpu in gpus if gpu.memory_total_bytes]
    names = " + ".join(sorted({gpu.name for gpu in gpus})) or None
    return names, len(gpus) or None, float(sum(totals)) if totals and len(totals) == len(gpus) else None


def _servers(manifest: Manifest, target: str) -> list[ServerRecord]:
    return [server for server in manifest.servers if server.name == target]


def _served(manifest: Manifest, reference: str) -> str | None:
    servers = [*_servers(manifest, reference), *manifest.servers]
    return next((server.model for server in servers if server.model), None)


def _joined(words: Any) -> str | None:
    return ", ".join(sorted({str(word) for word in words if word})) or None
