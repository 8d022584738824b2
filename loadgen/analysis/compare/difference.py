"""RunDifference: two runs side by side, the second over the first, for each target and metric at each B (or rate)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.estimate import Estimate, rate_ratio
from loadgen.analysis.kvcache import kv_caches
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.tables import read_table
from loadgen.analysis.trust.accuracy import compare_accuracy
from loadgen.analysis.trust.answers import Answers, GradedAnswer
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.record.cell import held_of, level

RATIOS = (
    "tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2e_ms_p50", "energy_per_token_j",
    "energy_per_query_j", "power_w_mean",
)  # fmt: skip
"""Columns of cells.csv that are compared as a ratio; `accuracy` is compared as a difference."""
_METERED = ("energy_per_token_j", "energy_per_query_j", "power_w_mean")


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """What is not the same in both runs; "not recorded" where a run does not say."""

    what: str
    first: str
    second: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one target at one B."""

    target: str
    concurrency: int
    arrival: str = CLOSED
    metric: str
    first: float
    second: float
    """Means over the valid repeats, as in summary.csv; accuracies over the questions that both runs answered."""
    n_first: int
    n_second: int
    """Valid repeats; of an accuracy the questions that both runs answered."""
    change: Estimate
    """Second over first, a ratio of geometric means; of an accuracy second minus first. No ends with one repeat."""

    @property
    def held(self) -> float:
        """B, or the rate."""
        return held_of(self.concurrency, self.arrival)

    @property
    def verdict(self) -> str:
        """higher, lower or not decided: of the second run, by the interval; without one "no interval"."""
        same = 0.0 if self.metric == "accuracy" else 1.0
        if self.change.lo is None:
            return "no interval"
        return "higher" if self.change.above(same) else "lower" if self.change.below(same) else "not decided"


class RunDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What a second run is against a first one."""

    first: str
    second: str
    """What the runs are called."""
    simulated: bool
    """Either of them is."""
    refusal: str | None = None
    """Why nothing is compared; what was asked must be the same."""
    differs: tuple[Condition, ...] = ()
    """What may have made the differences."""
    differences: tuple[Difference, ...] = ()
    """In the order of the first run's targets, B and `RATIOS`, the accuracy last."""
    kept_servers: tuple[str, ...] = ()
    """The runs whose repeats are of servers that were not restarted between them."""
    missing: tuple[str, ...] = ()
    """What is measured or valid in one of the runs only, a sentence each."""


def run_difference(names: tuple[str, str], runs: tuple[Run, Run], rows: Sequence[CompareRow]) -> RunDifference:
    """The second of two runs against the first. `rows`: both runs', as `rows_of` makes them."""
    ours, theirs = ({_key(row): row for row in rows if row.run == name} for name in names)
    differs = tuple(_conditions(runs, list(ours.values()), list(theirs.values())))
    simulated = any(run.manifest.simulated for run in runs)
    kept = tuple(name for name, run in zip(names, runs, strict=True) if run.manifest.kept_servers)
    made = RunDifference(first=names[0], second=names[1], simulated=simulated, differs=differs, kept_servers=kept)
    unequal = [f"{c.what}: {c.first} and {c.second}" for c in _conditions_asked(runs) if c.first != c.second]
    if unequal:
        why = "; ".join(unequal)
        return msgspec.structs.replace(made, refusal=f"the two runs did not measure the same thing ({why})")
    shared = [key for key in ours if key in theirs]
    if not shared:
        sides = " and ".join(", ".join(dict.fromkeys(row.target for row in side.values())) for side in (ours, theirs))
        why = f"no target has the same name and the same B in both runs (they have {sides})"
        return msgspec.structs.replace(made, refusal=why)
    missing = [*_alone(names[0], ours, theirs), *_alone(names[1], theirs, ours)]
    kinds = [run.manifest.power.kind or "not recorded" for run in runs]
    metered = kinds[0] == kinds[1]
    if not metered and "none" not in kinds:
        missing.append(
            f"energy and power are not compared: metered by {kinds[0]} in {names[0]}, {kinds[1]} in {names[1]}"
        )
    found: list[Difference] = []
    graded = [_answers(run) for run in runs]
    for name, run in zip(names, runs, strict=True):
        if run.manifest.graded and not Folder(run.path).has("requests.parquet"):
            missing.append(f"accuracy is not compared: {name} has no requests.parquet, which `loadgen report` writes")
    values = [_values(run) for run in runs]
    for key in shared:
        row, lacks = ours[key], dict[str, list[str]]()
        for metric in RATIOS:
            first, second = (side.get((*key, metric), []) for side in values)
            if metric in _METERED and not metered:
                continue
            if first and second and min(*first, *second) > 0:
                found.append(_difference(row, metric, first, second))
            elif first or second:
                lacks.setdefault(names[1] if first else names[0], []).append(metric)
        where = f"{row.target}, {level(row.concurrency, row.arrival)}"
        missing += [f"{where}: {name} has no valid {', '.join(metrics)}" for name, metrics in lacks.items()]
        first_answers, second_answers = (side.get(key, {}) for side in graded)
        if first_answers.keys() & second_answers.keys():
            compared = compare_accuracy(second_answers, first_answers)
            change = Estimate(value=compared.difference, lo=compared.difference_lo, hi=compared.difference_hi)
            found.append(
                Difference(
                    target=row.target, concurrency=row.concurrency, arrival=row.arrival, metric="accuracy",
                    first=compared.reference_accuracy, second=compared.accuracy, n_first=compared.items,
                    n_second=compared.items, change=change,
                )
            )  # fmt: skip
    return msgspec.structs.replace(made, differences=tuple(found), missing=tuple(missing))


Key = tuple[str, float]
"""Target, and B or rate."""


def _key(row: CompareRow) -> Key:
    return row.target, held_of(row.concurrency, row.arrival)


def _difference(row: CompareRow, metric: str, first: Sequence[float], second: Sequence[float]) -> Difference:
    return Difference(
        target=row.target, concurrency=row.concurrency, arrival=row.arrival, metric=metric,
        first=sum(first) / len(first), second=sum(second) / len(second), n_first=len(first), n_second=len(second),
        change=rate_ratio(second, first),
    )  # fmt: skip


def _values(run: Run) -> dict[tuple[str, float, str], list[float]]:
    """The metric of each valid repeat, by target, B and metric."""
    values: dict[tuple[str, float, str], list[float]] = {}
    for metric in RATIOS:
        for cell in run.valid_cells(metric).to_dict("records"):
            figure = cell.get(metric)
            if isinstance(figure, int | float) and math.isfinite(figure):
                values.setdefault((cell["target"], held_in(cell), metric), []).append(float(figure))
    return values


def _answers(run: Run) -> dict[Key, Answers]:
    """The graded answers of the cells in which answers are valid, by item."""
    if not run.manifest.graded or not Folder(run.path).has("requests.parquet"):
        return {}
    columns = ["target", "concurrency", "repeat", "item_id", "outcome", *(["arrival"] if run.arrival else [])]
    rows = read_table(run.path, "requests.parquet", columns=columns).dropna(subset=["outcome"])
    valid = {(c["target"], held_in(c), c["repeat"]) for c in run.valid_cells("accuracy").to_dict("records")}
    answers: dict[Key, dict[str, list[GradedAnswer]]] = {}
    counted = rows.groupby(columns, dropna=False, sort=False).size().reset_index(name="times")
    for row in counted.to_dict("records"):
        key = str(row["target"]), held_in(row)
        if (*key, row["repeat"]) in valid:
            outcome = str(row["outcome"])
            made = GradedAnswer(repeat=row["repeat"], times=row["times"], outcome=outcome, correct=outcome == "correct")
            answers.setdefault(key, {}).setdefault(str(row["item_id"]), []).append(made)
    return dict(answers)


def _alone(name: str, ours: dict[Key, CompareRow], theirs: dict[Key, CompareRow]) -> Iterator[str]:
    """Targets, and B of shared targets, that only one run has."""
    there = {target for target, _ in theirs}
    levels: dict[str, list[str]] = {}
    for key, row in ours.items():
        if key not in theirs:
            levels.setdefault(row.target, []).append(level(row.concurrency, row.arrival))
    alike: dict[str, list[str]] = {}
    for target, only in levels.items():
        alike.setdefault(f" at {', '.join(only)}" if target in there else "", []).append(target)
    for where, targets in alike.items():
        yield f"only in {name}: {', '.join(targets)}{where}"


def _conditions_asked(runs: tuple[Run, Run]) -> Iterator[Condition]:
    """What must be equal for a figure of one run to be comparable with the other's."""

    def both(what: str, texts: list[str]) -> Condition:
        return Condition(what=what, first=texts[0], second=texts[1])

    of = [run.manifest for run in runs]
    yield both("origin", ["SIMULATED" if m.simulated else "measured" for m in of])
    yield both("dataset", [f"{run.dataset} (sha256 {run.manifest.dataset.sha256[:8]})" for run in runs])
    yield both("protocol", [f"{m.protocol.name} (sha256 {m.protocol.sha256[:8]})" for m in of])
    yield both("API", [m.protocol.api for m in of])
    yield both("temperature", [str(m.protocol.temperature) for m in of])
    yield both("most tokens of an answer", [str(m.protocol.max_tokens) for m in of])
    yield both("fixed length", [str(m.config.fixed_length or "none") for m in of])
    yield both("arrivals", ["an open loop" if run.arrival else "a closed loop" for run in runs])


def _conditions(runs: tuple[Run, Run], ours: Sequence[CompareRow], theirs: Sequence[CompareRow]) -> Iterator[Condition]:
    """What differs, of all that a run records about its machine, servers and extent."""

    def said(rows: Sequence[CompareRow], field: str) -> str:
        return ", ".join(sorted({str(getattr(row, field)) for row in rows if getattr(row, field) is not None}))

    of = [run.manifest for run in runs]
    fields = {"model": "model", "hardware": "gpu", "number of GPUs": "gpu_count", "vLLM": "vllm", "kernels": "kernels"}
    sides = {what: [said(rows, field) for rows in (ours, theirs)] for what, field in fields.items()}
    sides |= {
        "KV caches": [caches.rule if (caches := kv_caches(m)) is not None else "" for m in of],
        "driver": [", ".join(sorted({gpu.driver for gpu in m.gpu or () if gpu.driver})) for m in of],
        "power source": [m.power.kind or "" for m in of],
        "questions": [str(m.dataset.items) for m in of],
        "window, s": [f"{m.config.duration_s:g}" if m.config.duration_s else "" for m in of],
        "repeats": [str(m.config.repeats) for m in of],
        "loadgen": [m.client.loadgen for m in of],
        "client's processor": [m.host.cpu or "" for m in of],
    }
    for what, (first, second) in sides.items():
        if first != second:
            yield Condition(what=what, first=first or "not recorded", second=second or "not recorded")
