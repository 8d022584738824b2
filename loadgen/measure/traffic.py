"""Traffic: what the options of a sweep say about when requests arrive, and how long they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from loadgen.bounds import shown_number
from loadgen.errors import UsageError
from loadgen.load.openloop import CLOSED, TRACE, Arrivals, listed
from loadgen.notation import did_you_mean, numerals, spelled
from loadgen.options import SweepOptions
from loadgen.record.cell import NOT_MEASURED, TargetSpec
from loadgen.workload.dataset import dataset_named, existing_file
from loadgen.workload.traffic import (
    FILE_KINDS,
    SYNTHETIC,
    check_shapes,
    read_traffic,
    shapes_of,
    trace_rate_per_s,
    without_answers,
)


def with_data_file(o: SweepOptions) -> SweepOptions:
    """`--dataset trace:FILE` as `trace` and its data file, and any dataset by its own name."""
    if o["dataset"] is not None:
        o = {**o, "dataset": dataset_named(o["dataset"])}
    kind, colon, name = (o["dataset"] or "").partition(":")
    if kind not in FILE_KINDS or not colon:
        return o
    if not name:
        raise UsageError(f"--dataset {o['dataset']}: name a file, as in {kind}:traffic.jsonl")
    if o["data_file"] is not None and str(o["data_file"]) != name:
        raise UsageError(f"--data-file {o['data_file']}: --dataset {kind}:{name} names another file; omit --data-file")
    return {**o, "dataset": kind, "data_file": name}


def arrivals_of(o: SweepOptions, dataset: str) -> tuple[tuple[Arrivals, ...], int | None]:
    """How requests arrive, none in a closed loop; and how many a trace has that is replayed."""
    text, scale = (o["arrival"] or (TRACE if dataset == TRACE else CLOSED)).strip().lower(), o["rate_scale"]
    if text.partition(":")[0] != TRACE:
        if scale is not None:
            raise UsageError(f"--rate-scale {scale} needs --arrival trace: it scales a trace's own rate")
        return Arrivals.parse_each(text), None
    if dataset != TRACE or o["data_file"] is None:
        raise UsageError(f"--arrival {text} needs --dataset trace:FILE, whose times it replays")
    file = existing_file(Path(o["data_file"]), "--data-file")
    times_s = [item.due_s or 0.0 for item in read_traffic(TRACE, file, o["limit"]).items]
    own = trace_rate_per_s(file, times_s)
    if text == TRACE:
        arrivals = tuple(Arrivals("trace", float(f"{own * factor:.6g}")) for factor in _scales(scale))
    elif scale is not None:
        raise UsageError(f"--rate-scale {scale}: --arrival {text} gives the rate already; give one of the two")
    else:
        arrivals = Arrivals.parse_each(text)
    for one in arrivals:
        lasts_s = (times_s[-1] - times_s[0]) * own / one.rate_per_s + 1 / one.rate_per_s
        if o["duration"] is not None and float(o["duration"]) > lasts_s:
            raise UsageError(
                f"--duration {shown_number(float(o['duration']))}: at {one} the trace lasts {lasts_s:.1f} s; omit "
                "--duration to replay all of it"
            )
    if o["requests"] is not None and o["requests"] > len(times_s):
        raise UsageError(f"--requests {o['requests']}: the trace has {len(times_s)} requests; omit --requests")
    return arrivals, len(times_s)


_BETWEEN_TARGETS = re.compile(r",(?=[^,=]*=)")


def with_own_arrivals(o: SweepOptions, specs: Sequence[TargetSpec]) -> tuple[SweepOptions, tuple[TargetSpec, ...]]:
    """The targets, each with its own arrivals where `--arrival` has a part for each; the option then has them all."""
    text, names = o["arrival"], [spec.name for spec in specs]
    if text is None or "=" not in text:
        return o, tuple(specs)
    own: dict[str, tuple[Arrivals, ...]] = {}
    for part in _BETWEEN_TARGETS.split(text.strip(" ,")):
        given, _, arrival = part.partition("=")
        if (name := spelled(given.strip(), names)) not in names:
            say = f"no such target; {did_you_mean(name, names)}the targets are {', '.join(names)}"
            raise UsageError(f"--arrival {part.strip()}: {say}")
        if name in own:
            raise UsageError(f"--arrival {text}: {name} is listed twice; write all its rates once, as in poisson:5,10")
        arrival = arrival.strip().lower()
        own[name] = () if arrival == NOT_MEASURED else Arrivals.parse_each(arrival)
        if arrival == CLOSED or any(one.kind == TRACE for one in own[name]):
            say = "a target's own arrivals are poisson:RATE, constant:RATE or none"
            raise UsageError(f"--arrival {part.strip()}: {say}")
    if lacking := [name for name in names if name not in own]:
        raise UsageError(f"--arrival {text}: {lacking[0]} has none; give every target its own, or one for all")
    every = tuple(dict.fromkeys(one for each in own.values() for one in each))
    if len({one.kind for one in every}) != 1:
        raise UsageError(f"--arrival {text}: give rates of one kind, poisson or constant, to all targets")
    asked = {name: listed(each) if each else NOT_MEASURED for name, each in own.items()}
    return {**o, "arrival": listed(every)}, tuple(replace(spec, arrival=asked[spec.name]) for spec in specs)


def _scales(scale: float | str | Sequence[float] | None) -> list[float]:
    if scale is None:
        return [1.0]
    given = [scale] if isinstance(scale, str | int | float) else list(scale)
    parts = [part for one in given for part in numerals(str(one), "--rate-scale")]
    factors: list[float] = []
    for part in parts:
        try:
            factor = float(part)
        except ValueError:
            factor = math.nan
        if not 1e-6 <= factor <= 1e6:
            raise UsageError(f"--rate-scale {part}: give a factor above 0, as in 2 for twice the trace's rate")
        if factor in factors:
            raise UsageError(f"--rate-scale {part} is listed twice; list each factor once")
        factors.append(factor)
    return factors


def check_lengths(o: SweepOptions, dataset: str) -> None:
    """That the answers' lengths come from one place only."""
    kind = dataset.partition(":")[0]
    if kind == SYNTHETIC:
        check_shapes(dataset)
        if o["data_file"] is not None:
            raise UsageError(f"--data-file {o['data_file']}: --dataset {dataset} has no file; omit --data-file")
        if o["find"] and (shapes := shapes_of(dataset)):
            raise UsageError(
                f"--dataset {dataset}: --find looks for the B* of one shape; give one, as in {SYNTHETIC}:{shapes[0]}"
            )
    for name, value in (("max-tokens", o["max_tokens"]), ("fixed-length", o["fixed_length"])):
        if kind in (SYNTHETIC, TRACE) and value is not None:
            raise UsageError(f"--{name} {value}: --dataset {kind} gives the length of each answer; omit --{name}")
    if without_answers(dataset) and o["answer_regex"] is not None:
        raise UsageError(f"--answer-regex: --dataset {kind} has no answers to grade; omit --answer-regex")
