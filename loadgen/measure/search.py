"""A search for B* (`--find`): its options, and its steps as they are measured, each decided by those before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.load.openloop import Arrivals, listed
from loadgen.measure.observer import Observer
from loadgen.notation import did_you_mean, entries, spelled
from loadgen.options import SweepOptions, dashed
from loadgen.record.cell import Block
from loadgen.record.journal import unfinished
from loadgen.record.manifest import ManifestFile, PowerPlan

if TYPE_CHECKING:
    from loadgen.measure.plan import SweepPlan

RANGE = (1, 256)
"""Batch sizes between which B* is searched for."""
WITHIN = 0.1
ONLY_OF_A_SEARCH = ("within", "range", "most_minutes")
ONLY_OF_A_GRID = ("concurrency", "repeats")


def metrics_sought(
    o: SweepOptions, given: Mapping[str, Any], names: Sequence[str], arrivals: Sequence[Arrivals]
) -> tuple[str, ...]:
    """The metrics that `--find` names; none where a grid is measured. Raises UsageError for an unknown one, and for
    options that a search, or a grid, does not take."""
    asked = o["find"]
    parts = (entries(asked) if asked else []) if isinstance(asked, str) else [str(part) for part in asked]
    if not parts:
        for name in ONLY_OF_A_SEARCH:
            if given.get(name) is not None:
                raise UsageError(f"--{dashed(name)} {given[name]} needs --find METRIC: it is for a search for B*")
        return ()
    from loadgen.analysis.crossover.curve import METRICS

    metrics = tuple(dict.fromkeys(spelled(part, METRICS) for part in parts))
    for metric in metrics:
        if metric not in METRICS:
            hint = f"{did_you_mean(metric, METRICS)}known: {', '.join(METRICS)}"
            raise UsageError(f"--find {metric}: not a metric of crossovers; {hint}")
    for name in ONLY_OF_A_GRID:
        if given.get(name) is not None:
            instead = "--range LOW:HIGH" if name == "concurrency" else "--within and --most-minutes"
            raise UsageError(
                f"--find and --{dashed(name)} exclude each other: a search chooses what it measures; set {instead}"
            )
    if o["within"] is not None and float(o["within"]) >= 0.5:
        raise UsageError(f"--within {given['within']}: give a share below 50%, as in 10%")
    if arrivals:
        raise UsageError(f"--find needs a closed loop, and {listed(arrivals)} holds no B; omit --arrival")
    if len(names) < 2:
        raise UsageError(f"--find compares targets, and {names[0]} is alone; name a second one")
    return metrics


def range_sought(asked: str | Sequence[int] | None, highest: int | None) -> tuple[int, int]:
    """The lowest and the highest B of `--range`; by default from 1 to 256, or to what the project's servers hold."""
    if asked is None:
        return RANGE[0], highest or RANGE[1]
    shown = asked if isinstance(asked, str) else ":".join(map(str, asked))
    ends = [part.strip() for part in re.split(r"[:,-]|\.\.", shown)]
    if (
        len(ends) != 2
        or not all(end.isdecimal() and len(end) < 10 for end in ends)
        or not 0 < int(ends[0]) < int(ends[1])
    ):
        raise UsageError(f"--range {shown}: write the lowest and the highest B, as in 1:256")
    return int(ends[0]), int(ends[1])


def check_measured(plan: SweepPlan, power: PowerPlan) -> None:
    """Raises UsageError for a metric of a search that no cell of this sweep would have."""
    config = plan.config
    for metric in config.find:
        lacks_power = metric.startswith("energy") and power.kind == "none"
        if lacks_power and not (metric == "energy_hli_per_query_j" and config.tdp_w):
            by_board = ", or energy_hli_per_query_j with --tdp-w W" if metric != "energy_hli_per_query_j" else ""
            raise UsageError(
                f"--find {metric} needs measured power, and there is none ({power.reason}); find tokens_per_s{by_board}"
            )
        if metric in ("energy_per_correct_j", "si") and not plan.graded:
            why = (
                "answers of --fixed-length are not" if config.fixed_length else f"those of {plan.dataset.name} are not"
            )
            raise UsageError(f"--find {metric} needs graded answers, and {why}; find tokens_per_s")


def price_sentence(plan: SweepPlan) -> str:
    """What a search is expected to take, where the curve is usual; in brackets where it is steep, and gentle."""
    price = plan.price
    parts = [f"about {price.cells.typical:.0f} cells ({price.cells.low:.0f} to {price.cells.high:.0f})"]
    if plan.config.mode != "target":
        starts = price.starts
        parts.append(f"{starts.typical:.0f} starts of a server ({starts.low:.0f} to {starts.high:.0f})")
    low, high = (f"{minutes:.3g}" for minutes in (price.minutes.low, price.minutes.high))
    return f"{' and '.join(parts)}: about {price.minutes.typical:.3g} min ({low} to {high})"


def upcoming(plan: SweepPlan, file: ManifestFile, observer: Observer) -> Iterator[Block]:
    """The blocks that are left; a search decides on its next step when the one before has been measured. It stops at a
    step that could not be measured whole: what it would decide without those cells, it would not with them."""
    if not plan.config.find:
        yield from plan.blocks
        return
    from loadgen.analysis.warnings import KEPT_SERVERS
    from loadgen.search.readings import Readings

    if file.manifest.kept_servers:
        observer.note(KEPT_SERVERS)
    readings = Readings(file.run_dir, file.manifest, plan.goal)
    while True:
        if not unfinished(file.run_dir, file.manifest.blocks):
            step = readings.search(file.manifest).next
            if step is None:
                return
            file.add_step(step)
        step = file.manifest.steps[-1]
        left = unfinished(file.run_dir, file.manifest.blocks)
        observer.step_begins(step, replace(plan, blocks=left).timetable)
        yield from left
        if unfinished(file.run_dir, file.manifest.blocks):
            return
