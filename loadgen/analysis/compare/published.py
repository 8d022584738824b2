"""Published: figures of the paper and of public energy measurements, compared with ours.

published.csv holds the figures and where they are from: arXiv 2602.13595 v1, captions of v2, the authors' rebuttal, and
joules per output token of the ML.ENERGY leaderboard. Its column `contradiction` says where a source contradicts itself.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

from loadgen.analysis.compare.row import CompareRow
from loadgen.load.openloop import CLOSED

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
_PRECISIONS = {
    "fp16": ("fp16", "bf16"), "bf16": ("bf16", "fp16"), "nf4": ("bnb-nf4",), "4bit": ("bnb-nf4",),
    "4bit (implied)": ("bnb-nf4",), "int8": ("bnb-int8",), "awq-int4": ("awq",), "fp8": ("fp8",),
}  # fmt: skip
"""Published precision -> ours; the paper's 8-bit and 4-bit are bitsandbytes LLM.int8() and NF4."""
_NOT_THE_NAME = re.compile(
    r"v\d+(\.\d+)*|instruct|it|chat|base|hf|awq|gptq|fp8|int[48]|bnb|nf4|[48]bit|w4a16|simulated|implied"
)
_OF_ACCURACY = ("accuracy", "t_si")


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A published figure; empty strings where its source does not say."""

    source: str
    model: str
    dataset: str
    gpu: str
    precision: str
    batch: str
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
    simulated: bool
    ours: tuple[Ours, ...]
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


def published_matches(rows: Sequence[CompareRow]) -> tuple[PublishedMatch, ...]:
    """Every published figure of a model, precision and metric that a run measured, in the order of published.csv.

    Models match by name, without organisation, version and tuning ("Mistral-7B"); a stated batch must be the asked
    concurrency, accuracy also the dataset.
    """
    targets: dict[tuple[str, str], list[CompareRow]] = {}
    for row in rows:
        targets.setdefault((row.run, row.target), []).append(row)
    found = []
    for figure in published():
        for members in targets.values():
            if figure.model and model_key(members[0].model or "") == model_key(figure.model):
                found += [_match(figure, members, column) for column in _MEASURED_BY.get(figure.metric, ())]
    return tuple(match for match in found if match is not None)


def model_key(name: str) -> str:
    """What is left of a model's name without organisation, version, tuning and format: `mistral-7b`."""
    words = re.split(r"[-_ ()]+", name.rsplit("/", 1)[-1].lower())
    return "-".join(word for word in words if word and not _NOT_THE_NAME.fullmatch(word))


def _match(figure: Published, members: Sequence[CompareRow], column: str) -> PublishedMatch | None:
    first = members[0]
    if first.precision not in _PRECISIONS.get(figure.precision, ()):
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
        simulated=first.simulated,
        ours=ours,
        differs=tuple(_differs(figure, first, column, stated)),
    )


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if ours > 0 and theirs > 0 else None


def _same(theirs: str, ours: str) -> bool:
    return ours.split(":")[0].lower() in theirs.lower()


def _differs(figure: Published, row: CompareRow, column: str, stated: int | None) -> list[str]:
    reasons = ["ours is SIMULATED, not measured"] if row.simulated else []
    if not figure.gpu or "not stated" in figure.gpu:
        reasons.append("their GPU is not stated")
    elif row.gpu is None:
        reasons.append("our GPU is not recorded")
    elif _gpu_key(figure.gpu) not in _gpu_key(row.gpu):
        reasons.append("another GPU")
    if stated is None and column not in _OF_ACCURACY:
        reasons.append("their B is not stated")
    if figure.dataset and not _same(figure.dataset, row.dataset):
        reasons.append(f"another dataset ({row.dataset})")
    elif column in _OF_ACCURACY:
        reasons.append("prompt, shots and extraction are not published")
    if figure.metric == "energy_per_query" and column == "energy_per_query_j":
        reasons.append("theirs is power limit × time (HLI), ours the GPU's own counter")
    if row.precision not in (figure.precision, *_PRECISIONS[figure.precision][:1]):
        reasons.append(f"ours is {row.precision}")
    if row.model and row.model.lower() != figure.model.lower():
        reasons.append(f"ours is {row.model}")
    if figure.source.startswith("arXiv") or "rebuttal" in figure.source:
        reasons.append("their serving engine is not stated")
    else:
        reasons.append("another vLLM version, other prompts")
    return reasons


def _gpu_key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)|^\d+x|SXM\d?|NVIDIA", "", name).lower())
