"""External: figures that were measured elsewhere: published ones, compared with ours, and other tools' results.

published.csv holds the figures of the paper and of public energy measurements, and where they are from: arXiv
2602.13595 v1, captions of v2, the authors' rebuttal, joules per output token of the ML.ENERGY leaderboard and of
InferenceX, and those of FP16, LLM.int8() and NF4 by Zenodo 18900289 and its author's newer data (transformers, without
a server). Its column `contradiction` says where a source contradicts itself.

Imported are curves without energy: `vllm bench serve --save-result` (one object, or one per line with
--append-result), GuideLLM's benchmarks.json, AIPerf's profile_export_aiperf.json (GenAI-Perf's is alike). Figures stay
as their tool defines them.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.compare.row import CompareRow, model_size
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.load.openloop import CLOSED
from loadgen.notation import did_you_mean, spelled

_FILE = Path(__file__).with_name("published.csv")
_MEASURED_BY = {
    "accuracy": ("accuracy",),
    "energy_per_query": ("energy_per_query_j", "energy_hli_per_query_j"),
    "energy_per_token": ("energy_per_token_j",),
    "tps": ("tokens_per_s",),
    "COR": ("cor",),
    "S_SI": ("s_si",),
    "T_SI": ("t_si",),
}
"""Published metric -> our columns. Bounds, approximations and derived percentages have no column of ours."""
PRECISIONS = {
    "fp16": ("fp16", "bf16"), "bf16": ("bf16", "fp16"), "nf4": ("bnb-nf4",), "4bit": ("bnb-nf4",),
    "4bit (implied)": ("bnb-nf4",), "int8": ("bnb-int8",), "awq-int4": ("awq",), "fp8": ("fp8",),
}  # fmt: skip
"""Published precision -> ours; the paper's 8-bit and 4-bit are bitsandbytes LLM.int8() and NF4."""
_NOT_THE_NAME = re.compile(
    r"v\d+(\.\d+)*|instruct|it|chat|base|hf|awq|gptq|fp8|int[48]|bnb|nf4|[48]bit|w4a16|simulated|implied"
)
_OF_ACCURACY = ("accuracy", "t_si")
_FULL = 0.9
"""The share of the stated batch from which on it counts as having run."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A published figure; empty strings where its source does not say."""

    source: str
    model: str
    dataset: str
    gpu: str
    precision: str
    batch: str
    """The batch or concurrency asked for."""
    running: str
    """Mean sequences in a step."""
    prompt_tokens: str
    answer_tokens: str
    metric: str
    value: float
    unit: str
    contradiction: str


class Ours(msgspec.Struct, frozen=True, kw_only=True):
    """Our figure at one asked concurrency, and how many times the published one it is."""

    concurrency: int
    value: float
    ratio: float | None
    """Ours over the published one, for COR of the slowdowns 1 + COR. None where either figure is not positive."""


class PublishedMatch(msgspec.Struct, frozen=True, kw_only=True):
    """One published figure and one target of one run."""

    published: Published
    run: str
    target: str
    column: str
    """A column of compare.csv."""
    gpu: str | None
    ours: tuple[Ours, ...]
    other_model: bool
    """Theirs is another one, about as large."""
    differs: tuple[str, ...]
    """Why the two may differ."""


@cache
def published() -> tuple[Published, ...]:
    """All of published.csv."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        return tuple(msgspec.convert(row, Published, strict=False) for row in csv.DictReader(file))


def published_n_star() -> tuple[Published, ...]:
    """What Figure 8 of the paper's v2 brackets N* with, in billions of parameters."""
    return tuple(figure for figure in published() if figure.metric.startswith("N_star"))


SIZES, MOST_MATCHES = 1.15, 3
"""How many times another model's size ours may be, and the published figures that a run is compared with."""


def published_matches(rows: Sequence[CompareRow]) -> tuple[PublishedMatch, ...]:
    """Published figures of what a run measured, at most `MOST_MATCHES` of them, the nearest first.

    The format must be the same, the GPU of the same class and their number (accuracy needs none), and the size within
    `SIZES`; accuracy needs the same model and dataset, by name without organisation, version and tuning
    ("Mistral-7B"). A stated batch must be the asked concurrency. Simulated figures are compared with none.
    """
    targets: dict[str, dict[str, list[CompareRow]]] = {}
    for row in rows:
        if not row.simulated:
            targets.setdefault(row.run, {}).setdefault(row.target, []).append(row)
    found: list[PublishedMatch] = []
    for run in targets.values():
        matches = [
            match
            for figure in published()
            for members in run.values()
            if _comparable(figure, members[0])
            for column in _MEASURED_BY.get(figure.metric, ())
            if (match := _match(figure, members, column)) is not None
        ]
        found += sorted(matches, key=lambda match: (match.other_model, len(match.differs)))[:MOST_MATCHES]
    return tuple(found)


def _comparable(figure: Published, row: CompareRow) -> bool:
    """The same model; or, for what its size decides, one as large. On the same class of GPU, and as many."""
    named = model_key(row.model or "") == model_key(figure.model)
    if figure.metric == "accuracy" or not figure.model:
        return named and bool(figure.model)
    theirs, ours = model_size(figure.model, None, {}, row.run).parameters, row.parameters
    if not named and (theirs is None or ours is None or not 1 / SIZES <= ours / theirs <= SIZES):
        return False
    count = re.match(r"(\d+)x", figure.gpu)
    class_ = _gpu_key(figure.gpu)
    return _same_class(class_, _gpu_key(row.gpu or "")) and row.gpu_count == (int(count[1]) if count else 1)


def model_key(name: str) -> str:
    """What is left of a model's name without organisation, version, tuning and format: `mistral-7b`."""
    words = re.split(r"[-_ ()]+", name.rsplit("/", 1)[-1].lower())
    return "-".join(word for word in words if word and not _NOT_THE_NAME.fullmatch(word))


def _match(figure: Published, members: Sequence[CompareRow], column: str) -> PublishedMatch | None:
    first = members[0]
    if first.precision not in PRECISIONS.get(figure.precision, ()):
        return None
    if column in _OF_ACCURACY and not _same(figure.dataset, first.dataset):
        return None
    stated = int(figure.batch) if figure.batch.isdigit() else None
    offset = 1.0 if column == "cor" else 0.0
    ours = tuple(
        Ours(concurrency=row.concurrency, value=value, ratio=_ratio(value + offset, figure.value + offset))
        for row in members
        if (value := getattr(row, column)) is not None
        and stated in (None, row.concurrency)
        and (row.arrival == CLOSED or column in _OF_ACCURACY)
    )
    if not ours:
        return None
    return PublishedMatch(
        published=figure,
        run=first.run,
        target=first.target,
        column=column,
        gpu=f"{first.gpu} × {first.gpu_count}" if first.gpu else None,
        ours=ours,
        other_model=model_key(first.model or "") != model_key(figure.model),
        differs=tuple(_differs(figure, first, column, stated)),
    )


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if ours > 0 and theirs > 0 else None


def _same(theirs: str, ours: str) -> bool:
    return ours.split(":")[0].lower() in theirs.lower()


def _differs(figure: Published, row: CompareRow, column: str, stated: int | None) -> list[str]:
    reasons = []
    if stated is None and column not in _OF_ACCURACY:
        reasons.append("their B is not stated")
    if stated is not None and figure.running and float(figure.running) < _FULL * stated:
        reasons.append(f"on average {float(figure.running):.0f} of their {stated} sequences ran")
    if figure.dataset and not _same(figure.dataset, row.dataset):
        reasons.append(f"another dataset ({row.dataset})")
    elif column in _OF_ACCURACY:
        reasons.append("prompt, shots and extraction are not published")
    if figure.metric == "energy_per_query" and column == "energy_per_query_j":
        reasons.append("theirs is power limit × time (HLI), ours the GPU's own counter")
    if row.precision not in (figure.precision, *PRECISIONS[figure.precision][:1]):
        reasons.append(f"ours is {row.precision}")
    if row.model and row.model.lower() != figure.model.lower():
        reasons.append(f"ours is {row.model}")
    if figure.source.startswith("arXiv") or "rebuttal" in figure.source:
        reasons.append("their serving engine is not stated")
    elif "hongping-zh" in figure.source:
        reasons.append("theirs is transformers, without a server")
    elif figure.source.startswith("InferenceX"):
        reasons.append("another engine or version, other prompts")
    else:
        reasons.append("another vLLM version, other prompts")
    return reasons


def _same_class(theirs: str, ours: str) -> bool:
    """An RTX 4090 is no RTX 4090 D."""
    return bool(theirs) and re.search(rf"{re.escape(theirs)}(?!d$|ti|super|laptop)", ours) is not None


def _gpu_key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)|^\d+x|SXM\d?|NVIDIA", "", name).lower())


Object = Mapping[str, Any]


class ImportedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark; None: the tool does not give it."""

    tool: str
    label: str
    model: str | None
    concurrency: int | None
    """Asked for; None where the load was not a fixed concurrency."""
    requests: float | None
    """Completed."""
    errors: float | None
    tokens_per_s: float
    """Output tokens."""
    ttft_ms_mean: float | None = None
    ttft_ms_p50: float | None = None
    ttft_ms_p99: float | None = None
    tpot_ms_mean: float | None = None
    tpot_ms_p50: float | None = None
    tpot_ms_p99: float | None = None
    itl_ms_mean: float | None = None
    itl_ms_p50: float | None = None
    itl_ms_p99: float | None = None
    e2e_ms_mean: float | None = None
    e2e_ms_p50: float | None = None
    e2e_ms_p99: float | None = None
    file: str


DIFFERENCES = {
    "vllm-bench": "tokens/s counts ramp and drain; ITL is per message, however many tokens it brings; "
    "latencies start when a slot is free",
    "guidellm": "TPOT counts the first token too; times of tokens between first and last are interpolated, on the wall "
    "clock; tokens/s is the tool's mean over completed requests",
    "aiperf": "ITL is a mean per request (what loadgen calls TPOT); tokens/s is over the whole profiling phase",
}
"""Tool -> how its definitions differ from loadgen's."""


def read_import(argument: str) -> list[ImportedPoint]:
    """The points of TOOL[:LABEL]=FILE, by ascending concurrency; LABEL defaults to the file's name.

    Raises UsageError if the argument, the tool or the file is not one of these.
    """
    left, equals, file = argument.partition("=")
    tool, _, label = left.partition(":")
    if not equals or not file:
        raise UsageError(f"--import {argument} has no file; write TOOL[:LABEL]=FILE, such as vllm-bench:awq=awq.json")
    if (tool := spelled(tool, _READERS)) not in _READERS:
        choose = f"{did_you_mean(tool, _READERS)}choose from {', '.join(_READERS)}"
        raise UsageError(f"--import {argument}: {tool!r} is not a known tool; {choose}")
    path, (read, expected) = Path(file), _READERS[tool]
    try:
        objects = _objects(read_file(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UsageError(f"--import {argument}: {file} cannot be read ({reason}); name the tool's JSON file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--import {argument}: {file} is not JSON ({error}); name the tool's JSON file") from None
    try:
        given = {"tool": tool, "label": label or path.stem, "file": file}
        points = [msgspec.convert({**fields, **given}, ImportedPoint) for found in objects for fields in read(found)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        points = []
    if not points:
        raise UsageError(f"--import {argument}: {file} has no result of {tool}; name {expected}")
    return sorted(points, key=lambda point: point.concurrency or math.inf)


def _objects(text: str) -> list[Any]:
    """One JSON value, or one per line."""
    try:
        return [json.loads(text)]
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _vllm_bench(found: Object) -> Iterator[Object]:
    latencies = {
        f"{ours}_ms_{name}": _number(found.get(f"{theirs}_{key}_ms"))
        for ours, key in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el"))
        for name, theirs in (("mean", "mean"), ("p50", "median"), ("p99", "p99"))
    }
    yield latencies | {
        "model": _first(found.get("model_id")),
        "concurrency": _count(found.get("max_concurrency")),
        "requests": _number(found.get("completed")),
        "errors": _number(found.get("failed")),
        "tokens_per_s": _rate(found["output_throughput"]),
    }


_GUIDELLM = {
    "ttft": ("time_to_first_token_ms", 1.0),
    "tpot": ("time_per_output_token_ms", 1.0),
    "itl": ("inter_token_latency_ms", 1.0),
    "e2e": ("request_latency", 1e3),
}
"""Our latency -> GuideLLM's, and how many ms its unit has."""


def _guidellm(found: Object) -> Iterator[Object]:
    for benchmark in found["benchmarks"]:
        metrics = benchmark["metrics"]
        config = benchmark.get("config") or benchmark.get("args") or {}
        strategy = config.get("strategy") or {}
        alone = 1 if strategy.get("type_") == "synchronous" else None
        latencies: dict[str, float | None] = {}
        for ours, (key, factor_ms) in _GUIDELLM.items():
            given = _at(metrics, key, "successful") or {}
            values = {"mean": given.get("mean"), "p50": given.get("median"), "p99": _at(given, "percentiles", "p99")}
            latencies |= {f"{ours}_ms_{name}": _number(value, factor_ms) for name, value in values.items()}
        yield latencies | {
            "model": _first(_at(config, "backend", "model"), _at(found, "args", "model")),
            "concurrency": _count(strategy.get("streams")) or alone,
            "requests": _number(_at(metrics, "request_totals", "successful")),
            "errors": _number(_at(metrics, "request_totals", "errored")),
            "tokens_per_s": _rate(metrics["output_tokens_per_second"]["successful"]["mean"]),
        }


_IN_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}
_AIPERF = {"ttft": "time_to_first_token", "itl": "inter_token_latency", "e2e": "request_latency"}


def _aiperf(found: Object) -> Iterator[Object]:
    latencies: dict[str, float | None] = {}
    for ours, key in _AIPERF.items():
        given = found.get(key) or {}
        values = {"mean": given.get("avg"), "p50": given.get("p50"), "p99": given.get("p99")}
        factor_ms = _IN_MS[given.get("unit", "ms")]
        latencies |= {f"{ours}_ms_{name}": _number(value, factor_ms) for name, value in values.items()}
    config = found.get("input_config") or {}
    models = (_at(config, *keys) for keys in (("endpoint", "model_names"), ("models", "items"), ("model_names",)))
    yield latencies | {
        "model": _first(*models),
        "concurrency": _aiperf_concurrency(found, config),
        "requests": _number(_at(found, "request_count", "avg")),
        "errors": _number(_at(found, "error_request_count", "avg")),
        "tokens_per_s": _rate(found["output_token_throughput"]["avg"]),
    }


def _aiperf_concurrency(found: Object, config: Object) -> int | None:
    """Where the versions of AIPerf and GenAI-Perf keep it."""
    swept = _at(found, "run_info", "variation_values") or {}
    phases = config.get("phases") or {}
    named = phases if isinstance(phases, Mapping) else {str(phase.get("name", "")): phase for phase in phases}
    profiling = [phase for name, phase in named.items() if "warm" not in name.lower()]
    places = [
        *(value for key, value in swept.items() if key.split(".")[-1] == "concurrency"),
        _at(config, "loadgen", "concurrency"),
        *(phase.get("concurrency") for phase in profiling),
        _at(config, "perf_analyzer", "stimulus", "concurrency"),
    ]
    return next((count for place in places if (count := _count(place)) is not None), None)


_READERS: Mapping[str, tuple[Callable[[Object], Iterator[Object]], str]] = {
    "vllm-bench": (_vllm_bench, "a file of `vllm bench serve --save-result`"),
    "guidellm": (_guidellm, "its benchmarks.json"),
    "aiperf": (_aiperf, "its profile_export_aiperf.json"),
}
"""Tool -> the fields of the points in one JSON object, and which file to name."""


def _at(found: Object, *keys: str) -> Any:
    value: Any = found
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _first(*names: Any) -> str | None:
    """The first model name among strings, lists of strings and lists of objects with a name."""
    for name in names:
        one = name[0] if isinstance(name, list) and name else name
        one = one.get("name") if isinstance(one, Mapping) else one
        if isinstance(one, str) and one:
            return one
    return None


def _number(value: Any, factor: float = 1.0) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return factor * value if known else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number else None


def _rate(value: Any) -> float:
    number = _number(value)
    if number is None or number <= 0:
        raise ValueError(value)
    return number
