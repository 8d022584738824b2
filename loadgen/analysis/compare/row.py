"""CompareRow: one target of one run at one concurrency, with all that makes it comparable or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from loadgen.analysis.compare.formula import paper_n_star
from loadgen.analysis.compare.size import model_size
from loadgen.analysis.fairness import SIXTEEN_BITS
from loadgen.analysis.run import Run
from loadgen.client.arrivals import CLOSED


class CompareRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of compare.csv; None: not measured, or not known. Intervals are 95%."""

    run: str
    model: str | None
    parameters: float | None
    parameters_source: str
    gpu: str | None
    """Names of the GPUs that were measured; a CPU's of a run on `--device cpu`. None: not recorded."""
    gpu_count: int | None
    dataset: str
    protocol: str
    fixed_length: int | None
    """Exactly so many output tokens per answer; None: answers end by themselves."""
    vllm: str | None
    kernels: str | None
    reference: str
    """Precision of the run's reference, which COR and T_SI are against."""
    is_reference: bool
    target: str
    precision: str
    concurrency: int
    """B; of an open loop the most requests in flight."""
    arrival: str = CLOSED
    """`closed`, `poisson:RATE` or `constant:RATE`."""
    running_mean: float | None
    tokens_per_s: float | None
    tokens_per_s_lo: float | None
    tokens_per_s_hi: float | None
    cor: float | None
    cor_lo: float | None
    cor_hi: float | None
    cor_class: str | None
    n_star_paper: float | None
    """What the paper's formula makes of this run's fit of Eq 19 (`paper_n_star`), in parameters."""
    energy_per_token_j: float | None
    energy_per_token_j_lo: float | None
    energy_per_token_j_hi: float | None
    energy_per_query_j: float | None
    energy_per_query_j_lo: float | None
    energy_per_query_j_hi: float | None
    energy_hli_per_query_j: float | None
    energy_per_correct_j: float | None
    rate_per_s: float | None = None
    """Of an open loop: sent."""
    ttft_ms_p50: float | None = None
    ttft_ms_p99: float | None = None
    e2e_ms_p50: float | None = None
    e2e_ms_p99: float | None = None
    slo: str | None = None
    """What goodput asks."""
    goodput_per_s: float | None = None
    goodput_share: float | None = None
    accuracy: float | None
    accuracy_lo: float | None
    accuracy_hi: float | None
    questions: int | None
    """That `accuracy` is averaged over."""
    t_si: float | None
    t_si_lo: float | None
    t_si_hi: float | None
    accuracy_verdict: str | None
    """Of the trust tests: worse, better, equivalent, inconclusive or refused; None for the reference."""
    s_si: float | None
    memory_needed_bytes: float | None
    memory_peak_bytes: float | None
    memory_total_bytes: float | None
    memory_headroom: float | None
    """1 - memory needed (else peak) over the GPUs' total."""
    repeats: int
    valid: int
    """Repeats with a valid load; the three below count those with valid latencies, energy and answers."""
    latency_valid: int | None
    energy_valid: int | None
    answers_valid: int | None
    pairs: int
    """Repeats that are valid on both sides of COR."""
    simulated: bool


_NUMBERS = (
    "running_mean", "tokens_per_s", "tokens_per_s_lo", "tokens_per_s_hi",
    "energy_per_token_j", "energy_per_token_j_lo", "energy_per_token_j_hi",
    "energy_per_query_j", "energy_per_query_j_lo", "energy_per_query_j_hi",
    "energy_hli_per_query_j", "energy_per_correct_j", "accuracy", "accuracy_lo", "accuracy_hi",
    "t_si", "t_si_lo", "t_si_hi", "s_si", "memory_needed_bytes", "memory_peak_bytes", "rate_per_s",
    "ttft_ms_p50", "ttft_ms_p99", "e2e_ms_p50", "e2e_ms_p99", "goodput_per_s", "goodput_share",
)  # fmt: skip


def _code(server: Mapping[str, Any]) -> list[str]:
    """What runs the model: the kernels, and that it ran without CUDA graphs or with another KV cache than 16-bit."""
    kept = server.get("kv_cache_dtype")
    return [
        *(server.get("kernels") or ()),
        *(["eager"] if server.get("eager") else []),
        *([f"{kept} KV cache"] if kept not in (None, *SIXTEEN_BITS) else []),
    ]


def rows_of(run: Run, label: str, sizes: Mapping[str, float]) -> list[CompareRow]:
    """A row per target x concurrency, in the order of summary.csv; `label` is what the run is called here, `sizes` the
    parameters given by run, model or target.

    Raises UsageError if the run's analysis.json is of an older version.
    """
    manifest, config = run.manifest, run.manifest["config"]
    precisions = dict(zip(run.summary["target"], run.summary["precision"], strict=True))
    indices = {(entry["target"], entry["concurrency"]): entry for entry in run.analysis["indices"]}
    trust = {(test["target"], test["concurrency"]): test["verdict"] for test in run.analysis["trust"]}
    valid = _valid_repeats(run)
    gpu, count, memory = _hardware(manifest)
    dataset = manifest["dataset"]["name"]
    rows = []
    for summary in run.summary.to_dict("records"):
        key = str(summary["target"]), int(summary["concurrency"])
        model = config.get("model") or _served(manifest, config["reference"])
        size = model_size(model, sizes, label, key[0])
        entry = indices.get(key, {})
        cor = entry.get("cor_tps") or {}
        figures = {name: _number(summary.get(name)) for name in _NUMBERS}
        used = figures["memory_needed_bytes"] or figures["memory_peak_bytes"]
        servers = _servers(manifest, key[0])
        rows.append(
            CompareRow(
                run=label,
                model=Path(model).name if model else None,
                parameters=size.parameters,
                parameters_source=size.source,
                gpu=gpu,
                gpu_count=count,
                dataset=dataset,
                protocol=manifest["protocol"]["name"],
                fixed_length=config.get("fixed_length"),
                vllm=_joined(server.get("version") for server in servers),
                kernels=_joined(name for server in servers for name in _code(server)),
                reference=precisions.get(config["reference"], config["reference"]),
                is_reference=key[0] == config["reference"],
                target=key[0],
                precision=str(summary["precision"]),
                concurrency=key[1],
                arrival=run.arrival or CLOSED,
                slo=run.analysis.get("slo"),
                cor=cor.get("value"),
                cor_lo=cor.get("lo"),
                cor_hi=cor.get("hi"),
                cor_class=entry.get("cor_class"),
                n_star_paper=paper_n_star(run.analysis.get("models", []), *key, size.parameters),
                questions=_count(summary["questions"]),
                accuracy_verdict=trust.get(key),
                memory_total_bytes=memory,
                memory_headroom=1 - used / memory if used and memory else None,
                repeats=int(summary["repeats"]),
                valid=int(summary["valid"]),
                latency_valid=_count(summary["latency_valid"]),
                energy_valid=_count(summary["energy_valid"]),
                answers_valid=_count(summary["answers_valid"]),
                pairs=len(valid.get(key, set()) & valid.get((config["reference"], key[1]), set())),
                simulated=bool(summary["simulated"]) or bool(manifest["simulated"]),
                **figures,
            )
        )
    return rows


def _valid_repeats(run: Run) -> dict[tuple[str, int], set[int]]:
    cells = run.valid_cells("tokens_per_s")
    found: dict[tuple[str, int], set[int]] = {}
    for target, b, repeat in zip(cells["target"], cells["concurrency"], cells["repeat"], strict=True):
        found.setdefault((str(target), int(b)), set()).add(int(repeat))
    return found


def _hardware(manifest: dict[str, Any]) -> tuple[str | None, int | None, float | None]:
    """Name, count and total memory (bytes) of what the servers ran on."""
    config = manifest["config"]
    if config.get("mode") == "serve" and config.get("device") == "cpu":
        host = manifest["host"]
        return f"CPU {host['cpu']}, {host['cpus']} cores", 1, None
    gpus = manifest.get("gpu") or []
    totals = [gpu["memory_total_bytes"] for gpu in gpus if gpu.get("memory_total_bytes")]
    names = " + ".join(sorted({str(gpu["name"]) for gpu in gpus})) or None
    return names, len(gpus) or None, float(sum(totals)) if totals and len(totals) == len(gpus) else None


def _servers(manifest: dict[str, Any], target: str) -> list[dict[str, Any]]:
    return [server for server in manifest["servers"] if server.get("name") == target]


def _served(manifest: dict[str, Any], reference: str) -> str | None:
    for server in [*_servers(manifest, reference), *manifest["servers"]]:
        if server.get("model"):
            return str(server["model"])
    return None


def _joined(words: Any) -> str | None:
    return ", ".join(sorted({str(word) for word in words if word})) or None


def _count(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or math.isinf(value) else float(value)
